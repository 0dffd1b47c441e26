"""The frozen recommender that iLoRA reads: item embeddings, user representations, candidates."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import Rows, SequenceDataset
from src.core.errors import UserError
from src.core.logging import LOGGER_NAME
from src.core.metrics import MetricsConfig
from src.student.checkpoint import load_checkpoint
from src.student.config import SASRecConfig, StudentConfig
from src.student.context import RunContext
from src.student.evaluator import rank_unseen
from src.student.models import Student
from src.student.trainer_baseline import train_baseline
from src.student.training import require_enough_data
from src.teacher.adapter.upstream_recommender import read_pickled_sasrec
from src.teacher.config import TeacherConfig


class FrozenRecommender:
    """A trained student, used for inference only."""

    def __init__(self, model: Student, dataset: SequenceDataset, device: torch.device) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.dataset = dataset
        self.device = device

    @property
    def item_table(self) -> Tensor:
        """Item embeddings float32 [num_items, emb_size]."""
        return self.model.item_embeddings.weight[:-1].detach()

    def _windows(self, rows: Rows, index: np.ndarray) -> tuple[Tensor, Tensor]:
        history, length, _ = rows.windows(self.model.config.max_seq_len, self.dataset.pad_id, index)
        return torch.from_numpy(history).to(self.device), torch.from_numpy(length).to(self.device)

    @torch.no_grad()
    def users(self, rows: Rows, index: np.ndarray) -> Tensor:
        """User representations float32 [B, hidden_size] of some rows."""
        return self.model.encode(*self._windows(rows, index))

    def rank(self, rows: Rows, index: np.ndarray, count: int) -> tuple[Tensor, Tensor]:
        """The `count` best items of each row, best first, none of its history.

        Returns:
            Items int64 [B, count], and minus their log-probabilities among all items, float32 [B, count], ascending.

        Raises:
            UserError: a row's history leaves fewer than `count` items.
        """
        return rank_unseen(self.model, rows, index, count=count, key="teacher.num_candidates")

    def retrieve(self, rows: Rows, index: np.ndarray, count: int) -> np.ndarray:
        """The items of `rank` alone: int64 [B, count]."""
        return self.rank(rows, index, count)[0].cpu().numpy()


def load_recommender(path: Path, dataset: SequenceDataset, device: torch.device) -> FrozenRecommender:
    """Read a student checkpoint's folder, or upstream's pickled `.pt`, as frozen recommender.

    Raises:
        UserError: it was trained on another dataset, or saw another split of it.
    """
    return _upstreams(path, dataset, device) if path.is_file() else _ours(path, dataset, device)


def _upstreams(path: Path, dataset: SequenceDataset, device: torch.device) -> FrozenRecommender:
    """Upstream's file names no dataset: the number of items has to do, and the name of the one that we number alike."""
    model = read_pickled_sasrec(path)
    if model.config.num_items != dataset.num_items:
        raise UserError(
            f"{path}: a recommender of {model.config.num_items} items, dataset {dataset.name} has {dataset.num_items}; "
            "upstream's lastfm.pt goes with dataset=lastfm"
        )
    if dataset.name != "lastfm":
        logging.getLogger(LOGGER_NAME).warning(
            "%s: numbers its items as upstream's files do; whether dataset %s does so cannot be verified",
            path,
            dataset.name,
        )
    return FrozenRecommender(model, dataset, device)


def _ours(folder: Path, dataset: SequenceDataset, device: torch.device) -> FrozenRecommender:
    model, info = load_checkpoint(folder)
    if info.dataset_fingerprint != dataset.fingerprint:
        raise UserError(
            f"{folder}: a recommender of dataset {info.dataset} ({info.dataset_fingerprint[:12]}), this run uses "
            f"{dataset.name} ({dataset.fingerprint[:12]}); give the matching one or leave teacher.rec_model_path null"
        )
    return FrozenRecommender(model, dataset, device)


def recommender_config(config: TeacherConfig, dataset: SequenceDataset) -> SASRecConfig:
    """How the recommender is trained: as `teacher.recommender` says, on windows of `dataset.max_seq_len` items."""
    return replace(config.recommender, max_seq_len=dataset.max_seq_len)


def require_recommender_data(config: TeacherConfig, dataset: SequenceDataset) -> None:
    """Raises a UserError where the recommender that is to be trained could not be."""
    with _own_keys():
        require_enough_data(recommender_config(config, dataset), dataset)


def train_recommender(
    config: StudentConfig, dataset: SequenceDataset, metrics: MetricsConfig, *, folder: Path, context: RunContext
) -> None:
    """Train a recommender on the training part and keep its best epoch in `folder`."""
    context.logger.info("training the frozen recommender (none given by teacher.rec_model_path)")
    with _own_keys():
        train_baseline(config, dataset, metrics=metrics, folder=folder, context=context)


@contextmanager
def _own_keys() -> Iterator[None]:
    """It is trained as a student is; errors name its own keys."""
    try:
        yield
    except UserError as error:
        text = re.sub(r" \(distill\.\w+ when distilling\)", "", str(error))
        raise UserError(re.sub(r"\bstudent\.", "teacher.recommender.", text)) from error
