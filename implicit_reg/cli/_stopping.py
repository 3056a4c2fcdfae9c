"""Stopping work that is done in chunks: the first signal is a wish, the second one is obeyed at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from implicit_reg.cli import _common
from implicit_reg.cli._training import Stop

_CODES = {signal.SIGINT: _common.EXIT_INTERRUPTED, signal.SIGTERM: _common.EXIT_TERMINATED}


@contextlib.contextmanager
def stop_after_chunk() -> Iterator[Stop]:
    """Makes the first SIGINT or SIGTERM a wish, looked at when a chunk ends; the second ends the process at once.

    Python runs a handler when its own thread has the word, and that thread waits in XLA for seconds. So another thread
    listens, to which the interpreter passes the signal's number in the moment when it arrives.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def listen() -> None:
        while (data := os.read(read, 1)) != b"\0":
            code = _CODES[signal.Signals(data[0])]
            if stop:
                os.write(2, b"stopped at once\n")
                os._exit(code)
            stop.code = code
            os.write(2, b"stopping when the chunk in hand is finished; a second signal stops at once\n")

    read, write = os.pipe()
    os.set_blocking(write, False)
    listener = threading.Thread(target=listen, daemon=True)
    before = {number: signal.signal(number, lambda number, frame: None) for number in _CODES}
    descriptor = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    listener.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(write, b"\0")
        listener.join()
        os.close(read)
        os.close(write)
