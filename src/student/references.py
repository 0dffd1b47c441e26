"""Reference models, which every student is compared with: the most popular items, and a Markov chain."""

import numpy as np
import torch
from scipy import sparse

from src.core.data_utils import Rows, SequenceDataset
from src.student.evaluator import ScoreRows

# From a grid on MovieLens-100K (NDCG@10): benchmarks/RESULTS.md says how they were chosen.
_WINDOW, _LAST, _DECAY, _NORMALISATION = 10, 5, 0.7, 0.5


def popularity(dataset: SequenceDataset, rows: Rows) -> ScoreRows:
    """Scores of `rows`: how often each item is a training target."""
    scores = torch.from_numpy(np.bincount(dataset.train.targets, minlength=dataset.num_items)).float()
    return lambda index: scores.expand(len(index), -1)


def markov_chain(dataset: SequenceDataset, rows: Rows) -> ScoreRows:
    """Scores of `rows` by a first-order Markov chain over the training rows.

    A transition from an item to a target `gap` steps later counts 1 / gap, up to 10 steps. An item's counts are
    divided by the square root of their sum, and a row's score is the sum over its last 5 items, each 0.7 times the
    one behind it.
    """
    num_items = dataset.num_items
    row, item, gap = _last_items(dataset.train, _WINDOW)
    targets = dataset.train.targets[row]
    counts = sparse.csr_matrix((1.0 / gap, (item, targets)), shape=(num_items, num_items))
    strength = np.asarray(counts.sum(1)).ravel()
    scale = np.divide(1.0, strength**_NORMALISATION, out=np.zeros(num_items), where=strength > 0)
    transitions = sparse.diags(scale) @ counts
    row, item, gap = _last_items(rows, _LAST)
    weights = sparse.csr_matrix((_DECAY ** (gap - 1.0), (row, item)), shape=(len(rows), num_items))
    return lambda index: torch.from_numpy((weights[index] @ transitions).toarray()).float()


def _last_items(rows: Rows, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The last `count` items of each history: row, item, and how many steps before the target, each int64 [M]."""
    back = np.arange(1, count + 1)
    place = rows.pos[:, None] - back  # [N, count]
    inside = place >= rows.start[:, None]
    row, gap = (np.broadcast_to(a, place.shape)[inside] for a in (np.arange(len(rows))[:, None], back))
    return row, rows.items[place[inside]].astype(np.int64), gap
