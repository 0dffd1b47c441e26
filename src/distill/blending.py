"""Rankings of training rows by the log, and by what a teacher says besides."""

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import Rows, SequenceDataset
from src.core.metrics import MetricsConfig
from src.distill.data_bridge import TeacherOutputs
from src.student.evaluator import best_unseen, scores_of
from src.student.models import Student
from src.student.references import Beside, Blend

_CHUNK = 512
_Ranks = Callable[[np.ndarray], tuple[Tensor, Tensor]]  # row numbers to best items and distances, as `rank_unseen`


def blended_ranking(
    dataset: SequenceDataset,
    beside: Beside,
    *,
    weight: float | None,
    metrics: MetricsConfig,
    top_k: int,
    per_sequence: bool,
    logger: logging.Logger,
) -> TeacherOutputs:
    """The best items of each training row by the Markov chain and something beside it, none of the row's history.

    The chain counts training rows, but for each row all others only (leave-one-out), so that it does not see the
    target. Distances are those of `ranked`, with the scores for logits.

    Args:
        beside: the similarity of the teacher's item vectors, or recommenders (`recommended`).
        weight: of it beside the chain's scores; None: chosen on validation rows, by `metrics`.

    Raises:
        UserError: a history leaves fewer than `top_k` items.
    """
    model, rows = Blend.of(dataset, metrics, beside, weight), dataset.train
    logger.info("rankings of the training rows: Markov chain, leave-one-out, and %s", model.description(metrics))

    def rank(index: np.ndarray) -> tuple[Tensor, Tensor]:
        part = rows.select(index)
        return best_unseen(model.scores(part, leave_one_out=True), part, count=top_k, key="distill.top_k")

    return ranked(rank, len(rows), per_sequence)


def recommended(models: Sequence[Student]) -> Beside:
    """Log-probabilities of all items, by several recommenders the logarithm of their mean probabilities.

    They are in evaluation mode, on the device where they are to run. A student that is taught by several learns what
    they agree on: Hinton et al., arXiv 1503.02531.
    """

    @torch.no_grad()
    def scores(rows: Rows, decay: float) -> np.ndarray:
        each = torch.stack([scores_of(model, rows).log_softmax(1) for model in models])
        mean: np.ndarray = (each.logsumexp(0) - math.log(len(models))).cpu().numpy()
        return mean

    return Beside(name="recommender" if len(models) == 1 else f"{len(models)} recommenders", scores=scores)


def ranked(rank: _Ranks, num_rows: int, per_sequence: bool) -> TeacherOutputs:
    """The best items of all training rows, and their distances.

    An item's distance is minus its log-probability; min-max over the row's items as in an export, or with
    `per_sequence` the best item's own.
    """
    parts = [rank(index) for index in np.array_split(np.arange(num_rows), -(-num_rows // _CHUNK))]
    items, distance = (torch.cat(part).cpu() for part in zip(*parts, strict=True))  # [num_rows, top_k]
    return TeacherOutputs(ranking=items, confidence=distance[:, :1] if per_sequence else _min_max(distance))


def _min_max(distance: Tensor) -> Tensor:
    low, high = distance[:, :1], distance[:, -1:]
    return (distance - low) / (high - low).clamp(min=1e-12)
