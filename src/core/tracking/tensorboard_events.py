"""TensorBoard: event files under `tb/`."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

from src.core.files import writing
from src.core.tracking.base import FINAL_TAGS, TrackedRun, Tracker, TrackingConfig


@dataclass(frozen=True, kw_only=True)
class TensorBoardConfig(TrackingConfig):
    """`logging=tensorboard`."""

    tracker: str = "tensorboard"

    def open(self, run: TrackedRun) -> Tracker:
        """Points of earlier processes up to `keep_until` are kept; later ones, which are made again, are removed."""
        folder = run.folder.tensorboard_dir(run.name)
        earlier = sorted(folder.glob("events.out.tfevents.*"))
        kept = _points(earlier, run.keep_until) if run.keep_until else []
        events = _Events(folder, run.hparams)
        for event in kept:
            events.add_event(event)
        if run.config:
            events.add_text("configuration", indent(run.config, "    "))  # a block of code in Markdown
        events.flush()
        for file in earlier:
            file.unlink()
        return events


class _Events:
    """A `SummaryWriter` that says where it cannot write."""

    def __init__(self, folder: Path, hparams: Mapping[str, Any]) -> None:
        # Imported here: it costs two seconds that the other commands need not pay.
        from torch.utils.tensorboard.writer import SummaryWriter

        _leave_errors_to_the_main_thread()
        self._folder, self._hparams = folder, hparams
        with writing(folder):
            self._writer = SummaryWriter(str(folder))

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        with writing(self._folder):
            self._writer.add_scalar(tag, scalar_value, global_step)

    def add_event(self, event: Any) -> None:
        with writing(self._folder):
            self._writer.file_writer.add_event(event, event.step, event.wall_time)

    def add_text(self, tag: str, text: str) -> None:
        with writing(self._folder):
            self._writer.add_text(tag, text)

    def flush(self) -> None:
        with writing(self._folder):
            self._writer.flush()

    def conclude(self, metrics: Mapping[str, float], step: int) -> None:
        """Not by `add_hparams`, which opens a second file."""
        from torch.utils.tensorboard.summary import hparams as summaries

        for tag, value in metrics.items():
            self.add_scalar(tag, value, step)
        plain = {
            key: value if isinstance(value, bool | int | float) else str(value) for key, value in self._hparams.items()
        }
        with writing(self._folder):
            for summary in summaries(plain, dict(metrics)):
                self._writer.file_writer.add_summary(summary)

    def add_files(self, files: Sequence[Path]) -> None:
        """Those that TensorBoard can show: pages in Markdown."""
        for file in files:
            if file.suffix == ".md":
                self.add_text(file.name, file.read_text(encoding="utf-8"))

    def close(self, *, failed: bool) -> None:
        with writing(self._folder):
            self._writer.close()


def _leave_errors_to_the_main_thread() -> None:
    """TensorBoard's thread gives its error to the next call of the writer, and shows a stack trace of it besides."""
    show = threading.excepthook

    def show_others(arguments: Any) -> None:
        if type(arguments.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            show(arguments)

    if show is threading.__excepthook__:
        threading.excepthook = show_others


def _points(files: list[Path], last_step: int) -> list[Any]:
    """The events of scalars up to a step, in the order they were written; of the same tag and step the latest.

    A record that a killed process has not written whole ends its file.
    """
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    points = {}
    for file in files:
        for event in LegacyEventFileLoader(str(file)).Load():
            tags = tuple(value.tag for value in event.summary.value if value.HasField("simple_value"))
            if tags and event.step <= last_step and not tags[0].startswith(FINAL_TAGS):
                points[tags, event.step] = event
    return list(points.values())
