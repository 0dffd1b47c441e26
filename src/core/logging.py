"""Log lines, progress bars and wall-clock times of a run."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import MemoryHandler
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from src.core.errors import UserError, check
from src.core.files import write_json, writing
from src.core.foreign.escape import terminal
from src.core.foreign.typed import read_typed

LOGGER_NAME = "anyo"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_console = Console(stderr=True)
_show_progress = True
_prefix = ""
_time_file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """The part of `conf/logging` that is about the terminal and the log file."""

    level: str = "INFO"
    progress: bool = True

    def __post_init__(self) -> None:
        check(self.level in _LEVELS, "logging.level", self.level, f"one of {', '.join(_LEVELS)}")


class _LogFile(logging.FileHandler):
    """A log that cannot be written ends the stage: its weights could not be written, either."""

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger(LOGGER_NAME).removeHandler(self)
        with suppress(OSError):  # once more, of what is left in its buffer
            self.close()
        error = sys.exc_info()[1]  # what `emit` has caught
        assert error is not None
        with writing(Path(self.baseFilename)):
            raise error


class _LineFormatter(logging.Formatter):
    """One line a record, and nothing in it that a terminal obeys: messages quote titles, paths and foreign errors."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = terminal(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(terminal(line) for line in super().formatException(ei).split("\n"))


def begin_lines_with(prefix: str) -> None:
    """What the lines on the terminal begin with from here on."""
    global _prefix
    _prefix = prefix


class _TerminalFormatter(_LineFormatter):
    """Lines on the terminal say which job of a sweep they are of; a log file is of one job."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(logging.makeLogRecord({**vars(record), "message": _prefix + record.message}))


def start_logging(settings: LoggingConfig) -> logging.Logger:
    """The run's logger: readable lines on the terminal, kept for the file that `open_log` may open."""
    global _show_progress
    _show_progress = (
        settings.progress and parent_process() is None
    )  # bars of jobs side by side would overwrite each other
    logger = terminal_logger()
    logger.addHandler(MemoryHandler(capacity=sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False))
    logger.setLevel(settings.level)
    return logger


def open_log(log_file: Path) -> None:
    """Append the lines since `start_logging`, and all later ones, to a file, with their times."""
    logger = logging.getLogger(LOGGER_NAME)
    with writing(log_file):
        log_file.parent.mkdir(parents=True, exist_ok=True)
        to_file = _LogFile(log_file, encoding="utf-8")
    to_file.setFormatter(_LineFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    for handler in list(logger.handlers):
        if isinstance(handler, MemoryHandler):
            handler.setTarget(to_file)
            handler.flush()
            logger.removeHandler(handler)
    logger.addHandler(to_file)


def terminal_logger() -> logging.Logger:
    """The run's logger without a file; closes that of an earlier stage."""
    logger = logging.getLogger(LOGGER_NAME)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.addHandler(_terminal_handler())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger


def _terminal_handler() -> logging.Handler:
    """Rich on a terminal, where it shares the screen with progress bars; plain unwrapped lines elsewhere."""
    if _console.is_terminal:
        on_screen = RichHandler(console=_console, show_path=False, log_time_format="%X", highlighter=NullHighlighter())
        on_screen.setFormatter(_TerminalFormatter("%(message)s"))
        return on_screen
    handler = logging.StreamHandler()
    handler.setFormatter(_TerminalFormatter("%(asctime)s %(levelname)-7s %(message)s", "%X"))
    return handler


def silent_logger() -> logging.Logger:
    """The run's logger in a process beside the main one: it shows errors only, and no progress bar."""
    global _show_progress
    _show_progress = False
    logger = logging.getLogger(LOGGER_NAME)
    logger.setLevel(logging.ERROR)
    return logger


def record_times_in(time_file: Path | None) -> None:
    """From here on `time_block` and `forget_times` of this process work on this file; None: on none."""
    global _time_file
    _time_file = time_file


@contextmanager
def time_block(name: str) -> Iterator[Callable[[], None]]:
    """Measure the block and merge `{name: seconds}` into the file of `record_times_in`.

    A second block of the same name adds up, because a resumed stage continues the first. The time counts
    even if the block fails: it was spent. The function that the block gets adds the time so far, so that it is
    not lost with a process that is killed.
    """
    start, time_file = time.perf_counter(), _time_file

    def add() -> None:
        nonlocal start
        if time_file is None:
            return
        now = time.perf_counter()
        times = _read_times(time_file)
        times[name] = round(times.get(name, 0.0) + now - start, 3)
        start = now
        write_json(time_file, times)

    try:
        yield add
    except BaseException:
        with suppress(UserError):  # of a full disk: what has ended the block says more
            add()
        raise
    add()


def forget_times(*names: str) -> None:
    """What was measured under these names counts no more: the work starts over."""
    if _time_file is None:
        return
    times = _read_times(_time_file)
    if times.keys() & set(names):
        write_json(_time_file, {name: value for name, value in times.items() if name not in names})


def take_times(files: Iterable[Path]) -> None:
    """Add what other processes have measured into files of their own, and remove these."""
    files = sorted(files)
    if _time_file is None or not files:
        return
    times = _read_times(_time_file)
    for name, seconds in (item for file in files for item in _read_times(file).items()):
        times[name] = round(times.get(name, 0.0) + seconds, 3)
    write_json(_time_file, times)
    for file in files:
        file.unlink()


def _read_times(time_file: Path) -> dict[str, float]:
    """The times so far; damaged ones are no reason to end a training: they begin anew."""
    try:
        return read_typed(time_file, dict[str, float], "") if time_file.is_file() else {}
    except UserError as error:
        terminal_logger().warning("times are counted from now on: %s", error)
        return {}


@contextmanager
def row_progress(name: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A progress bar over rows, of which `done` were there before; yields a function that counts more of them.

    Args:
        total: None: not known.
    """
    begin, count = time.perf_counter(), 0
    with progress_bar() as bar:
        task = bar.add_task(name, total=total, completed=done, info="")

        def advance(rows: int) -> None:
            nonlocal count
            count += rows
            bar.update(task, advance=rows, info=f"{count / (time.perf_counter() - begin):.1f} rows/s")

        yield advance


def progress_bar() -> Progress:
    """A progress bar with count, time left and a free text field `info`; use as a context.

    In a terminal of 80 columns 40 are left for `info`, which alone is cut where there are fewer: numbers cut short
    would be other numbers.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=8),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[info]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        expand=True,
        console=_console,
        disable=not (_show_progress and _console.is_terminal),
        transient=True,
    )
