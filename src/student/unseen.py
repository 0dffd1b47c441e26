"""The best items of rows of a data set that are not in their histories: how students and the recommender teach."""

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import Rows
from src.core.errors import UserError
from src.student.evaluator import history_mask
from src.student.models import Student


@torch.no_grad()
def rank_unseen(model: Student, rows: Rows, index: np.ndarray, *, count: int, key: str) -> tuple[Tensor, Tensor]:
    """The `count` best items of some rows, best first, none of their histories.

    Args:
        model: in evaluation mode, on the device where it is to run.
        index: row numbers, int64 [B].
        key: what `count` is called in the configuration.

    Returns:
        Items int64 [B, count], and minus their log-probabilities among all items, float32 [B, count], ascending.

    Raises:
        UserError: a row's history leaves fewer than `count` items.
    """
    device = model.item_embeddings.weight.device
    history, length, _ = rows.windows(model.config.max_seq_len, model.config.num_items, index)
    scores = model(torch.from_numpy(history).to(device), torch.from_numpy(length).to(device))
    return best_unseen(scores, rows.select(index), count=count, key=key)


def best_unseen(scores: Tensor, rows: Rows, *, count: int, key: str) -> tuple[Tensor, Tensor]:
    """As `rank_unseen`, from the rows' scores of all items, float [B, num_items]."""
    num_items = scores.shape[1]
    seen = history_mask(rows, num_items).to(scores.device)
    free = num_items - int(seen.sum(1).max())
    if free < count:
        raise UserError(f"{key}={count}: the longest history leaves {free} items; use at most {free}")
    best = scores.masked_fill(seen, float("-inf")).topk(count)
    return best.indices, scores.logsumexp(1, keepdim=True) - best.values
