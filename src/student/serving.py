"""The best items of a trained student: for one history of names, and for rows of a data set."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import Rows, SequenceDataset
from src.core.errors import UserError
from src.student.checkpoint import load_checkpoint
from src.student.evaluator import history_mask
from src.student.models import Student


@dataclass(frozen=True)
class Recommendation:
    """One item, best first in a list: its raw id, its title, its score."""

    item_id: str
    title: str
    score: float


def recommend(
    checkpoint: Path,
    dataset: SequenceDataset,
    history: list[str],
    *,
    top_k: int,
    show_history: bool = False,
    device: torch.device | None = None,
) -> list[Recommendation]:
    """The `top_k` best items after a history.

    Args:
        checkpoint: folder of a baseline or distilled student; no teacher file is needed.
        dataset: the one it was trained on: titles and raw ids.
        history: raw item ids or exact titles, oldest first; the model reads its last `max_seq_len`.
        show_history: whether items of the history may be recommended again.

    Raises:
        UserError: another dataset's checkpoint, an empty history, an unknown item, `top_k` above what can be ranked.
    """
    model, info = load_checkpoint(checkpoint)
    if info.dataset_fingerprint != dataset.fingerprint:
        raise UserError(
            f"{checkpoint}: trained on {info.dataset} ({info.dataset_fingerprint[:12]}), the dataset given is "
            f"{dataset.name} ({dataset.fingerprint[:12]}); give the dataset settings of its training"
        )
    items = _items(history, dataset)
    excluded = set() if show_history else set(items)
    if not 1 <= top_k <= dataset.num_items - len(excluded):
        raise UserError(
            f"recommend.top_k={top_k}: must be from 1 to {dataset.num_items - len(excluded)}, the items of "
            f"{dataset.name}" + ("" if show_history else " that are not in the history")
        )
    device = device or torch.device("cpu")
    window = items[-model.config.max_seq_len :]
    padded = window + [dataset.pad_id] * (model.config.max_seq_len - len(window))
    with torch.no_grad():
        model = model.eval().to(device)
        scores = model(torch.tensor([padded], device=device), torch.tensor([len(window)], device=device))[0].cpu()
    scores[list(excluded)] = float("-inf")
    best = scores.topk(top_k)
    return [
        Recommendation(dataset.item_ids[item], dataset.titles[item], score)
        for item, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _items(history: list[str], dataset: SequenceDataset) -> list[int]:
    """Item numbers of raw ids or titles; a raw id goes before a title of the same spelling."""
    if not history:
        raise UserError("recommend.history=[]: must name at least one item, by raw id or exact title, oldest first")
    known = {title: item for item, title in enumerate(dataset.titles)}
    known |= {item_id: item for item, item_id in enumerate(dataset.item_ids)}
    for name in history:
        if name not in known:
            close = get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
            raise UserError(
                f"recommend.history: {name!r} is neither a raw item id nor a title of {dataset.name} "
                f"({dataset.num_items} items){hint}"
            )
    return [known[name] for name in history]


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
