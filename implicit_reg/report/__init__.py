"""One self-contained HTML page from the record of `verify`: to read on a screen, to print, to hand on.

Nothing is fetched from anywhere, and no script runs. Whatever comes from the record is escaped.
"""

from implicit_reg.report._document import verify_report

__all__ = ["verify_report"]
