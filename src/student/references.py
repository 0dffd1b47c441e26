"""Rankings without training: popularity, a Markov chain, and the chain with something beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TypeAlias

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from src.core.data_utils import Rows, SequenceDataset, sample_rows
from src.core.metrics import MetricsConfig, metric_per_row, rank_counts
from src.student.evaluator import ScoreRows, history_mask

# From a grid on MovieLens-100K (NDCG@10): benchmarks/RESULTS.md says how they were chosen.
_WINDOW, _LAST, _DECAY, _NORMALISATION = 10, 5, 0.7, 0.5
# Tried on validation rows, smaller weights first: of equals the first is taken.
_WEIGHTS, _SIMILARITY_DECAYS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0), (0.5, 0.7, 0.9)
_LAST_SIMILAR, _CHOSEN_ON, _CHUNK = 10, 3000, 512
_MOST_ROWS, _ROWS = 10_000_000, 1 << 20  # training rows whose transitions are counted, and how many at once
# Runs of two or more letters or digits, katakana apart; Chinese characters, which no space divides, one by one.
_WORD = r"[^\W\u3040-\u30ff\u3400-\u9fff]{2,}|[\u30a1-\u30fa\u30fc-\u30ff]{2,}|[\u3400-\u9fff]"

Vectors: TypeAlias = "sparse.csr_matrix | np.ndarray"  # of the items, [num_items, width]


def popularity(dataset: SequenceDataset, rows: Rows) -> ScoreRows:
    """Scores of `rows`: how often each item is a training target."""
    scores = torch.from_numpy(np.bincount(dataset.train.targets, minlength=dataset.num_items)).float()
    return lambda index: scores.expand(len(index), -1)


def markov_chain(dataset: SequenceDataset, rows: Rows) -> ScoreRows:
    """Scores of `rows` by a first-order Markov chain over the training rows (`Transitions`)."""
    transitions = Transitions.of(dataset)
    return lambda index: torch.from_numpy(transitions.scores(rows.select(index))).float()


@dataclass(frozen=True)
class Transitions:
    """A first-order Markov chain over the training rows.

    A transition from an item to a target `gap` steps later counts 1 / gap, up to 10 steps. An item's counts are
    divided by the square root of their sum, and a row's score is the sum over its last 5 items, each 0.7 times the
    one behind it. Of more than 10 million training rows a fixed sample of so many is counted, for in a large catalogue
    most pairs are new and each takes 12 bytes.

    Attributes:
        counts: float64 [num_items, num_items], from item to target.
        strength: float64 [num_items], their sums.
        counted: bool [T], the places whose rows were counted.
    """

    counts: sparse.csr_matrix
    strength: np.ndarray
    counted: np.ndarray

    @classmethod
    def of(cls, dataset: SequenceDataset) -> "Transitions":
        train = dataset.train if len(dataset.train) <= _MOST_ROWS else sample_rows(dataset.train, _MOST_ROWS)
        shape = (dataset.num_items, dataset.num_items)
        counts = sparse.csr_matrix(shape)
        for rows in train.parts(_ROWS):
            row, item, gap = _last_items(rows, _WINDOW)
            counts += sparse.csr_matrix((1.0 / gap, (item, rows.targets[row])), shape=shape)
        counted = np.zeros(len(train.items), dtype=bool)
        counted[train.pos] = True
        return cls(counts, np.asarray(counts.sum(1)).ravel(), counted)

    def scores(self, rows: Rows, *, leave_one_out: bool = False) -> np.ndarray:
        """Scores of all items: float64 [N, num_items].

        Args:
            leave_one_out: these are training rows, and each is scored as if its own transitions had not been counted,
                so that it cannot tell its target.
        """
        row, item, gap = _last_items(rows, _LAST)
        own = np.zeros(len(row))
        if leave_one_out:
            own = _entries(self._own_counts(rows), row, item) * self.counted[rows.pos[row]]
        rest = (self.strength[item] - own).round(9)  # exactly 0 where nothing else was counted
        scale = np.divide(1.0, rest**_NORMALISATION, out=np.zeros(len(rest)), where=rest > 0)
        weight = _DECAY ** (gap - 1.0) * scale
        scores = (self._by_item(weight, row, item, len(rows)) @ self.counts).toarray()
        if leave_one_out:
            counts = (_entries(self.counts, item, rows.targets[row]) - own).round(9)
            scores[np.arange(len(rows)), rows.targets] = np.bincount(row, weight * counts, len(rows))
        return scores

    def _own_counts(self, rows: Rows) -> sparse.csr_matrix:
        """What each row has added to the counts from each item to its target: [N, num_items]."""
        row, item, gap = _last_items(rows, _WINDOW)
        return self._by_item(1.0 / gap, row, item, len(rows))

    def _by_item(self, values: np.ndarray, row: np.ndarray, item: np.ndarray, num_rows: int) -> sparse.csr_matrix:
        return sparse.csr_matrix((values, (row, item)), shape=(num_rows, len(self.strength)))


def title_vectors(dataset: SequenceDataset) -> sparse.csr_matrix | None:
    """TF-IDF of the titles' words: float32 [num_items, num_terms], rows of length 1, or 0 without a word that counts.

    A word counts that two titles have and no more than half of them. None where there is none, as where items are
    called "item <id>" or all the same.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # two seconds that a student need not wait for

    names = zip(dataset.titles, dataset.item_ids, strict=True)
    texts = ["" if title == f"item {item_id}" else title for title, item_id in names]
    try:
        return TfidfVectorizer(
            token_pattern=_WORD, min_df=2, max_df=0.5, sublinear_tf=True, dtype=np.float32
        ).fit_transform(texts)
    except ValueError:  # scikit-learn's word for an empty vocabulary
        return None


