"""Control teachers: the frozen recommender itself, the words of the titles, other items' texts, and noise."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from src.core.errors import UserError
from src.core.metrics import MetricsConfig
from src.distill.blending import blended_ranking, recommended
from src.distill.control_teachers import (
    load_recommenders,
    random_teacher,
    recommender_embeddings,
    recommender_teacher,
    shuffled_teacher,
    title_embeddings,
)
from src.distill.data_bridge import TeacherOutputs
from src.student.checkpoint import CheckpointInfo, save_checkpoint
from src.student.config import ModelConfig
from src.student.evaluator import history_mask
from src.student.models import build_model
from src.student.references import Blend, Transitions, similarity_to_history, title_vectors

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
        models = load_recommenders([recommender.folder], dataset, CPU)
        return recommender_teacher(models, dataset, top_k=top_k, per_sequence=per_sequence)

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
    embeddings = recommender_embeddings(load_recommenders([recommender.folder], tiny_dataset, CPU))
    assert torch.equal(embeddings, recommender.model.item_embeddings.weight[:-1])

    per_row = teach(per_sequence=True).confidence
    log_p = recommender.model(torch.from_numpy(history), torch.from_numpy(length)).log_softmax(1)
    assert torch.allclose(per_row, -log_p.gather(1, expected.indices[:, :1]), atol=1e-5)


def test_several_recommenders_teach_their_mean_probabilities(recommender, tiny_dataset) -> None:
    torch.manual_seed(7)
    other = build_model(ModelConfig("sasrec", tiny_dataset.num_items, 8, 8, 3, 0.0)).eval()  # of a shorter window
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    rows = tiny_dataset.train
    probabilities = []
    for model, length in ((recommender.model, 5), (other, 3)):
        history, lengths, _ = rows.windows(length, tiny_dataset.pad_id)
        with torch.no_grad():
            probabilities.append(model(torch.from_numpy(history), torch.from_numpy(lengths)).softmax(1))
    mean = sum(probabilities) / 2
    free = mean.masked_fill(history_mask(rows, tiny_dataset.num_items), 0.0)
    outputs = recommender_teacher([recommender.model, other], tiny_dataset, top_k=3, per_sequence=True)
    assert torch.equal(outputs.ranking, free.topk(3).indices)
    assert torch.allclose(outputs.confidence, -free.amax(1, keepdim=True).log(), atol=1e-5)
    alone = [
        recommender_teacher([model], tiny_dataset, top_k=3, per_sequence=True) for model in (recommender.model, other)
    ]
    assert all(not torch.equal(one.ranking, outputs.ranking) for one in alone)

    tables = recommender_embeddings([recommender.model, other])
    assert torch.equal(tables, torch.cat([m.item_embeddings.weight[:-1] for m in (recommender.model, other)], 1))


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
    some = replace(like, known=torch.arange(30) < 7)  # an export of some rows
    assert torch.equal(random_teacher(some, 50, 1).known, some.known)


# --- words of the titles ------------------------------------------------------------------------------------

PAIRS = [word for word in "ace bat cup dog".split() for _ in range(2)]  # items 2 i and 2 i + 1 have one title


def test_title_embeddings_have_the_cosines_of_the_words(make_dataset) -> None:
    titles = ["red lamp", "red chair", "blue lamp", "blue chair"]
    embeddings = title_embeddings(make_dataset([[0, 1, 2, 3]], num_items=4, titles=titles))
    assert embeddings.shape == (4, 3) and embeddings.dtype == torch.float32  # of four words one is what is left
    cosines = torch.tensor([[1, 0.5, 0.5, 0], [0.5, 1, 0, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1]])
    assert torch.allclose(embeddings @ embeddings.T, cosines, atol=1e-5)


def test_titles_without_a_word_in_common_do_not_teach(tiny_dataset) -> None:
    with pytest.raises(UserError, match="distill.teacher=tfidf: no word stands in two titles of tiny and in at most"):
        title_embeddings(tiny_dataset)  # Title 0, Title 1, ...


@pytest.fixture
def walks(make_dataset):
    """Users who walk over the even items; the last two items are the validation's and the test's."""
    return make_dataset([[0, 2, 4, 5, 1], [4, 6, 0, 1, 5], [2, 4, 6, 7, 1]], num_items=8, titles=PAIRS)


def title_ranking(dataset, top_k, logger, per_sequence=False) -> TeacherOutputs:
    vectors = title_vectors(dataset)
    settings = {"weight": None, "metrics": MetricsConfig(), "top_k": top_k, "per_sequence": per_sequence}
    return blended_ranking(dataset, similarity_to_history(vectors), **settings, logger=logger)


def test_titles_and_chain_rank_what_is_not_in_the_history(walks, logger) -> None:
    metrics, rows = MetricsConfig(), walks.train
    outputs = title_ranking(walks, 3, logger)
    scores = Blend.of(walks, metrics, similarity_to_history(title_vectors(walks))).scores(rows, leave_one_out=True)
    free = scores.masked_fill(history_mask(rows, 8), float("-inf"))
    assert outputs.embeddings is None and outputs.ranking.shape == outputs.confidence.shape == (len(rows), 3)
    best = free.gather(1, outputs.ranking)
    assert torch.equal(best, free.topk(3).values)
    assert torch.allclose(
        outputs.confidence, (best[:, :1] - best) / (best[:, :1] - best[:, -1:]).clamp(min=1e-12), atol=1e-6
    )

    per_row = title_ranking(walks, 3, logger, per_sequence=True).confidence
    assert torch.allclose(per_row, scores.logsumexp(1, keepdim=True) - best[:, :1])


def test_a_recommender_and_the_chain_rank_by_the_sum_of_their_scores(recommender, tiny_dataset, logger) -> None:
    rows = tiny_dataset.train
    settings = {"metrics": MetricsConfig(), "top_k": 3, "per_sequence": False, "logger": logger}
    outputs = blended_ranking(tiny_dataset, recommended([recommender.model]), weight=0.25, **settings)
    history, length, _ = rows.windows(5, tiny_dataset.pad_id)
    with torch.no_grad():
        log_p = recommender.model(torch.from_numpy(history), torch.from_numpy(length)).log_softmax(1)
    chain = torch.from_numpy(Transitions.of(tiny_dataset).scores(rows, leave_one_out=True)).float()
    free = (chain + 0.25 * log_p).masked_fill(history_mask(rows, tiny_dataset.num_items), float("-inf"))
    assert torch.allclose(free.gather(1, outputs.ranking), free.topk(3).values, atol=1e-6)

    chosen = Blend.of(tiny_dataset, MetricsConfig(), recommended([recommender.model]))
    assert chosen.num_tried == 7 and chosen.description(MetricsConfig()).startswith("recommender of weight ")
    assert "decay" not in chosen.description(MetricsConfig())


def test_titles_do_not_see_the_target(make_dataset, logger) -> None:
    """Each training row has a transition of its own, which nothing else tells; it would stand first."""
    dataset = make_dataset([[0, 5, 1, 2], [6, 3, 7, 2]], num_items=8, titles=PAIRS)
    ranking = title_ranking(dataset, 1, logger).ranking
    assert dataset.train.targets.tolist() == [5, 3]
    assert ranking.tolist() == [[1], [7]]  # the other item of the same title


# --- shuffled titles ----------------------------------------------------------------------------------------


def test_every_item_gets_the_text_of_another_in_one_circle() -> None:
    like = TeacherOutputs(embeddings=torch.eye(7), manifest_sha256="m" * 64)
    text = shuffled_teacher(like, 7, 1).embeddings.argmax(1).tolist()  # item -> whose text it has
    visited = [0]
    while text[visited[-1]] != 0:
        visited.append(text[visited[-1]])
    assert sorted(visited) == list(range(7))
    assert shuffled_teacher(like, 7, 1).embeddings.argmax(1).tolist() == text
    assert shuffled_teacher(like, 7, 2).embeddings.argmax(1).tolist() != text
    assert shuffled_teacher(like, 7, 1).manifest_sha256 is None


def test_a_shuffled_ranking_names_the_items_that_have_the_texts_now() -> None:
    ranking = torch.tensor([[3, 0, 6], [1, 2, 5]])
    like = TeacherOutputs(
        embeddings=torch.arange(14.0).view(7, 2),
        ranking=ranking,
        confidence=torch.tensor([[0.0, 0.3, 1.0], [0.0, 0.1, 1.0]]),
        known=torch.tensor([True, False]),
    )
    shuffled = shuffled_teacher(like, 7, 1)
    assert torch.equal(shuffled.embeddings[shuffled.ranking], like.embeddings[ranking])
    assert not (shuffled.ranking == ranking).any()
    assert torch.equal(shuffled.confidence, like.confidence) and torch.equal(shuffled.known, like.known)
    assert torch.equal(shuffled_teacher(replace(like, embeddings=None), 7, 1).ranking, shuffled.ranking)


def test_one_embedding_for_all_cannot_be_shuffled() -> None:
    with pytest.raises(UserError, match="distill.teacher=shuffled: the teacher has one embedding for all items"):
        shuffled_teacher(TeacherOutputs(embeddings=torch.ones(5, 3)), 5, 1)
