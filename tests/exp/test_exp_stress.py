"""Data and settings at their limits: the table of docs/data.md, a test for every line of it."""

import csv
from pathlib import Path

import numpy as np
import pytest
from harness import TINY_STUDENT, TINY_TEACHER, read, run_here

from src.exp import recommend, run_distill, run_eval_all, run_student_baseline, run_teacher

STUDENT = [word for word in TINY_STUDENT if not word.startswith("dataset")]
RUNS = {
    "teacher": run_teacher.run,
    "baseline": run_student_baseline.run,
    "distill": run_distill.run,
    "eval": run_eval_all.run,
    "recommend": recommend.run,
}


def walk(users: int, length: int, items: int = 15) -> list[list[int]]:
    """Each user walks round the catalogue from another item on."""
    return [[(user + step) % items for step in range(length)] for user in range(users)]


ROUND = walk(users=20, length=8)
ONE_USER = [list(range(8))]
ONE_ITEM = [[0] * 7] * 10


def number(item: int) -> str:
    return f"Thing {item}"


def colour(item: int) -> str:
    return f"{('red', 'green', 'blue')[item % 3]} {item}"


class Place:
    """A data set, and the run folder that the calls share."""

    def __init__(self, folder: Path, capsys) -> None:
        self.folder, self.capsys = folder, capsys
        self.settings = [
            *STUDENT,
            *TINY_TEACHER,
            "dataset=csv",
            "dataset.min_user_inter=3",
            "student.batch_size=4",
            "teacher.recommender.batch_size=4",
            f"dataset.raw_dir={folder / 'raw'}",
            f"paths.data_dir={folder / 'data'}",
            f"paths.result_root={folder}",
            f"hydra.run.dir={folder / 'run'}",
        ]

    def write(self, sequences: list[list[int]], title=number) -> None:
        (self.folder / "raw").mkdir()
        log = [[user, item, step] for user, items in enumerate(sequences) for step, item in enumerate(items)]
        titles = [[item, title(item)] for item in sorted({item for items in sequences for item in items})]
        for name, lines in (
            ("interactions.csv", [["user", "item", "timestamp"], *log]),
            ("items.csv", [["item", "title"], *titles]),
        ):
            with (self.folder / "raw" / name).open("w", newline="") as file:
                csv.writer(file).writerows(lines)

    def run(self, stage: str, *words: str) -> str:
        """What it printed."""
        assert run_here(RUNS[stage], *self.settings, *words) == 0, self.capsys.readouterr().err
        captured = self.capsys.readouterr()
        return captured.out + captured.err

    def refusal(self, stage: str, *words: str, early: bool = True) -> str:
        """The error line; `early`: before anything was trained."""
        assert run_here(RUNS[stage], *self.settings, *words) == 1
        assert not (early and list(self.folder.glob(f"run/models/{stage}/**/*.safetensors")))
        (error,) = (line for line in self.capsys.readouterr().err.splitlines() if line.startswith("error: "))
        return error.removeprefix("error: ")

    def metrics(self, stage: str = "baseline") -> dict[str, float]:
        return read(self.folder / "run" / "metrics" / f"eval_{stage}.json")["metrics"]


@pytest.fixture
def place(tmp_path, capsys) -> Place:
    return Place(tmp_path, capsys)


# --- data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["teacher", "baseline", "distill", "eval"])
def test_no_training_row(place, stage) -> None:
    place.write(walk(users=20, length=3))
    message = "dataset csv: no training row; a user has a training row from 4 interactions on; add data"
    assert place.refusal(stage) == message


def test_one_training_row(place) -> None:
    place.write([*walk(users=19, length=3), [0, 1, 2, 3]])
    message = "student.batch_size=4 (distill.batch_size when distilling): a batch takes more than the 1 training rows"
    assert place.refusal("baseline").startswith(message)
    assert place.refusal("teacher").startswith("dataset csv: no training row has 3 items of history, the teacher needs")
    place.run("baseline", "student.batch_size=1")
    assert 0 <= place.metrics()["ndcg@10"] <= 1


def test_one_user(place) -> None:
    place.write(ONE_USER)
    message = (
        "8 items, up to 8 of them in a history and its target; a prompt needs 2: the teacher takes a larger catalogue"
    )
    assert message in place.refusal("teacher", "teacher.num_candidates=4")
    place.run("baseline")
    assert place.metrics()["recall@10"] == 1  # of 8 items
    assert "8 items" in place.run("eval") and "most popular" in (place.folder / "run" / "report.md").read_text()


def test_one_item(place) -> None:
    place.write(ONE_ITEM)
    assert place.refusal("baseline", "student.loss=bce", "student.max_seq_len=1").startswith(
        "student.loss=bce: a history"
    )
    assert "1 items, up to 1 of them in a history and its target; a prompt needs 2" in place.refusal("teacher")
    place.run("baseline", "student.loss=sampled_softmax")
    assert set(place.metrics().values()) == {1.0}


def test_all_users_have_one_history(place) -> None:
    place.write(ONE_USER * 20)
    place.run("baseline")
    ranks = np.load(place.folder / "run" / "metrics" / "ranks_baseline.npz")
    assert len(ranks["better"]) == 20 and len(set(ranks["better"].tolist())) == 1


def test_all_titles_are_equal(place) -> None:
    place.write(ROUND, title=lambda item: "Same")
    assert '14 of 15 titles occurred before: made distinct by " (2)"' in place.run("baseline")
    error = place.refusal("distill", "distill.teacher=tfidf")
    assert error.startswith("distill.teacher=tfidf: no word stands in two titles of csv and in at most half of them")
    assert "no reference with titles" in place.run("eval")
    assert "TF-IDF" not in (place.folder / "run" / "report.md").read_text()


