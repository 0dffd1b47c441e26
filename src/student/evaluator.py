"""Full ranking, the same for every model that scores items: where the targets stand, and which items are best."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import Rows, SequenceDataset
from src.core.errors import UserError
from src.core.files import write_atomic, write_json
from src.core.metrics import metrics_from_ranks, rank_counts
from src.student.models import Student

_MOST_ROWS, _MOST_SCORES = 512, 1 << 25  # at a time: 128 MiB of scores

ScoreRows = Callable[[np.ndarray], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """Metrics over rows, with the history's items left in (`metrics`) and removed (`metrics_masked`).

    Attributes:
        ranks: per row int64 [N]: user, target, better, equal, better_masked, equal_masked; from `lists` on also what
            its lists are like.
        lists: the best items of each row, int64 [N, k], -1 where there are no more, by the part they belong to
            (`metrics`, `metrics_masked`); empty unless asked for.
        beyond: metrics of the lists, by part; see `lists`.
    """

    metrics: dict[str, float]
    metrics_masked: dict[str, float]
    ranks: dict[str, np.ndarray]
    lists: dict[str, np.ndarray] = field(default_factory=dict)
    beyond: dict[str, dict[str, float]] = field(default_factory=dict)

    def by(self, masked: bool) -> dict[str, float]:
        """The metrics with the history's items removed, or left in."""
        return self.metrics_masked if masked else self.metrics


def evaluate_model(
    model: Student, rows: Rows, dataset: SequenceDataset, ks: list[int], device: torch.device, *, top_k: int = 0
) -> Evaluation:
    """Evaluate a student: dropout off, every item ranked. The model's mode is restored; arguments as below."""
    was_training = model.training
    model.eval().to(device)

    try:
        return evaluate_scores(partial(scores_of, model, rows), rows, dataset.num_items, ks, top_k=top_k)
    finally:
        model.train(was_training)


def scores_of(model: Student, rows: Rows, index: np.ndarray | None = None) -> Tensor:
    """The model's scores of all items, in its own mode and on its device: float32 [B, num_items].

    Args:
        index: row numbers, int64 [B]; None: all rows.
    """
    device = next(model.parameters()).device
    history, length, _ = rows.windows(model.config.max_seq_len, model.config.num_items, index)
    return model(torch.from_numpy(history).to(device), torch.from_numpy(length).to(device))


@torch.no_grad()
def evaluate_scores(score: ScoreRows, rows: Rows, num_items: int, ks: list[int], *, top_k: int = 0) -> Evaluation:
    """Evaluate any scorer.

    Args:
        score: maps row numbers int64 [B] to scores float [B, num_items].
        rows: rows with their targets.
        top_k: how many of each row's best items `Evaluation.lists` holds; 0: it stays empty.
    """
    names = ("better", "equal", "better_masked", "equal_masked")
    counts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    lists: dict[str, list[np.ndarray]] = {"metrics": [], "metrics_masked": []} if top_k else {}
    for index in _chunks(len(rows), num_items):
        scores = score(index)
        chunk = rows.select(index)
        targets = torch.from_numpy(chunk.targets).to(scores.device)
        better, equal = rank_counts(scores, targets)
        places = _places(chunk)
        in_history = _counts_in_history(scores, targets, places)
        for name, value in zip(names, (better, equal, better - in_history[0], equal - in_history[1]), strict=True):
            counts[name].append(value.cpu().numpy())
        if top_k:
            lists["metrics"].append(_best(scores, top_k))
            seen = tuple(place.to(scores.device) for place in places)
            lists["metrics_masked"].append(_best(scores.index_put(seen, scores.new_tensor(float("-inf"))), top_k))
    ranks = {name: np.concatenate(chunks) if chunks else np.zeros(0, int) for name, chunks in counts.items()}
    return Evaluation(
        metrics_from_ranks(ranks["better"], ranks["equal"], ks),
        metrics_from_ranks(ranks["better_masked"], ranks["equal_masked"], ks),
        {"user": rows.user.astype(np.int64), "target": rows.targets, **ranks},
        {part: np.concatenate(chunks) for part, chunks in lists.items()},
    )


def _best(scores: Tensor, count: int) -> np.ndarray:
    """The best items, best first, -1 for those of score -inf: int64 [B, min(count, num_items)]."""
    best = scores.topk(min(count, scores.shape[1]))
    return best.indices.masked_fill(best.values == float("-inf"), -1).cpu().numpy()


def _chunks(num_rows: int, num_items: int) -> list[np.ndarray]:
    """Row numbers of each chunk: so many users that their scores of all items need little memory, one at least.

    Items are not cut: a user's scores of ten million items are 40 MB, and their ranks need them all.
    """
    size = min(max(_MOST_SCORES // num_items, 1), _MOST_ROWS)
    return [np.arange(begin, min(begin + size, num_rows)) for begin in range(0, num_rows, size)]


def _counts_in_history(scores: Tensor, targets: Tensor, places: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Of `rank_counts`, how many of each are other items of the row's history: looked up, not masked out of all."""
    key = (places[0] * scores.shape[1] + places[1]).unique().to(scores.device)  # an item counts once
    row, item = key // scores.shape[1], key % scores.shape[1]
    found, own = scores[row, item], scores.gather(1, targets[:, None])[row, 0]
    other = item != targets[row]
    better, equal = (other & (found > own)).long(), (other & (found == own)).long()
    zero = torch.zeros_like(targets)
    return zero.index_add(0, row, better), zero.index_add(0, row, equal)


def history_mask(rows: Rows, num_items: int) -> Tensor:
    """Bool [N, num_items]: which items stand anywhere in each row's whole history."""
    mask = torch.zeros(len(rows), num_items, dtype=torch.bool)
    mask[_places(rows)] = True
    return mask


def _places(rows: Rows) -> tuple[Tensor, Tensor]:
    """Row and item, int64 [T] each, of all that stands in the rows' whole histories."""
    lengths = rows.pos - rows.start
    row = np.repeat(np.arange(len(rows)), lengths)
    offset = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    items = rows.items[np.repeat(rows.start, lengths) + offset]
    return torch.from_numpy(row), torch.from_numpy(items).long()


def write_evaluation(path: Path, ranks_path: Path, evaluation: Evaluation, about: dict[str, object]) -> None:
    """Write the ranks (npz) and then the metrics (JSON), each whole or not at all."""

    def write_npz(temporary: Path) -> None:
        with temporary.open("wb") as file:  # a file object: numpy would append .npz to a name
            np.savez_compressed(file, **evaluation.ranks)

    write_atomic(ranks_path, write_npz)
    result = {**about, "metrics": evaluation.metrics, "metrics_masked": evaluation.metrics_masked}
    if evaluation.beyond:
        result["beyond_accuracy"] = evaluation.beyond
    write_json(path, result)


# --- the best items that are not in the history: how students and the recommender teach -----------------------


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
    return best_unseen(scores_of(model, rows, index), rows.select(index), count=count, key=key)


def best_unseen(scores: Tensor, rows: Rows, *, count: int, key: str) -> tuple[Tensor, Tensor]:
    """As `rank_unseen`, from the rows' scores of all items, float [B, num_items]."""
    num_items = scores.shape[1]
    seen = history_mask(rows, num_items).to(scores.device)
    free = num_items - int(seen.sum(1).max())
    if free < count:
        raise UserError(f"{key}={count}: the longest history leaves {free} items; use at most {free}")
    best = scores.masked_fill(seen, float("-inf")).topk(count)
    return best.indices, scores.logsumexp(1, keepdim=True) - best.values