def similarity_scores(vectors: Vectors, rows: Rows, decay: float) -> np.ndarray:
    """How like an item is to a row's last 10 items by what is said of them: float32 [N, num_items].

    The sum of the cosines, each `decay` times the one behind it. An item is not compared with itself.

    Args:
        vectors: of length 1 or 0, [num_items, width].
    """
    row, item, gap = _last_items(rows, _LAST_SIMILAR)
    weights = sparse.csr_matrix(((decay ** (gap - 1.0)), (row, item)), shape=(len(rows), vectors.shape[0]))
    weights = weights.astype(np.float32)
    squares = vectors * vectors if isinstance(vectors, np.ndarray) else vectors.multiply(vectors)
    scores = weights @ vectors @ vectors.T
    scores = scores if isinstance(scores, np.ndarray) else scores.toarray()
    return scores - weights.multiply(np.asarray(squares.sum(1)).ravel()).toarray()


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Something besides the Markov chain that scores items.

    Attributes:
        name: for a log; scores: of rows, and a decay of what lies further back, to float32 [N, num_items].
        decays: those to try.
    """

    name: str
    scores: Callable[[Rows, float], np.ndarray]
    decays: tuple[float, ...] = (1.0,)


def similarity_to_history(vectors: Vectors) -> Beside:
    """`similarity_scores`: with the words of the titles what these are worth without a language model, with a
    teacher's embeddings what that says of the items."""
    return Beside(name="similarity", scores=partial(similarity_scores, vectors), decays=_SIMILARITY_DECAYS)


@dataclass(frozen=True)
class Blend:
    """The Markov chain's score + `weight` * another's.

    Attributes:
        value: the metric that decides on the validation rows that `weight` and `decay` were chosen on.
        num_rows: how many those were; num_tried: out of how many pairs.
    """

    transitions: Transitions
    beside: Beside
    weight: float
    decay: float
    value: float
    num_rows: int
    num_tried: int

    @classmethod
    def of(
        cls, dataset: SequenceDataset, metrics: MetricsConfig, beside: Beside, weight: float | None = None
    ) -> "Blend":
        """Count transitions on training rows; choose the decay, and the weight if it is None, on validation rows."""
        transitions, rows = Transitions.of(dataset), sample_rows(dataset.valid, _CHOSEN_ON)
        totals = dict.fromkeys(product(_WEIGHTS if weight is None else (weight,), beside.decays), 0.0)
        for index in np.array_split(np.arange(len(rows)), -(-len(rows) // _CHUNK)):
            part = rows.select(index)
            seen = history_mask(part, dataset.num_items) if metrics.masked else None
            chain, targets = transitions.scores(part).astype(np.float32), torch.from_numpy(part.targets)
            others = {decay: beside.scores(part, decay) for decay in beside.decays}
            for tried, decay in totals:
                scores = torch.from_numpy(chain + tried * others[decay])
                better, equal = rank_counts(scores, targets, seen)
                totals[tried, decay] += metric_per_row(metrics.monitor, better.numpy(), equal.numpy()).sum()
        (best, decay), total = max(totals.items(), key=lambda entry: entry[1])
        return cls(transitions, beside, best, decay, total / len(rows), len(rows), len(totals))

    def scores(self, rows: Rows, *, leave_one_out: bool = False) -> Tensor:
        """Scores of all items: float32 [N, num_items]; arguments as in `Transitions.scores`."""
        chain = self.transitions.scores(rows, leave_one_out=leave_one_out)
        return torch.from_numpy(chain + self.weight * self.beside.scores(rows, self.decay)).float()

    def of_rows(self, rows: Rows) -> ScoreRows:
        return lambda index: self.scores(rows.select(index))

    def description(self, metrics: MetricsConfig) -> str:
        """The settings and how they were chosen, for a log or a page."""
        decay = f", decay {self.decay:g}" if len(self.beside.decays) > 1 else ""
        return (
            f"{self.beside.name} of weight {self.weight:g}{decay}, the best of {self.num_tried} on "
            f"{self.num_rows} validation rows "
            f"({metrics.description} {self.value:.4f})"
        )


def _last_items(rows: Rows, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The last `count` items of each history: row, item, and how many steps before the target, each int64 [M]."""
    back = np.arange(1, count + 1)
    place = rows.pos[:, None] - back  # [N, count]
    inside = place >= rows.start[:, None]
    row, gap = (np.broadcast_to(a, place.shape)[inside] for a in (np.arange(len(rows))[:, None], back))
    return row, rows.items[place[inside]].astype(np.int64), gap


def _entries(matrix: sparse.csr_matrix, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """The entries at the places (row, column): float [M]."""
    return np.asarray(matrix[row, column]).ravel()
