"""Points as a CSV file: a tracker of its own, and the journal of those whose points cannot be taken back."""

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.core.files import write_json, write_text, writing
from src.core.tracking.base import FINAL_TAGS, TrackedRun, Tracker, TrackingConfig

POINTS_FILE, CONFIG_FILE, SUMMARY_FILE = "points.csv", "config.yaml", "summary.json"
_COLUMNS = ["step", "tag", "value", "time"]


@dataclass(frozen=True, kw_only=True)
class CsvConfig(TrackingConfig):
    """`logging=csv`."""

    tracker: str = "csv"

    def open(self, run: TrackedRun) -> Tracker:
        return _CsvRun(run)


class Points:
    """A file of points, one line each, of which every line is written at once.

    Args:
        keep: which points of an earlier process stay, by tag and step.
    """

    def __init__(self, file: Path, keep: Callable[[str, int], bool]) -> None:
        self._file = file
        kept = {(row[1], int(row[0])): row for row in _rows(file) if keep(row[1], int(row[0]))}
        self.known = set(kept)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *kept.values()])
        write_text(file, text.getvalue())
        with writing(file):
            self._stream = file.open("a", encoding="utf-8", newline="", buffering=1)

    def add(self, tag: str, value: float, step: int) -> None:
        self.known.add((tag, step))
        with writing(self._file):
            csv.writer(self._stream, lineterminator="\n").writerow(
                [step, tag, repr(float(value)), f"{time.time():.3f}"]
            )

    def close(self) -> None:
        with writing(self._file):
            self._stream.close()


def _rows(file: Path) -> list[list[str]]:
    """Lines of an earlier process; one that it has not written whole is left out."""
    if not file.is_file():
        return []
    whole, _, _ = file.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    return [row for row in list(csv.reader(io.StringIO(whole)))[1:] if len(row) == len(_COLUMNS) and row[0].isdigit()]


class _CsvRun:
    def __init__(self, run: TrackedRun) -> None:
        self._folder, self._hparams = run.folder.tracking_dir("csv", run.name), dict(run.hparams)
        last = run.keep_until or 0
        self._points = Points(
            self._folder / POINTS_FILE, lambda tag, step: step <= last and not tag.startswith(FINAL_TAGS)
        )
        if run.config:
            write_text(self._folder / CONFIG_FILE, run.config)

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self._points.add(tag, scalar_value, global_step)

    def flush(self) -> None:
        pass

    def conclude(self, metrics: Mapping[str, float], step: int) -> None:
        for tag, value in metrics.items():
            self._points.add(tag, value, step)
        write_json(self._folder / SUMMARY_FILE, {"hparams": self._hparams, "step": step, "metrics": dict(metrics)})

    def add_files(self, files: Sequence[Path]) -> None:
        """They lie in the run folder already."""

    def close(self, *, failed: bool) -> None:
        self._points.close()
