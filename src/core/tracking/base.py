"""What a tracker is told: single numbers while a training runs, and at the end what it came to."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from src.core.errors import UserError
from src.core.logging import LoggingConfig
from src.core.paths import RunFolder

# Begin the tags of what is known once a training is over: a resumed training tells it again.
TEST_TAG, BEST_TAG = "test/", "best/"
FINAL_TAGS = (TEST_TAG, BEST_TAG)


class ScalarWriter(Protocol):
    """The part of a tracker that training loops use."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def flush(self) -> None:
        """What was told so far outlives the process."""
        ...


class Tracker(ScalarWriter, Protocol):
    """One run of a tracker."""

    def conclude(self, metrics: Mapping[str, float], step: int) -> None:
        """The final metrics, by tags of `FINAL_TAGS`, shown beside the settings that led to them."""
        ...

    def add_files(self, files: Sequence[Path]) -> None:
        """What came out that people read: model cards, reports."""
        ...

    def close(self, *, failed: bool) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What is tracked as one run.

    Attributes:
        folder: the run folder; name: of the curves in it, such as `baseline` or `teacher/recommender`.
        config: the whole resolved configuration as YAML; hparams: what decides the result, by dotted key.
        keep_until: the step after which an interrupted training goes on, in the tracker's same run. None or 0: it
            starts, and what an earlier one has told counts no more.
    """

    folder: RunFolder
    name: str
    config: str = ""
    hparams: Mapping[str, Any] = field(default_factory=dict)
    keep_until: int | None = None

    @property
    def group(self) -> str:
        """The run folder, told from that of a sweep's other jobs."""
        return "/".join(self.folder.root.parts[-2:])

    @property
    def label(self) -> str:
        return f"{self.group}/{self.name}"


class Untracked:
    """A tracker that keeps nothing."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        pass

    def flush(self) -> None:
        pass

    def conclude(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def add_files(self, files: Sequence[Path]) -> None:
        pass

    def close(self, *, failed: bool) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class TrackingConfig(LoggingConfig):
    """`conf/logging`: what is shown and kept while a stage runs; this one, `logging=none`, tracks nothing.

    Attributes:
        tracker: tensorboard, csv, wandb, mlflow or none, best chosen by `logging=...`.
    """

    tracker: str = "none"

    def require(self) -> None:
        """Raises a UserError where the tracker cannot be used; asked before anything is computed."""

    def open(self, run: TrackedRun) -> Tracker:
        """The tracker's run, begun or gone on with."""
        return Untracked()


@contextmanager
def tracking(settings: TrackingConfig, run: TrackedRun) -> Iterator[Tracker]:
    """The tracker's run while the block lasts; a block that fails is a run that failed."""
    tracker = settings.open(run)
    try:
        yield tracker
    except BaseException:
        with suppress(UserError):  # of a full disk: what has ended the block says more
            tracker.close(failed=True)
        raise
    tracker.close(failed=False)
