"""Teachers that are no LLM: the frozen recommender itself, and noise."""

from types import SimpleNamespace

import pytest
import torch

from src.core.errors import UserError
from src.distill.control_teachers import random_teacher, recommender_teacher
from src.distill.data_bridge import TeacherOutputs
from src.student.checkpoint import CheckpointInfo, save_checkpoint
from src.student.config import ModelConfig
from src.student.evaluator import history_mask
from src.student.models import build_model

CPU = torch.device("cpu")


@pytest.fixture
def recommender(tiny_dataset, fill_with_ramp, tmp_path):
    model = fill_with_ramp(build_model(ModelConfig("sasrec", tiny_dataset.num_items, 8, 8, 5, 0.0)))
    info = CheckpointInfo("tiny", tiny_dataset.fingerprint, 1, "c", 1, "mrr", 0.0)
    save_checkpoint(tmp_path / "recommender", model, model.state_dict(), info)
    return SimpleNamespace(model=model.eval(), folder=tmp_path / "recommender")


@pytest.fixture
def teach(recommender, tiny_dataset):
    def run(dataset=tiny_dataset, top_k=3, per_sequence=False) -> TeacherOutputs:
        return recommender_teacher(recommender.folder, dataset, top_k=top_k, per_sequence=per_sequence, device=CPU)

    return run


def test_the_recommender_teaches_its_own_ranking_and_items(recommender, teach, tiny_dataset) -> None:
    rows, outputs = tiny_dataset.train, teach()
    history, length, _ = rows.windows(5, tiny_dataset.pad_id)
    scores = recommender.model(torch.from_numpy(history), torch.from_numpy(length))
    scores[history_mask(rows, tiny_dataset.num_items)] = float("-inf")
    expected = scores.topk(3)
    assert torch.equal(outputs.ranking, expected.indices)
    gaps = expected.values[:, :1] - expected.values  # of scores: the normalisation of a row cancels
    assert torch.allclose(outputs.confidence, gaps / gaps[:, -1:], atol=1e-5)
    assert torch.equal(outputs.embeddings, recommender.model.item_embeddings.weight[:-1])

    per_row = teach(per_sequence=True).confidence
    log_p = recommender.model(torch.from_numpy(history), torch.from_numpy(length)).log_softmax(1)
    assert torch.allclose(per_row, -log_p.gather(1, expected.indices[:, :1]), atol=1e-5)


def test_a_recommender_of_other_data_does_not_teach(teach, make_dataset) -> None:
    other = make_dataset([[0, 1, 2, 3, 4]], num_items=12, name="other")
    with pytest.raises(UserError, match=r"distill.teacher=recommender=.*: trained on tiny .* this run uses other"):
        teach(other)


def test_more_items_than_a_history_leaves_are_refused_by_name(teach) -> None:
    # Training histories have up to 4 of the 12 items.
    with pytest.raises(UserError, match="distill.top_k=9: the longest history leaves 8 items; use at most 8"):
        teach(top_k=9)


def test_a_random_teacher_has_the_shapes_and_nothing_else() -> None:
    like = TeacherOutputs(
        embeddings=3 * torch.eye(50, 40),
        ranking=torch.zeros(30, 4).long(),
        confidence=torch.rand(30, 4),
        manifest_sha256="m" * 64,
    )
    one, again, other = (random_teacher(like, 50, seed) for seed in (1, 1, 2))
    assert one.embeddings.shape == (50, 40) and one.embeddings.std() == pytest.approx(like.embeddings.std(), rel=0.1)
    assert one.ranking.shape == (30, 4) and all(len(set(row)) == 4 for row in one.ranking.tolist())
    assert torch.equal(one.confidence, like.confidence) and one.manifest_sha256 is None
    assert torch.equal(one.ranking, again.ranking) and torch.equal(one.embeddings, again.embeddings)
    assert not torch.equal(one.ranking, other.ranking)
    assert random_teacher(TeacherOutputs(), 50, 1) == TeacherOutputs()
