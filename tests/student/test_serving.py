"""What a checkpoint recommends, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from src.core.errors import UserError
from src.student.checkpoint import CheckpointInfo, save_checkpoint
from src.student.config import ModelConfig
from src.student.models import build_model
from src.student.serving import rank_unseen, recommend


@pytest.fixture
def checkpoint(fill_with_ramp, tiny_dataset, tmp_path):
    model = fill_with_ramp(build_model(ModelConfig("sasrec", 12, 8, 8, 5, 0.1)))
    info = CheckpointInfo("tiny", tiny_dataset.fingerprint, 1, "abc", 1, "ndcg@10", 0.5)
    save_checkpoint(tmp_path, model, model.state_dict(), info)
    return tmp_path, model.eval()


def test_the_best_items_by_score(checkpoint, tiny_dataset):
    folder, model = checkpoint
    ids, titles = tiny_dataset.item_ids, tiny_dataset.titles
    history = [3, 1, 4, 1, 5, 9]  # longer than the window of 5

    best = recommend(folder, tiny_dataset, [ids[3], titles[1], ids[4], titles[1], ids[5], ids[9]], top_k=7)

    scores = model(torch.tensor([history[-5:]]), torch.tensor([5]))[0]
    order = [i for i in scores.argsort(descending=True).tolist() if i not in history][:7]
    assert [(r.item_id, r.title) for r in best] == [(ids[i], titles[i]) for i in order]
    assert [r.score for r in best] == pytest.approx(scores[order].tolist())


def test_the_history_may_be_shown(checkpoint, tiny_dataset):
    folder, _ = checkpoint
    name = tiny_dataset.item_ids[3]

    hidden = recommend(folder, tiny_dataset, [name], top_k=11)
    shown = recommend(folder, tiny_dataset, [name], top_k=12, show_history=True)

    assert {r.item_id for r in shown} - {r.item_id for r in hidden} == {name}
    assert [r for r in shown if r.item_id != name] == hidden


def test_wrong_questions(checkpoint, tiny_dataset):
    folder, _ = checkpoint
    name = tiny_dataset.item_ids[3]
    with pytest.raises(UserError, match=r"recommend.history=\[\]: must name at least one item"):
        recommend(folder, tiny_dataset, [], top_k=3)
    with pytest.raises(
        UserError, match="recommend.history: 'Titel 3' is neither a raw item id nor a title of tiny"
    ) as e:
        recommend(folder, tiny_dataset, ["Titel 3"], top_k=3)
    assert "did you mean 'Title 3'" in str(e.value)
    for top_k in (0, 12):
        with pytest.raises(UserError, match=f"recommend.top_k={top_k}: must be from 1 to 11, the items of tiny that"):
            recommend(folder, tiny_dataset, [name], top_k=top_k)
    with pytest.raises(UserError, match="trained on tiny .* the dataset given is other"):
        recommend(folder, replace(tiny_dataset, name="other", fingerprint="0" * 64), [name], top_k=3)


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
