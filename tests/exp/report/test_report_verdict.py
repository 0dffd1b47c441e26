"""Verdicts: what is claimed, and what qualifies it."""

import numpy as np
import pytest
from invented import comparison, ranks, settings

from src.exp.compare.beyond import popularity_shift
from src.exp.compare.comparison import DIFFERENCE, comparison_tests
from src.exp.compare.significance import PairedTest
from src.exp.compare.verdict import verdict

FIRST, LATE = ranks([0] * 8), ranks([5] * 8)  # recall@1 of 8 users: 1 and 0
SECOND = ranks([1] * 8)  # reciprocal rank 0.5
HALF = ranks([0] * 4 + [5] * 4)  # 0.5
EQUAL = PairedTest(0.0003, -0.001, 0.002, 0.4, 8)
BEATEN = PairedTest(0.2, 0.1, 0.3, 0.001, 8)
AHEAD = PairedTest(-0.2, -0.3, -0.1, 0.001, 8)


def judge(folder, dataset, models, **changes):
    given = comparison(folder, dataset, models, **changes)
    return verdict(given, comparison_tests(given))


@pytest.fixture
def distilled_first(tiny_dataset, tmp_path):
    """The distilled student is right for all users, the baseline for none; references in between."""

    def build(popular=LATE, markov=LATE, **changes):
        models = {"popular": popular, "markov": markov, "baseline": LATE, "distill": FIRST}
        return judge(tmp_path, tiny_dataset, models, **changes)

    return build


def test_a_better_student_is_called_better(distilled_first) -> None:
    found = distilled_first(controls={})
    assert found.tone == "better"
    assert found.headline == "The distilled student is better than the baseline; no control teacher was tried."
    assert found.numbers == (
        "Difference +1.0000 test Recall@1, history shown, 95 % interval +1.0000 to +1.0000. "
        "Baseline 0.0000, distilled 1.0000."
    )
    assert found.surroundings[1] == "References without training: most popular 0.0000, Markov chain 0.0000."


def test_a_better_student_below_a_reference_is_said_to_be_below(tiny_dataset, tmp_path) -> None:
    models = {"popular": LATE, "markov": FIRST, "baseline": LATE, "distill": SECOND}
    found = judge(tmp_path, tiny_dataset, models, settings=settings(monitor="mrr"))
    assert found.headline.startswith(
        "The distilled student is better than the baseline, but below the Markov chain (1.0000)."
    )
    assert found.tone == "qualified"
    assert "Below Markov chain: student, baseline; student, distilled." in found.surroundings[0]


def test_the_winner_is_compared_with_the_references_even_where_it_is_the_baseline(tiny_dataset, tmp_path) -> None:
    models = {"popular": LATE, "markov": FIRST, "baseline": SECOND, "distill": LATE}
    found = judge(tmp_path, tiny_dataset, models, settings=settings(monitor="mrr"))
    assert found.tone == "worse"
    assert "is worse than the baseline, and the baseline is below the Markov chain (1.0000)." in found.headline


def test_where_no_student_wins_both_are_compared_with_the_references(tiny_dataset, tmp_path) -> None:
    models = {"popular": LATE, "markov": FIRST, "baseline": HALF, "distill": HALF}
    found = judge(tmp_path, tiny_dataset, models)
    assert found.tone == "cannot tell"
    assert found.headline.startswith(
        "Cannot tell whether distillation helps, and both students are below the Markov chain (1.0000)."
    )
    assert "Baseline 0.5000, distilled 0.5000, +0.0 %." in found.numbers


@pytest.mark.parametrize(
    ("controls", "tone", "words"),
    [
        (
            {"random": BEATEN},
            "better",
            "baseline; it beats the control random (+0.2000).",
        ),
        (
            {"tfidf": EQUAL},
            "qualified",
            "baseline; it does no better than the control TF-IDF (+0.0003).",
        ),
        ({"shuffled": AHEAD}, "qualified", "; it is worse than the control shuffled titles (-0.2000)."),
        ({"tfidf": BEATEN, "random": BEATEN}, "better", "; it beats the controls TF-IDF (+0.2000), random (+0.2000)."),
        (
            {"tfidf": BEATEN, "random": EQUAL},
            "qualified",
            "TF-IDF (+0.2000), but does no better than the control random (+0.0003).",
        ),
        (
            {"tfidf": AHEAD, "shuffled": EQUAL, "random": BEATEN},
            "qualified",
            "random (+0.2000), but does no better than the control shuffled titles (+0.0003) and is worse "
            "than the control TF-IDF (-0.2000).",
        ),
        (None, "better", "is better than the baseline."),
    ],
)
def test_every_control_is_told_and_qualifies_the_verdict(distilled_first, controls, tone, words) -> None:
    found = distilled_first(controls=controls)
    assert found.tone == tone and words in found.headline


@pytest.mark.parametrize(
    ("controls", "words"),
    [
        ({}, "the LLM's. Not tried: TF-IDF and shuffled titles; src.exp.run_study study=controls tries them."),
        ({"tfidf": BEATEN, "random": EQUAL}, "the LLM's. Not tried: shuffled titles; src.exp.run_study"),
        ({"tfidf": BEATEN, "shuffled": EQUAL}, "the LLM's. It does not beat shuffled titles."),
        ({"tfidf": AHEAD}, "the LLM's. It does not beat TF-IDF. Not tried: shuffled titles;"),
        (
            {"tfidf": BEATEN, "shuffled": BEATEN},
            "Only what beats TF-IDF and shuffled titles is the LLM's. It beats both.",
        ),
    ],
)
def test_whose_gain_it_is(distilled_first, controls, words) -> None:
    assert words in distilled_first(controls=controls).surroundings[0]


