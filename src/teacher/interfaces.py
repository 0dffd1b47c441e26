"""What the rest of the program asks of a teacher."""

import logging
from abc import ABC, abstractmethod

from omegaconf import DictConfig

from src.core.logging import TensorBoardWriter


class ITeacherExporter(ABC):
    """Something that can write a teacher's files (`src/core/teacher_files.py`)."""

    @abstractmethod
    def export_for_dllm2rec(self, cfg: DictConfig, logger: logging.Logger) -> None:
        """Write item embeddings, rankings, confidences and the manifest into the teacher's output folder."""


class ITeacherRecommender(ITeacherExporter):
    """A teacher that is trained here."""

    @abstractmethod
    def train(self, cfg: DictConfig, logger: logging.Logger, tb_writer: TensorBoardWriter) -> float:
        """Train, save under the run folder, and return the final validation value (higher is better)."""

    @abstractmethod
    def evaluate(self, cfg: DictConfig, logger: logging.Logger) -> None:
        """Write `metrics/eval_teacher.json` for the test rows."""
