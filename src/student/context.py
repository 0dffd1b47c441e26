"""What every training is given besides its settings and its data."""

import logging
from dataclasses import dataclass

import torch

from src.core.logging import TensorBoardWriter
from src.student.resume import Resume


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Where and how a training runs.

    Attributes:
        resume: where its last state is kept, and gone on from if there is one; None keeps none.
    """

    seed: int
    device: torch.device
    logger: logging.Logger
    writer: TensorBoardWriter
    resume: Resume | None = None