def test_of_a_control_nobody_asks_for_controls(distilled_first) -> None:
    found = distilled_first(controls=None)
    assert "LLM" not in " ".join([found.headline, *found.surroundings])


def test_where_no_student_wins_the_controls_are_the_distilled_students(tiny_dataset, tmp_path) -> None:
    models = {"popular": LATE, "markov": LATE, "baseline": HALF, "distill": HALF}
    found = judge(tmp_path, tiny_dataset, models, controls={"random": BEATEN})
    assert found.headline.startswith(
        "Cannot tell whether distillation helps; the distilled student beats the control random (+0.2000)."
    )


def test_chain_with_titles_is_a_reference_like_the_others(tiny_dataset, tmp_path) -> None:
    models = {"popular": LATE, "markov_titles": FIRST, "baseline": LATE, "distill": SECOND}
    found = judge(tmp_path, tiny_dataset, models, settings=settings(monitor="mrr"), controls={})
    assert found.tone == "qualified"
    assert "better than the baseline, but below chain + TF-IDF of the titles (1.0000);" in found.headline
    assert (
        "chain + TF-IDF 1.0000. Below chain + TF-IDF: student, baseline; student, distilled." in found.surroundings[1]
    )


def test_unlike_students_are_not_compared(distilled_first, tiny_dataset, tmp_path) -> None:
    words = "student.name caser / sasrec, general.seed 5 / 42"
    models = {"popular": LATE, "markov": LATE, "baseline": LATE, "distill": FIRST}
    tests = comparison_tests(comparison(tmp_path, tiny_dataset, models, unlike=words))
    assert DIFFERENCE not in tests and len(tests) == 2 * 2  # each student and each reference
    found = distilled_first(unlike=words, controls={"random": EQUAL})
    assert found.tone == "not comparable" and found.numbers == ""
    assert found.headline == f"Baseline and distilled student are not comparable: {words}"
    assert "src.exp.run_student_baseline with the same settings in the same folder" in found.surroundings[0]
    text = " ".join([found.headline, *found.surroundings])
    assert not any(word in text for word in ("better", "worse", "random", "%", "+1.0000"))


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (
            [9.0] * 10,
            "Distillation shifts what is recommended towards more popular items: 9.00 instead of 4.00",
        ),
        (
            [2.0] * 10,
            "towards less popular items: 2.00 instead of 4.00 training interactions an item on average (-2",
        ),
        ([3.0, 5.0] * 5, "No shift in the popularity of what is recommended can be told: 4.00 instead of 4.00"),
    ],
)
def test_whether_popularity_shifts_is_said(tiny_dataset, tmp_path, after, words) -> None:
    models = {name: ranks([0] * 10) for name in ("baseline", "distill")}
    for name, popularity in (("baseline", [4.0] * 10), ("distill", after)):
        models[name] |= {"popularity": np.array(popularity), "popularity_masked": np.zeros(10)}
    assert words in popularity_shift(comparison(tmp_path, tiny_dataset, models))
    assert popularity_shift(comparison(tmp_path, tiny_dataset, models, unlike="student.name")) == ""
    assert popularity_shift(comparison(tmp_path, tiny_dataset, {"baseline": models["baseline"]})) == ""


def test_notes_stand_beside_the_verdict(distilled_first) -> None:
    note = "The teacher was made by the native engine."
    assert note in distilled_first(notes=[note]).surroundings
    assert note in distilled_first(notes=[note], unlike="general.seed 1 / 2").surroundings


def test_one_student_is_no_comparison(tiny_dataset, tmp_path) -> None:
    found = judge(tmp_path, tiny_dataset, {"popular": LATE, "markov": LATE, "distill": HALF})
    assert found.tone == "one student"
    assert found.headline == (
        "Only one student was found, so distillation has nothing to be compared with. "
        "Test Recall@1, history shown: student, distilled 0.5000."
    )


def test_several_seeds_are_averaged(tiny_dataset, tmp_path) -> None:
    models = {"popular": LATE, "markov": LATE, "baseline": LATE, "distill": FIRST}
    one = comparison(tmp_path, tiny_dataset, models)
    seeds = {name: [*one.seeds[name], one.seeds["distill"][0]] for name in one.seeds}
    several = comparison(tmp_path, tiny_dataset, models, seeds=seeds)
    assert several.value("baseline") == (0 + 1) / 2
    assert "This is one seed" not in " ".join(verdict(several, comparison_tests(several)).surroundings)


def test_the_ranking_that_decides_is_tested_and_named(tiny_dataset, tmp_path) -> None:
    """With the history shown the distilled student wins, with it removed the baseline does."""
    wins, loses = ranks([0] * 8, masked=[5] * 8), ranks([5] * 8, masked=[0] * 8)
    models = {"popular": LATE, "baseline": loses, "distill": wins}
    shown, removed = (
        judge(tmp_path, tiny_dataset, models, settings=settings(history=history)) for history in ("shown", "removed")
    )
    assert (shown.tone, removed.tone) == ("better", "worse")
    assert "test Recall@1, history removed, 95 % interval" in removed.numbers
    assert removed.numbers.endswith("Baseline 1.0000, distilled 0.0000, -100.0 %.")
