"""What the rest of the program asks of a teacher, and what a teacher asks of the program's settings."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, Protocol

from src.core.datasets.base import DatasetConfig
from src.core.metrics import MetricsConfig
from src.core.paths import PathsConfig
from src.core.tracking.base import ScalarWriter, TrackingConfig
from src.teacher.config import TeacherConfig

Step = Literal["train", "export", "evaluate"]


class GeneralSettings(Protocol):
    """`general`, as far as a teacher reads it."""

    @property
    def seed(self) -> int: ...

    @property
    def overwrite(self) -> bool: ...


class Settings(Protocol):
    """The program's settings, checked and frozen, as far as a teacher reads them: what is passed as `cfg`."""

    @property
    def general(self) -> GeneralSettings: ...

    @property
    def dataset(self) -> DatasetConfig: ...

    @property
    def teacher(self) -> TeacherConfig: ...

    @property
    def metrics(self) -> MetricsConfig: ...

    @property
    def paths(self) -> PathsConfig: ...

    @property
    def logging(self) -> TrackingConfig: ...


class ITeacherExporter(ABC):
    """Something that can write a teacher's files (`src/core/teacher_files.py`)."""

    @abstractmethod
    def export_for_dllm2rec(self, cfg: Settings, logger: logging.Logger) -> None:
        """Write item embeddings, rankings, confidences and the manifest into the teacher's output folder."""


class ITeacherRecommender(ITeacherExporter):
    """A teacher that is trained here, in three steps of which each is recorded: `train`, `export` and `evaluate`.

    Attributes:
        on_save: called whenever the training has saved what it would go on from.
        on_shard: called whenever a shard of the export is written. Both let the time that was spent be recorded though
            the process may be killed.
        base_model, base_model_license: a name of its LM for people, and the licence that the LM's own card gives.
    """

    base_model: str
    base_model_license: str | None
    on_save: Callable[[], None]
    on_shard: Callable[[], None]

    @abstractmethod
    def train(self, cfg: Settings, logger: logging.Logger, tb_writer: ScalarWriter) -> float:
        """Train, save under the run folder, and return the best validation value (higher is better)."""

    @abstractmethod
    def evaluate(self, cfg: Settings, logger: logging.Logger) -> None:
        """Write `metrics/eval_teacher.json` for the test rows."""

    @abstractmethod
    def made_from(self, step: Step, cfg: Settings) -> dict[str, Any]:
        """All that decides what a step makes, flat, as `src/core/artefacts.py` records it; quick to tell.

        What the step reads of an earlier step's files enters by hash, None where they are not there yet.
        """

    @abstractmethod
    def files(self, step: Step) -> dict[str, str]:
        """What a step, run by this object, wrote: SHA-256 by path, relative to the run folder where it is inside."""
