"""What is recommended, whoever is right: metrics of the lists themselves, beyond accuracy.

A list is a row's k best items. Names and formulas are those of RecBole (coverage, Gini index, average popularity) and
RecTools (novelty as mean inverse user frequency, intra-list diversity); tests compare with numbers of theirs.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse

from src.core.data_utils import SequenceDataset
from src.core.metrics import MetricsConfig
from src.student.evaluator import Evaluation, evaluate_model
from src.student.models import Student
from src.student.references import Vectors, title_vectors


@dataclass(frozen=True, kw_only=True)
class ListMetrics:
    """What is known of the items of a data set.

    Attributes:
        k: length of a list.
        counts: how often each is a training target, int64 [num_items].
        users: how many users it is a training target of, int64 [num_items]; num_users: those with training rows.
        vectors: of the titles' words, of length 1 or 0, [num_items, width]; None where titles say nothing.
    """

    k: int
    counts: np.ndarray
    users: np.ndarray
    num_users: int
    vectors: "Vectors | None"

    @classmethod
    def of(cls, dataset: SequenceDataset, k: int) -> "ListMetrics":
        targets, users = dataset.train.targets, dataset.train.user.astype(np.int64)
        pairs = np.unique(users * dataset.num_items + targets)  # each user and item once
        return cls(
            k=min(k, dataset.num_items),
            counts=np.bincount(targets, minlength=dataset.num_items),
            users=np.bincount(pairs % dataset.num_items, minlength=dataset.num_items),
            num_users=len(np.unique(users)),
            vectors=title_vectors(dataset),
        )

    def add_to(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation with the metrics of its lists, and per row their mean popularity (`popularity[_masked]`)."""
        columns = {"metrics": "popularity", "metrics_masked": "popularity_masked"}
        lists = {part: lists[:, : self.k] for part, lists in evaluation.lists.items()}
        rows = {columns[part]: self.popularity(of_part) for part, of_part in lists.items()}
        beyond = {part: self.of_lists(of_part) for part, of_part in lists.items()}
        return replace(evaluation, ranks=evaluation.ranks | rows, beyond=beyond)

    def of_lists(self, lists: np.ndarray) -> dict[str, float]:
        """The metrics of all rows' lists together, by name.

        Args:
            lists: items int64 [N, k], best first; -1 at the end of a list that is shorter. Empty ones do not count.

        Returns:
            `item_coverage@k`: items in some list, of all items. `gini_index@k`: 0 if all items are recommended as
            often, near 1 if few get everything. `average_popularity@k`: mean over lists of the items' mean count.
            `novelty@k`: mean over lists of the items' mean -log2(users / num_users), one user for an item that nobody
            took. `intra_list_diversity@k`: mean over lists of 1 - the titles' cosine, over all pairs; only where there
            are titles.
        """
        lists = lists[lists[:, 0] >= 0]
        if not len(lists):  # every history holds every item
            return {}
        novelty = -np.log2(np.maximum(self.users, 1) / self.num_users)
        result = {
            f"item_coverage@{self.k}": len(np.unique(lists[lists >= 0])) / len(self.counts),
            f"gini_index@{self.k}": gini_index(np.bincount(lists[lists >= 0], minlength=len(self.counts))),
            f"average_popularity@{self.k}": float(self.popularity(lists).mean()),
            f"novelty@{self.k}": float(_mean_of_items(novelty, lists).mean()),
        }
        if self.vectors is not None:
            result[f"intra_list_diversity@{self.k}"] = float(self._diversity(lists).mean())
        return result

    def popularity(self, lists: np.ndarray) -> np.ndarray:
        """Mean count of the items of each list, float [N]; 0 for an empty one."""
        return _mean_of_items(self.counts, lists)

    def _diversity(self, lists: np.ndarray) -> np.ndarray:
        """Mean distance of the pairs of each list, float [N]; 0 where there is no pair.

        The cosines of all pairs are half of what the squared length of the vectors' sum has beyond their own.
        """
        assert self.vectors is not None
        row, place = np.nonzero(lists >= 0)
        held = sparse.csr_matrix((np.ones(len(row)), (row, lists[row, place])), shape=(len(lists), len(self.counts)))
        cosines = (_squares(held @ self.vectors) - held @ _squares(self.vectors)) / 2
        length = (lists >= 0).sum(1)
        pairs = length * (length - 1) / 2
        return np.divide(pairs - cosines, pairs, out=np.zeros(len(lists)), where=pairs > 0)


def _squares(vectors: Vectors) -> np.ndarray:
    """Squared length of each row, float [n]."""
    squares = vectors * vectors if isinstance(vectors, np.ndarray) else vectors.multiply(vectors)
    return np.asarray(squares.sum(1)).ravel()


def evaluate_test(
    model: Student, dataset: SequenceDataset, metrics: MetricsConfig, device: torch.device, *, lists: ListMetrics
) -> Evaluation:
    """Evaluate a student on the test rows, its lists included."""
    return lists.add_to(evaluate_model(model, dataset.test, dataset, metrics.ks, device, top_k=lists.k))


def gini_index(counts: np.ndarray) -> float:
    """Inequality of counts, int [n]: sum over i of (2 i - n - 1) x_i / (n sum x), x ascending; 0 where all are 0.

    >>> gini_index(np.array([3, 3, 3])), gini_index(np.array([0, 0, 0, 8]))
    (0.0, 0.75)
    """
    n, total = len(counts), counts.sum()
    place = 2 * np.arange(1, n + 1) - n - 1
    return float((place * np.sort(counts)).sum() / (n * total)) if total else 0.0


def _mean_of_items(values: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """Mean of the items' values of each list, float [N]; 0 for an empty one."""
    held = lists >= 0
    sums = np.where(held, values[np.where(held, lists, 0)], 0.0).sum(1)
    return np.divide(sums, held.sum(1), out=np.zeros(len(lists)), where=held.any(1))
