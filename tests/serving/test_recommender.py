"""What a checkpoint recommends, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from src.core.errors import UserError
from src.core.foreign import hub
from src.serving import recommender
from src.serving.recommender import FILES, Recommendation, Recommender
from src.student.checkpoint import Catalogue, CheckpointInfo, save_catalogue, save_checkpoint
from src.student.config import ModelConfig
from src.student.evaluator import rank_unseen
from src.student.models import build_model


@pytest.fixture
def checkpoint(fill_with_ramp, tiny_dataset, tmp_path):
    model = fill_with_ramp(build_model(ModelConfig("sasrec", 12, 8, 8, 5, 0.1)))
    info = CheckpointInfo("tiny", tiny_dataset.fingerprint, 1, "abc", 1, "ndcg@10", 0.5)
    save_checkpoint(tmp_path, model, model.state_dict(), info)
    save_catalogue(tmp_path, Catalogue(tiny_dataset.item_ids, tiny_dataset.titles))
    return tmp_path, model.eval()


@pytest.fixture
def student(checkpoint) -> Recommender:
    return Recommender.from_pretrained(checkpoint[0])


def ids(best: list[Recommendation]) -> list[str]:
    return [item.item_id for item in best]


def test_the_best_items_by_score(checkpoint, student, tiny_dataset):
    _, model = checkpoint
    names, titles = tiny_dataset.item_ids, tiny_dataset.titles
    history = [3, 1, 4, 1, 5, 9]  # longer than the window of 5

    asked = [names[3], titles[1], names[4], titles[1], names[5], names[9]]
    (best,) = student.recommend([asked], top_k=6)

    scores = model(torch.tensor([history[-5:]]), torch.tensor([5]))[0]
    order = [i for i in scores.argsort(descending=True).tolist() if i not in history][:6]
    assert [(r.item_id, r.title) for r in best] == [(names[i], titles[i]) for i in order]
    assert [r.score for r in best] == pytest.approx(scores[order].tolist())


def test_many_histories_are_answered_as_one_is(student, monkeypatch):
    histories = [["3"], ["1", "4", "1", "5", "9", "2"], ["7", "8"], ["0"]]
    alone = [student.recommend([history], top_k=4)[0] for history in histories]
    for most in (1, 30, 2**20):  # one at a time, two, all
        monkeypatch.setattr(recommender, "_MOST_SCORES", most)
        together = student.recommend(histories, top_k=4)
        assert [ids(best) for best in together] == [ids(best) for best in alone]
        scores = [[r.score for best in found for r in best] for found in (together, alone)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_a_folder_is_all_that_serving_needs(checkpoint, student, tmp_path_factory):
    copy = tmp_path_factory.mktemp("shop") / "student"
    shutil.copytree(checkpoint[0], copy)
    assert sorted(path.name for path in copy.iterdir()) == ["config.json", "items.json", "model.safetensors"]
    assert Recommender.from_pretrained(copy).recommend([["3"]], top_k=5) == student.recommend([["3"]], top_k=5)


def test_the_history_may_be_shown(student):
    (hidden,), (shown,) = (student.recommend([["3"]], top_k=12, show_history=show) for show in (False, True))
    assert len(hidden) == 11 and len(shown) == 12
    assert [r for r in shown if r.item_id != "3"] == hidden


def test_only_what_is_allowed_is_recommended(student):
    everything = ids(student.recommend([["3"]], top_k=11)[0])
    (best,) = student.recommend([["3"]], top_k=4, allowed=["Title 7", "2", "3", "9"])
    assert ids(best) == [item for item in everything if item in ("7", "2", "9")]  # 3 is in the history
    with pytest.raises(UserError, match="recommend.allowed: 'x' is neither a raw item id nor a title"):
        student.recommend([["3"]], top_k=1, allowed=["2", "x"])
    with pytest.raises(UserError, match="recommend.top_k=2: must be from 1 to 1, the items that are allowed"):
        student.recommend([["3"]], top_k=2, allowed=["2"])


def test_names_that_are_no_items_are_skipped_and_counted(student):
    best = student.recommend([["new", "3", "old"], ["new"], [], ["3"]], top_k=5, skip_unknown=True)
    assert [len(found) for found in best] == [5, 0, 0, 5] and best[0] == best[3]
    assert student.unknown == {"new": 2, "old": 1}


def test_wrong_questions(student):
    with pytest.raises(UserError, match=r"recommend.history=\[\]: must name at least one item"):
        student.recommend([[]], top_k=3)
    with pytest.raises(
        UserError, match="recommend.history: 'Titel 3' is neither a raw item id nor a title of the student's 12 items"
    ) as e:
        student.recommend([["Titel 3"]], top_k=3)
    assert "did you mean 'Title 3'" in str(e.value)
    for top_k in (0, 13):
        with pytest.raises(UserError, match=f"recommend.top_k={top_k}: must be from 1 to 12, the items of the student"):
            student.recommend([["3"]], top_k=top_k)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "it is a list, must be an object"),
        ({"item_ids": ["a"] * 12}, "titles is missing"),
        ({"item_ids": ["a"] * 12, "titles": ["b"] * 12}, "must hold item_ids and titles, 12 texts each"),
        ({"item_ids": list("abc"), "titles": list("abc")}, "must hold item_ids and titles, 12 texts each"),
        ({"item_ids": [*"abcdefghijk", 1], "titles": list("abcdefghijkl")}, r"item_ids\[11\] is 1, must be text"),
    ],
    ids=["a list", "no titles", "an id twice", "three", "a number"],
)
def test_items_that_are_not_the_students(checkpoint, content, words):
    (checkpoint[0] / "items.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"items\.json: {words}.*; take the file of the same training"):
        Recommender.from_pretrained(checkpoint[0])


# --- saved and shared ---------------------------------------------------------------------------------------


def answers(student: Recommender) -> list[Recommendation]:
    return student.recommend([["3", "1"]], top_k=5)[0]


def test_what_is_saved_is_the_student(student, tmp_path):
    (tmp_path / "README.md").write_text("# a card\n")
    Recommender.from_pretrained(tmp_path).save_pretrained(tmp_path / "copy")

    assert {path.name for path in (tmp_path / "copy").iterdir()} == {*FILES, "README.md"}
    copy = Recommender.from_pretrained(str(tmp_path / "copy"))
    assert answers(copy) == answers(student)
    assert (copy.info, copy.card) == (student.info, "# a card\n")


def test_a_student_without_a_card_is_saved_without_one(student, tmp_path):
    student.save_pretrained(tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == set(FILES)


def test_a_student_of_the_hub_is_found_in_the_cache(checkpoint, student, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    cached = tmp_path / "hub" / "models--acme--student"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("a" * 40)
    student.save_pretrained(cached / "snapshots" / ("a" * 40))

    assert answers(Recommender.from_pretrained("acme/student")) == answers(student)
    with pytest.raises(
        UserError, match=r"student=acme/other: no folder of that name, the cache .* HF_HUB_OFFLINE is set"
    ):
        Recommender.from_pretrained("acme/other")
    with pytest.raises(
        UserError, match=r"student=\./nowhere: no such folder; expected the folder of a student \(config"
    ):
        Recommender.from_pretrained("./nowhere")


def test_a_student_is_pushed_whole_and_privately(student, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, model, **options):
            calls.append((model, options))

        def upload_folder(self, *, repo_id, folder_path):
            calls.append((repo_id, {path.name for path in folder_path.iterdir()}))

    monkeypatch.setattr(hub, "HfApi", Api)
    assert student.push_to_hub("acme/student") == f"{constants.ENDPOINT}/acme/student"
    assert calls == [("acme/student", {"private": True, "exist_ok": True}), ("acme/student", set(FILES))]

    monkeypatch.setattr(Api, "create_repo", lambda *args, **options: (_ for _ in ()).throw(ValueError("no token")))
    with pytest.raises(
        UserError, match=r"acme/student: cannot be written on the hub \(no token\); give owner/name, and"
    ):
        student.push_to_hub("acme/student")


# --- rows of a data set -------------------------------------------------------------------------------------


def test_rows_are_ranked_without_their_whole_history(checkpoint, tiny_dataset):
    _, model = checkpoint
    rows = tiny_dataset.test  # histories of 6, one more than the window

    items, distances = rank_unseen(model, rows, np.array([2, 0]), count=4, key="k")

    for row, found, distance in zip((2, 0), items.tolist(), distances.tolist(), strict=True):
        history = rows.history(row).tolist()
        log_p = model(torch.tensor([history[-5:]]), torch.tensor([5]))[0].log_softmax(0)
        order = [i for i in log_p.argsort(descending=True).tolist() if i not in history][:4]
        assert found == order and distance == pytest.approx((-log_p[order]).tolist(), rel=1e-5)


def test_more_items_than_a_history_leaves(checkpoint, tiny_dataset):
    _, model = checkpoint
    with pytest.raises(UserError, match="distill.top_k=7: the longest history leaves 6 items; use at most 6"):
        rank_unseen(model, tiny_dataset.test, np.array([0]), count=7, key="distill.top_k")
