"""The reference models by hand: counts of targets, transitions of the last items, words of their titles."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch

from src.core.data_utils import sample_rows
from src.core.metrics import MetricsConfig
from src.student import references
from src.student.references import (
    Blend,
    Transitions,
    markov_chain,
    popularity,
    similarity_to_history,
    title_vectors,
)

RED_AND_BLUE = ["red lamp", "Red chair", "blue lamp", "blue chair"]  # cosine 1/2 with one word in common


def with_titles(dataset, metrics=None, **changes) -> Blend:
    vectors = title_vectors(dataset)
    assert vectors is not None
    return Blend.of(dataset, metrics or MetricsConfig(), similarity_to_history(vectors), **changes)


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


# --- titles -------------------------------------------------------------------------------------------------


def test_the_chain_with_titles_by_hand(make_dataset):
    dataset = make_dataset([[0, 1, 2, 0, 3]], num_items=4, titles=RED_AND_BLUE)
    vectors = title_vectors(dataset)
    beside = similarity_to_history(vectors)
    model = Blend(Transitions.of(dataset), beside, weight=2.0, decay=0.5, value=0.0, num_rows=0, num_tried=1)

    (scores,) = model.of_rows(dataset.test)(np.array([0])).tolist()  # history [0, 1, 2, 0]

    of_0, of_1, of_2 = 1 + 0.5**3, 0.5**2, 0.5**1  # what each item of the history weighs
    titles = [0.5 * (of_1 + of_2), 0.5 * of_0, 0.5 * of_0, 0.5 * (of_1 + of_2)]  # of others, not of itself
    chain = markov_chain(dataset, dataset.test)(np.array([0]))[0].tolist()
    assert scores == pytest.approx([one + 2 * other for one, other in zip(chain, titles, strict=True)])


@pytest.mark.parametrize(
    ("titles", "ids"),
    [
        ([f"item {word}" for word in RED_AND_BLUE], RED_AND_BLUE),  # missing: named by the raw id
        (["Lamp", *[f"Lamp ({i})" for i in range(2, 13)]], None),  # all the same
        (["lamp", "chair", "table", "bed"], None),
        (["?", "!", "a", "b"], None),
    ],
)
def test_titles_without_a_word_in_common_say_nothing(make_dataset, titles, ids):
    dataset = make_dataset([[0, 1, 2, 3]], num_items=len(titles), titles=titles)
    dataset = replace(dataset, item_ids=ids or dataset.item_ids)
    assert title_vectors(dataset) is None


def test_titles_without_spaces_have_words_too(make_dataset):
    titles = ["赤いランプ", "赤い椅子", "青いランプ", "青の椅子"]
    vectors = title_vectors(make_dataset([[0, 1, 2, 3]], num_items=4, titles=titles))
    alike = (vectors @ vectors.T).toarray() > 0
    assert alike.tolist() == [[i + j != 3 for i in range(4)] for j in range(4)]


PAIRS = [word for word in "ace bat cup dog ear fox".split() for _ in range(2)]  # items 2 i and 2 i + 1


def walks(make_dataset, valid: int, test: int):
    """Users who walk over the even items; `valid` and `test`: how far their last two items are from the first."""
    starts = range(0, 12, 2)
    sequences = [[(s + step) % 12 for step in (0, 2, 4, 6, valid, test)] for s in starts]
    return make_dataset(sequences, num_items=12, titles=PAIRS)


@pytest.mark.parametrize("history", ["shown", "removed"])
def test_the_weight_of_titles_is_chosen_on_validation_rows_alone(make_dataset, history):
    metrics = MetricsConfig(monitor="recall@1", history=history)
    like_last, next_of_chain = 7, 8  # after 6: the other item of its pair, and what followed it in training
    weights = {
        (valid, test): with_titles(walks(make_dataset, valid, test), metrics).weight
        for valid in (like_last, next_of_chain)
        for test in (like_last, next_of_chain)
    }
    assert weights[like_last, next_of_chain] == weights[like_last, like_last] >= 1
    assert weights[next_of_chain, like_last] == weights[next_of_chain, next_of_chain] == 0.05  # the smallest tried


def test_the_choice_tells_what_it_found(make_dataset):
    model = with_titles(walks(make_dataset, 7, 8), MetricsConfig(monitor="recall@1", history="removed"))
    text = model.description(MetricsConfig(monitor="recall@1", history="removed"))
    assert f"similarity of weight {model.weight:g}, decay {model.decay:g}, the best of 21" in text
    assert text.endswith("on 6 validation rows (recall@1 (history removed) 1.0000)")


def test_a_given_weight_is_taken_and_0_is_the_chain(make_dataset):
    dataset = walks(make_dataset, 7, 8)
    model = with_titles(dataset, weight=0.0)
    assert (model.weight, model.num_tried) == (0.0, 3)
    index = np.arange(len(dataset.test))
    assert torch.equal(model.of_rows(dataset.test)(index), markov_chain(dataset, dataset.test)(index))


def test_dense_vectors_score_as_sparse_ones(make_dataset):
    dataset = walks(make_dataset, 7, 8)
    vectors = title_vectors(dataset)
    dense = Blend.of(dataset, MetricsConfig(), similarity_to_history(vectors.toarray()))
    sparse = with_titles(dataset)
    assert dense.description(MetricsConfig()) == sparse.description(MetricsConfig())
    torch.testing.assert_close(dense.scores(dataset.test), sparse.scores(dataset.test))


# --- leave one out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sequences",
    [
        [[0, 1, 3, 3], [0, 1, 3, 3], [0, 2, 3, 3]],
        [[0, 1, 0, 2, 0, 0, 1, 2, 3, 0], [0, 0, 1, 0, 2, 3], [2, 2, 2, 2, 1, 0]],  # the same transition twice in a row
    ],
)
def test_a_row_that_is_left_out_was_never_counted(make_dataset, sequences):
    dataset = make_dataset(sequences, num_items=4)
    rows = dataset.train
    found = Transitions.of(dataset).scores(rows, leave_one_out=True)
    for i in range(len(rows)):
        others = replace(dataset, train=rows.select(np.arange(len(rows)) != i))
        expected = Transitions.of(others).scores(rows.select(np.array([i])))[0]
        assert found[i] == pytest.approx(expected)


def test_transitions_are_counted_in_parts_and_of_a_sample_of_many_rows(make_dataset, monkeypatch):
    dataset = make_dataset([[0, 1, 0, 2, 0, 0, 1, 2, 3, 0], [0, 0, 1, 0, 2, 3], [2, 2, 2, 2, 1, 0]], num_items=4)
    whole, rows = Transitions.of(dataset), dataset.train
    monkeypatch.setattr(references, "_ROWS", 3)
    assert Transitions.of(dataset).counts.toarray() == pytest.approx(whole.counts.toarray())
    monkeypatch.setattr(references, "_MOST_ROWS", 5)
    sample = sample_rows(rows, 5)
    few = Transitions.of(dataset)
    assert few.counts.toarray() == pytest.approx(Transitions.of(replace(dataset, train=sample)).counts.toarray())
    for i, pos in enumerate(rows.pos):  # a row that was not counted has nothing to be left out
        others = replace(dataset, train=sample.select(sample.pos != pos))
        expected = Transitions.of(others).scores(rows.select(np.array([i])))
        assert few.scores(rows, leave_one_out=True)[i] == pytest.approx(expected[0])


def test_a_transition_that_was_seen_once_scores_nothing_in_its_own_row(make_dataset):
    dataset = make_dataset([[0, 1, 5, 5], [2, 3, 5, 5]], num_items=6)
    chain = Transitions.of(dataset)
    assert chain.scores(dataset.train)[[0, 1], [1, 3]].tolist() == [1, 1]
    assert not chain.scores(dataset.train, leave_one_out=True).any()
