"""The look of a report: on a light or dark screen, and on paper, where every prediction has a page of its own."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --page: #f6f7f9; --ink: #1f2429; --muted: #66707a; --faint: #a9b1b9; --grid: #e3e7eb;
  --holds: #2c7a31; --fails: #c2352a; --unknown: #66707a; --caution: #8a6a00;
  --accent: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #181c20; --page: #101316; --ink: #e4e8ec; --muted: #9aa5af; --faint: #5f6a74; --grid: #2b3238;
    --holds: #5fbf66; --fails: #ff7a6e; --unknown: #9aa5af; --caution: #d9b44a;
    --accent: #5cb3ea;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.015em; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 0; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
code, pre { font-family: ui-monospace, Menlo, Consolas, "Liberation Mono", monospace; font-size: .88em; }
pre { background: var(--page); border: 1px solid var(--grid); border-radius: 6px; padding: .7rem .9rem; }
pre { overflow-x: auto; }
.kicker { color: var(--muted); font-size: .85rem; letter-spacing: .06em; text-transform: uppercase; margin: 0 0 .5rem; }
.lead { color: var(--muted); font-size: 1.05rem; }
section { background: var(--paper); border: 1px solid var(--grid); border-radius: 10px; }
section { padding: 1.4rem 1.6rem; margin-top: 1.4rem; }
section > header { display: flex; gap: .9rem; align-items: baseline; flex-wrap: wrap; }
.verdict { font-weight: 600; white-space: nowrap; }
.verdict::before { margin-right: .35em; }
.holds { color: var(--holds); } .holds.verdict::before { content: "\\2713"; }
.fails { color: var(--fails); } .fails.verdict::before { content: "\\2717"; }
.partly { color: var(--caution); } .partly.verdict::before { content: "\\25D0"; }
.unknown { color: var(--unknown); } .unknown.verdict::before { content: "?"; }
.headline { border-left: 5px solid currentColor; padding-left: 1.1rem; }
.headline h1, .headline p, .headline dl { color: var(--ink); }
.headline .lead { color: var(--muted); }
figure { margin: 1rem 0 0; }
figure svg, figure img { display: block; max-width: 100%; height: auto; }
section.picture figure svg { width: 60rem; }
section.findings td a { white-space: nowrap; }
section.findings thead th { white-space: normal; vertical-align: bottom; min-width: 4rem; }
figure img { background: #fff; border-radius: 4px; }
@media screen and (prefers-color-scheme: dark) { figure svg { filter: brightness(1.3); } }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .36rem .65rem; text-align: right; border-bottom: 1px solid var(--grid); vertical-align: baseline; }
th { color: var(--muted); font-weight: 500; }
thead th { border-bottom-color: var(--faint); white-space: nowrap; }
th.text, td.text { text-align: left; }
td.number { white-space: nowrap; }
tr > :first-child { padding-left: 0; }
tbody.result th, tbody.result td { font-weight: 600; }
tbody.result tr:first-child > * { border-top: 1px solid var(--faint); }
th.group { text-align: center; border-bottom: 1px solid var(--grid); }
table.wide { width: 100%; }
td.name { min-width: 10rem; }
td.claim { min-width: 16rem; width: 50%; }
td.found { min-width: 9.5rem; } td.found span { white-space: nowrap; }
.side { display: flex; flex-wrap: wrap; gap: 0 3rem; } .side > div { max-width: 100%; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .9rem; margin: .6rem 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
.formula { font-size: 1.02rem; margin: .6rem 0; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0 2.5rem; }
.formula code { display: block; padding: .55rem .8rem; background: var(--page); border-radius: 6px; }
.formula code { overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
section > header .kicker { flex-basis: 100%; max-width: none; margin: 0; }
section > header nav { margin-left: auto; font-size: .85rem; white-space: nowrap; }
nav a + a { margin-left: 1rem; }
p.claim { font-size: 1.05rem; }
dl.facts { margin: 1rem 0; }
dl.facts dd { max-width: 52rem; }
.fine { color: var(--holds); } .caution { color: var(--caution); } .unreliable, .beyond { color: var(--fails); }
ul.findings { list-style: none; padding: 0; margin: .8rem 0; color: var(--ink); }
ul.findings li { margin: .3rem 0; }
ul.findings ul.findings { margin: .1rem 0 .6rem 1.4rem; font-size: .92rem; }
.note { color: var(--muted); font-size: .9rem; }
@media print {
  :root {
    --paper: #fff; --page: #fff; --ink: #000; --muted: #444; --faint: #999; --grid: #ddd;
    --holds: #1d5c22; --fails: #a3211a; --unknown: #444; --caution: #6b5200;
    --accent: #000;
  }
  body { font-size: 10pt; }
  table { font-size: 7.5pt; } th, td { padding: .2rem .4rem; } .scroll { overflow: visible; }
  main { max-width: none; padding: 0; }
  section { border: 0; border-top: 1px solid var(--grid); border-radius: 0; padding: .8rem 0; }
  section.check, section.contents { break-before: page; border-top: 0; }
  section > header nav { display: none; }
  figure, tr, h2, h3 { break-inside: avoid; } h2, h3, thead, section > p { break-after: avoid; }
  a { color: inherit; }
}
"""
