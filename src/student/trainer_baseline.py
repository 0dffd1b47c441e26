"""Training without a teacher."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from src.core.data_utils import SequenceDataset
from src.core.git_info import git_commit
from src.core.logging import TensorBoardWriter
from src.core.metrics import MetricsConfig
from src.core.seed import set_seed
from src.student.checkpoint import CheckpointInfo, save_checkpoint
from src.student.config import StudentConfig
from src.student.datamodule import Batch
from src.student.models import Student, build_model
from src.student.objectives import BaseLoss
from src.student.resume import Resume
from src.student.training import FitResult, train_student


def train_baseline(
    student: StudentConfig,
    dataset: SequenceDataset,
    metrics: MetricsConfig,
    folder: Path,
    seed: int,
    device: torch.device,
    logger: logging.Logger,
    tb_writer: TensorBoardWriter,
    resume: Resume | None = None,
) -> FitResult:
    """Train a fresh student, or go on with an interrupted training; its best epoch is in `folder` afterwards."""
    set_seed(seed)
    model = build_model(student.model_config(dataset.num_items))
    base_loss = BaseLoss(student.loss_settings(), dataset, student.max_seq_len, seed, device)
    commit = git_commit()

    def objective(model: Student, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        scored = base_loss(model, batch)
        return scored.loss, scored.parts

    def save_best(epoch: int, value: float) -> None:
        info = CheckpointInfo(dataset.name, dataset.fingerprint, seed, commit, epoch, metrics.monitor, value)
        save_checkpoint(folder, model, model.state_dict(), info)

    return train_student(
        model,
        dataset,
        objective,
        save_best,
        metrics,
        student.fit_settings(),
        seed,
        device,
        logger,
        tb_writer,
        resume,
        {"negatives": base_loss},
    )
