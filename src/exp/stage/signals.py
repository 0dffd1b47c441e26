"""How Ctrl-C and SIGTERM end a command: soon, wherever they find it, with code 130 or 143 and a line how to go on.

Of the standard library alone, so that it is in place before the libraries are imported, which takes seconds.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 1.0  # for the work to end properly, in the record and in the times; then the process is ended
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar hides

_came: int | None = None
_is_watching = _is_said = False


class Terminated(BaseException):
    """SIGTERM, as an exception: what is being measured and written is finished properly."""


def _start_again() -> str:
    return "nothing was done yet, start the same command again"


_way_on: Callable[[], str] = _start_again


def set_way_on(way_on: Callable[[], str]) -> None:
    """What to tell the user if a signal comes from now on: how to go on, on one line."""
    global _way_on
    _way_on = way_on


def has_come() -> bool:
    """Whether a signal is ending this process: whatever error comes now comes from that."""
    return _came is not None


def last_words(stop: BaseException) -> tuple[str, int]:
    """The message and the exit code after a signal, or after what it has raised; whoever asks for them shows them."""
    global _is_said
    _is_said = True
    return _last_words(_came or (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT))


def _last_words(number: int) -> tuple[str, int]:
    try:
        way_on = _way_on()
    except Exception:  # whatever it is, the process has to end
        way_on = "start the same command again"
    return f"{_WORDS[signal.Signals(number)]}; {way_on}", 128 + number


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """A signal ends the block, and the process: by an exception, or, where nothing heeds that, without.

    An exception alone is not enough: Python raises it only between two of its own instructions, so not within a long
    call of a library, and a library may swallow it. The outermost block counts.
    """
    global _is_watching, _is_said
    if _is_watching:
        yield
        return
    _is_watching, _is_said = True, False
    set_way_on(_start_again)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    threading.Thread(target=_watch, args=(read_end,), name="signals", daemon=True).start()
    before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, _stop) for number in _WORDS}
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        message, code = last_words(stop)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(code)
    finally:
        if not has_come():  # else the end is watched to its end
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            os.close(write_end)
            _is_watching = False


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise what ends the work; within an import, where exceptions are swallowed or abort the process, just end it."""
    global _came
    if has_come():  # a terminal and a script send one each, and impatient people more
        return
    _came = number
    sys.unraisablehook = lambda arguments: None  # its trace would say which callback the signal found
    if _is_import(frame):
        _end(number)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _is_import(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _watch(wakeups: int) -> None:
    """End the process in time after the first signal: in a thread, which needs no turn of the main one."""
    with os.fdopen(wakeups, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] in _WORDS:
                time.sleep(GRACE_SECONDS)
                _end(number[0])


def _end(number: int) -> None:
    """End the process as a kill would, but for the line and for its children. To be called within an import, too."""
    message, code = _last_words(number)
    if os.isatty(2):
        os.write(2, _SHOW_CURSOR)
    if not _is_said:
        os.write(2, f"error: {message}\n".encode(errors="backslashreplace"))
    if processes := sys.modules.get("multiprocessing.process"):
        for child in processes.active_children():  # of a sweep's launcher
            child.kill()
    os._exit(code)
