"""The reference models by hand: counts of targets, transitions of the last items."""

from math import sqrt

import numpy as np
import pytest

from src.student.references import markov_chain, popularity


def test_popularity_counts_training_targets(make_dataset):
    # Training targets: 1, 2 (first user) and 1 (second); the last two items of each are held out.
    dataset = make_dataset([[0, 1, 2, 3, 3], [2, 1, 3, 3]], num_items=5)

    scores = popularity(dataset, dataset.test)(np.array([1, 0]))

    assert scores.tolist() == [[0.0, 2.0, 1.0, 0.0, 0.0]] * 2


def test_markov_chain_by_hand(make_dataset):
    # Training part [0, 1, 2]: transitions 0 -> 1 (gap 1), 1 -> 2 (gap 1), 0 -> 2 (gap 2).
    dataset = make_dataset([[0, 1, 2, 0, 3]], num_items=4)

    (scores,) = markov_chain(dataset, dataset.test)(np.array([0])).tolist()  # history [0, 1, 2, 0]

    near, far = 0.7**0, 0.7**3  # 0 stands one and four steps before the target, 1 three steps
    assert scores == pytest.approx([0.0, (near + far) / sqrt(1.5), (near + far) * 0.5 / sqrt(1.5) + 0.7**2, 0.0])


def test_markov_chain_looks_ten_steps_back_when_it_counts_and_five_when_it_scores(make_dataset):
    dataset = make_dataset([list(range(14))], num_items=14)

    (scores,) = markov_chain(dataset, dataset.valid)(np.array([0])).tolist()  # history 0 .. 11

    # Only 7 .. 11 score; of what followed them within the training part (up to 11) nothing lies below 8.
    assert [item for item in range(14) if scores[item] > 0] == [8, 9, 10, 11]
    assert markov_chain(dataset, dataset.train)(np.array([0]))[0].nonzero().flatten().tolist() == list(range(1, 11))
