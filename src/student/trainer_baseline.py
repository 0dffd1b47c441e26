"""Training without a teacher: cross-entropy over all items."""

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.core.data_utils import SequenceDataset
from src.core.git_info import git_commit
from src.core.logging import TensorBoardWriter
from src.core.metrics import MetricsConfig
from src.core.seed import set_seed
from src.student.checkpoint import CheckpointInfo, save_checkpoint
from src.student.config import StudentConfig
from src.student.datamodule import Batch
from src.student.models import build_model
from src.student.training import FitResult, train_student


def cross_entropy(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over the batch of -log softmax(scores)[target]."""
    loss = F.cross_entropy(model(batch.history, batch.length), batch.target)
    return loss, {"loss_ce": loss.detach()}


def train_baseline(
    student: StudentConfig,
    dataset: SequenceDataset,
    metrics: MetricsConfig,
    folder: Path,
    seed: int,
    device: torch.device,
    logger: logging.Logger,
    tb_writer: TensorBoardWriter,
) -> FitResult:
    """Train a fresh student; its best epoch is in `folder` afterwards."""
    set_seed(seed)
    model = build_model(student.model_config(dataset.num_items))
    commit = git_commit()

    def save_best(epoch: int, value: float) -> None:
        info = CheckpointInfo(dataset.name, dataset.fingerprint, seed, commit, epoch, metrics.monitor, value)
        save_checkpoint(folder, model, model.state_dict(), info)

    return train_student(
        model,
        dataset,
        cross_entropy,
        save_best,
        metrics,
        student.fit_settings(),
        seed,
        device,
        logger,
        tb_writer,
    )