def test_a_small_catalogue_bounds_the_candidates(place) -> None:
    """Histories of up to 7 items and a target: 8 of 15 are seen, 7 and the target are left."""
    place.write(ROUND)
    error = place.refusal("teacher", "teacher.num_candidates=20")
    assert error.endswith("dataset csv has 15 items, up to 8 of them in a history and its target; use at most 8")


def test_repeated_items_take_one_place(place) -> None:
    """Histories of 29 items of a catalogue of 8: four of them, over and over, so that 5 candidates are there."""
    place.write([[(user + step % 4) % 8 for step in range(30)] for user in range(12)])
    assert place.refusal("teacher", "teacher.num_candidates=6").endswith("use at most 5")


@pytest.mark.parametrize(("window", "length"), [(1, 8), (10, 40), (50, 12)])
def test_histories_of_one_item_and_longer_than_the_window(place, window, length) -> None:
    place.write(walk(users=6, length=length))
    place.run("baseline", f"student.max_seq_len={window}", f"dataset.max_seq_len={window}")
    assert 0 < place.metrics()["mrr"] <= 1


def test_a_filter_is_not_higher_than_the_window(place) -> None:
    place.write(ROUND)
    error = place.refusal("baseline", "student=caser", "student.max_seq_len=1")
    assert error == "student.filter_sizes=[2, 3, 4]: must be one or more integers from 1 to student.max_seq_len=1"


# --- settings ---------------------------------------------------------------------------------------------------


def test_a_batch_of_one(place) -> None:
    place.write(walk(users=4, length=5))
    place.run("baseline", "student.batch_size=1")
    assert read(place.folder / "run" / "metrics" / "eval_baseline.json")["num_users"] == 4


def test_cut_offs_above_the_catalogue(place) -> None:
    place.write(ROUND)
    place.run("baseline", "metrics.ks=[1,500]", "metrics.monitor=ndcg@500")
    found = place.metrics()
    assert found["recall@500"] == 1 and found["recall@1"] < 1


def test_more_recommendations_than_items(place) -> None:
    place.write(ROUND)
    place.run("baseline")
    words = [f"recommend.checkpoint={place.folder / 'run/models/baseline'}", "recommend.history=['0']"]
    error = place.refusal("recommend", *words, "recommend.top_k=16")
    assert error == "recommend.top_k=16: must be from 1 to 15, the items of the student"
    shown = [line for line in place.run("recommend", *words, "recommend.top_k=15").splitlines() if "Thing" in line]
    assert len(shown) == 14  # the history is left out


def test_a_ranking_longer_than_the_catalogue(place) -> None:
    place.write(ROUND, title=colour)
    for words in (["distill.teacher=tfidf"], ["distill.ranking=similarity"], []):
        error = place.refusal("distill", *words, "distill.top_k=16")
        assert error.startswith("distill.top_k=16: ") and "at most 1" in error
    error = place.refusal("teacher", "teacher.num_candidates=6", "teacher.export.top_n=7")
    assert error.startswith("teacher.export.top_n=7: must be at most teacher.num_candidates=6")


def test_fewer_items_than_dimensions_to_whiten(place, tmp_path) -> None:
    """The embeddings of 15 items vary in 14 directions, those of 15 equal ones in none."""
    place.write(ROUND)
    words = ["distill.lambda=0", "distill.embedding_transform=whiten", f"distill.embeddings_file={tmp_path / 'e.npy'}"]
    np.save(tmp_path / "e.npy", np.sin(np.arange(15 * 40)).reshape(15, 40).astype(np.float32) ** 3)
    error = place.refusal("distill", *words, "distill.embedding_dims=15")
    assert error.startswith("distill.embedding_dims=15: the teacher's embeddings of 15 items vary in")
    np.save(tmp_path / "e.npy", np.ones((15, 40), np.float32))
    assert "vary in 0 directions only (are all titles equal?)" in place.refusal("distill", *words)


@pytest.mark.parametrize("policy", ["random", "uncertainty"])
def test_a_budget_of_no_row(place, policy) -> None:
    """20 users have 5 training rows each; of 100 rows the smallest share is half a row, rounded up."""
    place.write(ROUND, title=colour)
    words = [f"active={policy}", "distill.teacher=tfidf"]
    error = place.refusal("distill", *words, "active.budget_ratio=0.004")
    assert error == "active.budget_ratio=0.004: chooses none of 100 training rows; at least 0.005"
    place.run("distill", *words, "active.budget_ratio=0.005")


@pytest.mark.parametrize("stage", ["baseline", "distill"])
def test_a_rate_that_is_too_high_is_told_by_step_and_rows(place, stage) -> None:
    place.write(ROUND, title=colour)
    error = place.refusal(stage, "student.lr=1e30", "distill.teacher=tfidf", "distill.lr=1e30")
    assert error.startswith("training: loss is nan and ") and "in epoch 1, step 2 (training rows " in error
    assert error.endswith("lower student.lr (distill.lr when distilling) or set student.grad_clip")


def test_a_recommender_and_a_tiny_llm_that_cannot_be_trained(place) -> None:
    place.write(ROUND)
    candidates = ["teacher.num_candidates=5", "teacher.export.top_n=2"]
    error = place.refusal("teacher", *candidates, "teacher.recommender.batch_size=101")
    assert error.startswith("teacher.recommender.batch_size=101: a batch takes more than the 100 training rows")
    error = place.refusal("teacher", *candidates, "teacher.recommender.lr=1e30")
    assert error.endswith("lower teacher.recommender.lr or set teacher.recommender.grad_clip")
    error = place.refusal("teacher", *candidates, "teacher.tiny.pretrain_lr=1e30", early=False)
    assert error.startswith("teacher.tiny.pretrain_lr=1e+30: loss or weights of the tiny LLaMA are not finite in step")
