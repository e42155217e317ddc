"""Signals that end a program, as exceptions, so that `with` blocks stop what was started."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def termination_raises() -> Iterator[None]:
    """In this block SIGTERM and SIGHUP raise SystemExit(128 + number) in the main thread.

    Ctrl-C raises KeyboardInterrupt by itself; that is made so again where a shell started us
    in the background with SIGINT ignored. Call it from the main thread.
    """

    def raise_exit(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, raise_exit) for number in _SIGNALS}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
