"""Log lines, TensorBoard and wall-clock times of a run."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from src.core.errors import check
from src.core.files import read_json, write_json
from src.core.foreign.escape import terminal

LOGGER_NAME = "anyo"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_console = Console(stderr=True)
_show_progress = True


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """`conf/logging`: what is shown and kept while a stage runs."""

    level: str = "INFO"
    tensorboard: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        check(self.level in _LEVELS, "logging.level", self.level, f"one of {', '.join(_LEVELS)}")


class TensorBoardWriter(Protocol):
    """The part of `SummaryWriter` that training loops use."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def close(self) -> None: ...


class _NoWriter:
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        pass

    def close(self) -> None:
        pass


class _LineFormatter(logging.Formatter):
    """One line a record, and nothing in it that a terminal obeys: messages quote titles, paths and foreign errors."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = terminal(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(terminal(line) for line in super().formatException(ei).split("\n"))


def init_logger(log_file: Path, settings: LoggingConfig) -> logging.Logger:
    """The run's logger: readable lines on the terminal, the same with times appended to `log_file`."""
    global _show_progress
    _show_progress = settings.progress
    log_file.parent.mkdir(parents=True, exist_ok=True)
    logger = terminal_logger()
    to_file = logging.FileHandler(log_file, encoding="utf-8")
    to_file.setFormatter(_LineFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    logger.addHandler(to_file)
    logger.setLevel(settings.level)
    return logger


def terminal_logger() -> logging.Logger:
    """The run's logger before a stage has opened its file; closes the file of an earlier stage."""
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
        on_screen.setFormatter(_LineFormatter("%(message)s"))
        return on_screen
    handler = logging.StreamHandler()
    handler.setFormatter(_LineFormatter("%(asctime)s %(levelname)-7s %(message)s", "%X"))
    return handler


def silent_logger() -> logging.Logger:
    """The run's logger in a process beside the main one: it shows errors only, and no progress bar."""
    global _show_progress
    _show_progress = False
    logger = logging.getLogger(LOGGER_NAME)
    logger.setLevel(logging.ERROR)
    return logger


def tensorboard_writer(folder: Path, settings: LoggingConfig) -> TensorBoardWriter:
    """A TensorBoard writer for `folder`, or one that does nothing if `logging.tensorboard` is off."""
    if not settings.tensorboard:
        return _NoWriter()
    # Imported here: it costs two seconds that the other commands need not pay.
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


@contextmanager
def time_block(name: str, time_file: Path) -> Iterator[Callable[[], None]]:
    """Measure the block and merge `{name: seconds}` into `time_file`.

    A second block of the same name adds up, because a resumed stage continues the first. The time counts
    even if the block fails: it was spent. The function that the block gets adds the time so far, so that it is
    not lost with a process that is killed.
    """
    start = time.perf_counter()

    def add() -> None:
        nonlocal start
        now = time.perf_counter()
        times: dict[str, Any] = read_json(time_file) if time_file.is_file() else {}
        times[name] = round(times.get(name, 0.0) + now - start, 3)
        start = now
        write_json(time_file, times)

    try:
        yield add
    finally:
        add()


def forget_times(time_file: Path, *names: str) -> None:
    """What was measured under these names counts no more: the work starts over."""
    times = read_json(time_file) if time_file.is_file() else {}
    if times.keys() & set(names):
        write_json(time_file, {name: value for name, value in times.items() if name not in names})


@contextmanager
def row_progress(name: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A progress bar over rows, of which `done` were there before; yields a function that counts more of them."""
    begin, count = time.perf_counter(), 0
    with progress_bar() as bar:
        task = bar.add_task(name, total=total, completed=done, info="")

        def advance(rows: int) -> None:
            nonlocal count
            count += rows
            bar.update(task, advance=rows, info=f"{count / (time.perf_counter() - begin):.1f} rows/s")

        yield advance


def progress_bar() -> Progress:
    """A progress bar with count, time used, time left and a free text field `info`; use as a context."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}"),
        console=_console,
        disable=not (_show_progress and _console.is_terminal),
        transient=True,
    )
