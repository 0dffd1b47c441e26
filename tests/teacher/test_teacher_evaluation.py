"""Reading answers, and the numbers made of them."""

from math import sqrt

import numpy as np
import pytest

from src.teacher.scoring.answers import Answers, answer_metrics, generate_answers, named_candidate
from src.teacher.scoring.evaluation import examples, full_ranking
from src.teacher.scoring.ranking import Ranking

TITLES = ["Red Lamp", "Stone", "The Long Road (2)"]


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("Stone", "Stone"),
        ("  stone ", "Stone"),
        ("I would suggest the long road (2).", "The Long Road (2)"),
        ("RED LAMP", "Red Lamp"),
        ("Red Lamp, Stone", None),  # two
        ("Red", None),  # none
        ("", None),
    ],
)
def test_named_candidate(answer, expected):
    assert named_candidate(answer, TITLES) == expected


def test_a_title_inside_another_title_makes_two():
    assert named_candidate("Stone Age", ["Stone", "Stone Age"]) is None
    assert named_candidate("Stone", ["Stone", "Stone Age"]) == "Stone"


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % Wilson score interval."""
    z, p = 1.959963984540054, successes / trials
    centre, half = p + z * z / (2 * trials), z * sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    return (centre - half) / (1 + z * z / trials), (centre + half) / (1 + z * z / trials)


def test_answer_metrics_by_arithmetic():
    answers = Answers(
        ["Stone", "red lamp", "Stone", "Stone", "nothing", "Red Lamp Stone"],
        [TITLES] * 6,
        ["Stone", "Red Lamp", "Red Lamp", "Stone", "Stone", "Stone"],
        ["Red Lamp", "Red Lamp", "Stone", "Stone", "Red Lamp", "Red Lamp"],
    )

    result = answer_metrics(answers)

    # 6 rows, 4 valid answers, 3 of them right.
    expected = {"num_rows": 6, "hr@1": 3 / 4, "valid_ratio": 4 / 6, "hr@1_all": 3 / 6, "hr@1_likelihood": 2 / 6}
    for name, counts in (("hr@1", (3, 4)), ("valid_ratio", (4, 6)), ("hr@1_all", (3, 6)), ("hr@1_likelihood", (2, 6))):
        expected[f"{name}_low"], expected[f"{name}_high"] = wilson(*counts)
    assert result == pytest.approx(expected, abs=1e-6)
    assert result["hr@1"] * result["valid_ratio"] == pytest.approx(result["hr@1_all"])


def test_no_valid_answer_at_all():
    result = answer_metrics(Answers(["", "?"], [TITLES] * 2, ["Stone", "Stone"], ["Stone", "Red Lamp"]))

    assert (result["hr@1"], result["hr@1_low"], result["hr@1_high"]) == (0.0, 0.0, 1.0)
    assert (result["valid_ratio"], result["hr@1_all"]) == (0.0, 0.0)
    assert result["valid_ratio_high"] == pytest.approx(wilson(0, 2)[1])


def test_all_right():
    result = answer_metrics(Answers(["Stone"] * 3, [TITLES] * 3, ["Stone"] * 3, ["Stone"] * 3))
    assert (result["hr@1"], result["valid_ratio"], result["hr@1_all"]) == (1.0, 1.0, 1.0)
    assert result["hr@1_all_low"] == pytest.approx(wilson(3, 3)[0])


def test_generated_answers_do_not_depend_on_the_batch(teacher, dataset):
    index = np.array([4, 0, 3, 5])
    answers = generate_answers(teacher, dataset.test, index, seed=7)

    assert answers.targets == [dataset.titles[i] for i in dataset.test.targets[index]]
    assert len(answers.texts) == 4
    for titles, target, likeliest, row in zip(
        answers.candidates, answers.targets, answers.likeliest, index, strict=True
    ):
        assert len(titles) == len(set(titles)) == 5
        assert target in titles
        history = {dataset.titles[i] for i in dataset.test.history(row)}
        assert not history & set(titles) - {target}
        assert likeliest in titles
    alone = generate_answers(teacher, dataset.test, index[2:3], seed=7)
    assert (alone.texts, alone.candidates) == (answers.texts[2:3], answers.candidates[2:3])
    assert alone.likeliest == answers.likeliest[2:3]
    assert generate_answers(teacher, dataset.test, index, seed=8).candidates != answers.candidates
    assert generate_answers(teacher, dataset.test, index[:0], seed=7) == Answers([], [], [], [])


def make_ranking(items: list[list[int]]) -> Ranking:
    rows = len(items)
    zeros = np.zeros((rows, len(items[0])), dtype=np.float32)
    return Ranking(np.array(items), zeros, zeros[:, :2], zeros[:, 0], np.ones(rows, dtype=bool))


def test_full_ranking_by_hand(make_dataset):
    """User 0: history 0 1 2 3, target 4. User 1: history 5 6 7 5, target 5, which is in its own history."""
    dataset = make_dataset([[0, 1, 2, 3, 4], [5, 6, 7, 5, 5]], num_items=9)
    items = [[2, 8, 0, 4, 7], [6, 5, 7, 0, 1]]

    evaluation = full_ranking(make_ranking(items), dataset, index=np.arange(2), ks=[1, 3])

    # Above the targets stand 3 items, two of them seen, and 1 item, which is seen.
    assert evaluation.ranks["better"].tolist() == [3, 1]
    assert evaluation.ranks["better_masked"].tolist() == [1, 0]
    assert evaluation.metrics["recall@3"] == 1 / 2
    assert evaluation.metrics_masked["recall@3"] == 1.0
    assert evaluation.metrics_masked["recall@1"] == 1 / 2
    assert evaluation.metrics_masked["ndcg@3"] == pytest.approx((1 / np.log2(3) + 1) / 2)


def test_a_target_that_is_not_ranked_counts_as_last(make_dataset):
    dataset = make_dataset([[0, 1, 2, 3, 4], [5, 6, 7, 5, 5]], num_items=9)
    evaluation = full_ranking(make_ranking([[8, 7], [8, 7]]), dataset, index=np.arange(2), ks=[1])
    assert evaluation.ranks["better"].tolist() == [8, 8]
    assert evaluation.ranks["better_masked"].tolist() == [4, 6]  # histories of 4 other items, and of 2


def test_examples_show_prompt_answer_and_ranking(teacher, dataset):
    index = np.array([4, 0, 3])
    answers = generate_answers(teacher, dataset.test, index, seed=7)
    answers = Answers([answers.targets[0], "nothing", ""], answers.candidates, answers.targets, answers.likeliest)

    page = examples(teacher, dataset.test, index[:2], seed=7, answers=answers, ranked=np.array([[3, 9], [1, 2]]))

    first, second = page.split("## Test row ")[1:]
    assert first.startswith("4: right") and second.startswith("0: invalid")
    for title in [*answers.candidates[0], *(dataset.titles[i] for i in dataset.test.history(4)[-3:])]:
        assert title in first.split("- answer")[0]
    assert f"- ranking (likelihood): {dataset.titles[3]}; {dataset.titles[9]}" in first
    assert "- answer: nothing" in second
