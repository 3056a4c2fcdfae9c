"""Processes that work for a command, for Python's lock leaves one of them one core while it traces.

Three ways to have them: (1) `concurrent.futures` with a forked parent, which JAX's threads forbid; (2) with a spawned
one, which imports the caller's main module again, speaks in pickles, and whose workers outlive a parent that is killed;
(3) a program of our own that reads and writes lines of JSON. What a task returns is JSON in the end, in which numbers
are exact; and a worker ends when its input does, whatever became of its parent. We do (3).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from implicit_reg.cli import _common

DEFAULT_LIMIT = 2  # as many as were measured to pay

Report = Callable[[str], None]
Run = Callable[[str, Report], Any]

_PATH = "import sys, json; sys.path[:] = json.loads(sys.stdin.readline()); "


class WorkerError(Exception):
    """A task failed in a worker, or the worker ended: an exit code, the line to print, and a traceback if there is one.

    Attributes:
      code: for the command to end with.
      trace: the worker's traceback, or "".
    """

    def __init__(self, code: int, message: str, trace: str = ""):
        super().__init__(message)
        self.code, self.trace = code, trace


def default_number() -> int:
    """How many processes pay on the cores that this one may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, DEFAULT_LIMIT)


class Worker:
    """A process that runs `statement`, which must call `serve`.

    Args:
      statement: of Python, with its imports.
      settings: for `serve`, ready for JSON.
    """

    def __init__(self, statement: str, settings: Mapping[str, Any]):
        with _interrupts_are_the_parents():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PATH + statement],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
        with contextlib.suppress(BrokenPipeError):  # said when a task is asked for
            self._send(sys.path)
            self._send(settings)

    def run(self, name: str, report: Report) -> Any:
        """What the task of that name returns; progress is passed on.

        Raises:
          WorkerError: the task raised, or the process ended.
        """
        with contextlib.suppress(BrokenPipeError):
            self._send(name)
            for line in self._process.stdout:
                kind, content = json.loads(line)
                if kind == "report":
                    report(content)
                elif kind == "result":
                    return content
                else:
                    raise WorkerError(*content)
        raise _ended(self._process.wait(), name)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()

    def _send(self, message: Any) -> None:
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()


@contextlib.contextmanager
def _interrupts_are_the_parents() -> Iterator[None]:
    """A process started here does not see the terminal's interrupts: its parent ends, and it does."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ended(code: int, name: str) -> WorkerError:
    if code == -signal.SIGTERM:
        return WorkerError(_common.EXIT_TERMINATED, "terminated")
    if code == -getattr(signal, "SIGKILL", 0):
        why = "was killed, as a system out of memory does; --jobs 1 needs less"
        return WorkerError(_common.EXIT_RESOURCES, f"error: the process at work on {name} {why}")
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return WorkerError(_common.EXIT_INTERNAL, f"internal error: the process at work on {name} ended with {how}")


def run_all(names: Sequence[str], first: Sequence[str], seats: Sequence[Run], report: Report) -> list[Any]:
    """Runs every task once, on whichever seat is free.

    Args:
      names: the tasks.
      first: those that take longest, which begin, so that the seats end together.
      seats: each runs one task at a time.
      report: told what begins, from any thread.

    Returns:
      What the tasks return, in the order of `names`.

    Raises:
      Exception: the first that a task raised; those that wait are not begun.
    """
    rank = {name: place for place, name in enumerate(first)}
    waiting = sorted(range(len(names)), key=lambda k: rank.get(names[k], len(rank)))
    results: list[Any] = [None] * len(names)
    lock = threading.Lock()

    def sit(run: Run) -> None:
        while True:
            with lock:
                if not waiting:
                    return
                k = waiting.pop(0)
            try:
                results[k] = run(names[k], report)
            except BaseException:
                with lock:
                    waiting.clear()
                raise

    with ThreadPoolExecutor(len(seats)) as pool:
        for done in [pool.submit(sit, run) for run in seats]:
            done.result()
    return results


def serve(prepare: Callable[[dict[str, Any]], Run]) -> None:
    """What a worker does: reads its settings, then names of tasks until there are no more, and answers each.

    Args:
      prepare: `settings -> run(name, report)`.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a user's module prints is no answer
    settings = json.loads(sys.stdin.readline())
    asked: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            asked.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()

    def answer(kind: str, content: Any) -> None:
        # A line: within texts JSON has no line breaks of its own.
        answers.write(_common.to_json([kind, content]).replace("\n", " ") + "\n")
        answers.flush()

    run = prepare(settings)
    while True:
        name = asked.get()
        try:
            answer("result", run(name, lambda what: answer("report", what)))
        except BaseException as error:
            answer("error", [*_common.explain(error), traceback.format_exc()])
