"""Rankings for the student, and the embeddings of the catalogue."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from src.core.errors import UserError
from src.teacher.export import Ranking, base_embeddings, rank_rows
from src.teacher.llm import load_llm
from src.teacher.recommender import FrozenRecommender, load_recommender

CPU = torch.device("cpu")
SEED, COUNT = 7, 4


@pytest.fixture
def generating(parts):
    export = replace(parts.config.export, method="generate")
    return replace(parts, config=replace(parts.config, export=export))


def rank(parts, index=None, batch_size: int = 3, count: int = COUNT) -> Ranking:
    parts.config.export.batch_size = batch_size
    rows = parts.dataset.train
    index = np.arange(len(rows)) if index is None else index
    return rank_rows(parts, rows, index, base_embeddings(parts, parts.dataset.titles), SEED, count)


# --- by likelihood ------------------------------------------------------------------------------------------


def test_likelihood_ranking_is_in_order_distinct_and_new(parts):
    ranking, rows = rank(parts), parts.dataset.train

    assert ranking.items.shape == ranking.distances.shape == (len(rows), COUNT)
    assert (np.diff(ranking.distances, axis=1) >= 0).all()
    for i, items in enumerate(ranking.items):
        assert len(set(items.tolist())) == COUNT
        assert not set(items.tolist()) & set(rows.history(i).tolist())
    assert ranking.valid.all()


def test_likelihood_ranking_is_minus_the_mean_log_probability(parts):
    """Each row again, alone, with one forward pass of the engine; the engine is tested in test_engine."""
    ranking, rows, builder = rank(parts), parts.dataset.train, parts.builder
    for i in (0, 11, len(rows) - 1):
        retrieved = parts.recommender.retrieve(rows, np.array([i]), 5)[0]
        assert set(ranking.items[i].tolist()) <= set(retrieved.tolist())
        shown = np.random.default_rng([SEED, i]).permutation(retrieved)
        prompt = builder.prompt(rows.history(i)[-3:], shown, 0, embed=True)
        with torch.no_grad():
            gates = parts.engine.lora.router(parts.recommender.users(rows, np.array([i])))
        total, mean = parts.engine.candidate_log_probs(
            builder.batch([prompt]), gates, [[builder.answer(int(item)) for item in shown]]
        )
        distance = -mean[0].numpy()
        best = np.argsort(distance)
        assert ranking.items[i].tolist() == shown[best][:COUNT].tolist()
        assert ranking.distances[i] == pytest.approx(distance[best][:COUNT], abs=1e-4)
        assert ranking.spread[i] == pytest.approx([distance.min(), distance.max()], abs=1e-4)
        assert ranking.log_prob[i] == pytest.approx(total[0, best[0]].item(), abs=1e-3)


def test_ranking_does_not_depend_on_the_batch(parts):
    index = np.array([5, 2, 17, 8])
    one, four = rank(parts, index, batch_size=1), rank(parts, index, batch_size=4)
    assert np.array_equal(one.items, four.items)
    np.testing.assert_allclose(one.distances, four.distances, atol=1e-4)
    assert np.array_equal(rank(parts).items[index], one.items)


def test_the_target_plays_no_part(parts):
    """Another target behind the same history gives the same ranking."""
    rows = parts.dataset.train
    items = rows.items.copy()
    changed = replace(rows, items=items)
    last = int(np.flatnonzero(rows.user == 0)[-1])
    items[rows.pos[last]] = (items[rows.pos[last]] + 1) % 24
    embeddings = base_embeddings(parts, parts.dataset.titles)

    first = rank_rows(parts, rows, np.array([last]), embeddings, SEED, COUNT)
    second = rank_rows(parts, changed, np.array([last]), embeddings, SEED, COUNT)

    assert rows.targets[last] != changed.targets[last]
    assert np.array_equal(first.items, second.items)


def test_confidences_by_arithmetic():
    ranking = Ranking(
        np.array([[3, 1], [0, 2]]),
        np.array([[1.0, 2.0], [4.0, 4.0]], dtype=np.float32),
        np.array([[1.0, 5.0], [4.0, 4.0]], dtype=np.float32),
        np.zeros(2, dtype=np.float32),
        np.ones(2, dtype=bool),
    )
    # (distance - smallest) / (largest - smallest) over everything ranked; 0 where all are equal.
    assert ranking.confidences("minmax").tolist() == [[0.0, 0.25], [0.0, 0.0]]
    assert ranking.confidences("raw").tolist() == [[1.0, 2.0], [4.0, 4.0]]


def test_minmax_confidences_lie_between_0_and_1(parts):
    ranking = rank(parts, count=5)
    confidences = ranking.confidences("minmax")
    assert ((confidences >= 0) & (confidences <= 1)).all()
    assert (confidences[:, 0] == 0).all()
    assert confidences[:, -1] == pytest.approx(np.ones(len(confidences)))  # all 5 candidates are kept


# --- by generation ------------------------------------------------------------------------------------------


def test_generated_answers_are_grounded_by_embedding_distance(generating):
    parts = generating
    titles = parts.dataset.titles
    said = [titles[3].upper(), f'"{titles[10]}"', "nothing of the sort"]
    parts.engine.generate = lambda batch, *args: (said[: len(batch.ids)], torch.arange(len(batch.ids)) * -1.0)

    ranking = rank(parts, np.array([0, 1, 2]), count=24)

    table = base_embeddings(parts, titles).numpy()
    answers = base_embeddings(parts, [said[0], titles[10], said[2]]).numpy()
    for i in range(3):
        distance = np.sqrt(((table - answers[i]) ** 2).sum(1))
        np.testing.assert_allclose(ranking.distances[i], np.sort(distance), atol=1e-3)
        np.testing.assert_allclose(distance[ranking.items[i]], ranking.distances[i], atol=1e-3)
        np.testing.assert_allclose(ranking.spread[i], [distance.min(), distance.max()], atol=1e-3)
    assert ranking.items[1, 0] == 10  # the quotes are not part of the title
    assert ranking.log_prob.tolist() == [0.0, -1.0, -2.0]
    assert ranking.valid[[0, 2]].tolist() == [True, False]
    assert ((ranking.confidences("minmax") >= 0) & (ranking.confidences("minmax") <= 1)).all()


def test_a_quoted_title_is_a_valid_answer(generating):
    parts = generating
    parts.engine.generate = lambda batch, *args: ([f'"{parts.dataset.titles[10]}"'], torch.zeros(1))
    assert rank(parts, np.array([0])).valid.tolist() == [True]


def test_generation_runs(generating):
    ranking = rank(generating, np.array([0, 5]))
    assert ranking.items.shape == (2, COUNT)
    assert (np.diff(ranking.distances, axis=1) >= 0).all()
    assert (ranking.log_prob < 0).all()


# --- embeddings ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_embeddings_are_the_last_hidden_state_at_the_last_token(parts, llm_folder):
    tokenizer, llm = load_llm(llm_folder, "float32", CPU)  # without any adapter

    table = base_embeddings(parts, parts.dataset.titles)

    assert (table.shape, table.dtype) == ((24, 16), torch.float32)
    for row, title in zip(table, parts.dataset.titles, strict=True):
        ids = tokenizer(title).input_ids
        assert ids[0] == tokenizer.bos_token_id
        hidden = llm(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(row, hidden[0, -1], atol=1e-5, rtol=0)


def test_embeddings_do_not_depend_on_the_batch(parts):
    titles = parts.dataset.titles
    expected = base_embeddings(parts, titles)
    parts.config.export.batch_size = 1
    torch.testing.assert_close(base_embeddings(parts, titles), expected, atol=1e-5, rtol=0)


def test_the_adapter_works_again_after_embedding(parts):
    layer = parts.engine.lora.llm.model.layers[0].self_attn.q_proj
    x = torch.ones(1, 1, 16)
    with parts.engine.lora.gated(torch.ones(1, 2)):
        before = layer(x)
        base_embeddings(parts, ["Stone"])
        assert torch.equal(layer(x), before)


# --- the frozen recommender ---------------------------------------------------------------------------------


def test_retrieval_is_the_best_items_outside_the_history(recommender, dataset):
    rows = dataset.test
    history, length, _ = rows.windows(6, 24)
    with torch.no_grad():
        scores = recommender.model(torch.from_numpy(history), torch.from_numpy(length)).numpy()

    found = recommender.retrieve(rows, np.arange(len(rows)), 5)

    for i in range(len(rows)):
        seen = set(rows.history(i).tolist())
        assert found[i].tolist() == [item for item in np.argsort(-scores[i]).tolist() if item not in seen][:5]


def test_retrieval_never_falls_back_on_the_history(recommender, dataset):
    """Test histories hold 6 of 24 items: 18 are left, 19 cannot be had."""
    seen = [len(set(dataset.test.history(i).tolist())) for i in range(len(dataset.test))]
    most = 24 - max(seen)
    recommender.retrieve(dataset.test, np.arange(6), most)
    with pytest.raises(UserError, match=f"teacher.num_candidates={most + 1}: .* at most {most}"):
        recommender.retrieve(dataset.test, np.arange(6), most + 1)


def test_users_are_the_encodings_and_items_the_table(recommender, dataset):
    history, length, _ = dataset.test.windows(6, 24)
    with torch.no_grad():
        expected = recommender.model.encode(torch.from_numpy(history), torch.from_numpy(length))
    assert torch.equal(recommender.users(dataset.test, np.arange(6)), expected)
    assert torch.equal(recommender.item_table, recommender.model.item_embeddings.weight[:24])
    assert not any(p.requires_grad for p in recommender.model.parameters())
    assert not recommender.model.training


def test_a_recommender_of_another_dataset_is_refused(recommender, dataset, make_dataset, tmp_path):
    from src.student.checkpoint import CheckpointInfo, save_checkpoint

    model = recommender.model
    info = CheckpointInfo("toy", dataset.fingerprint, 7, "c" * 40, 1, "mrr", 0.5)
    save_checkpoint(tmp_path, model, model.state_dict(), info)

    loaded = load_recommender(tmp_path, dataset, CPU)
    assert isinstance(loaded, FrozenRecommender)
    assert torch.equal(loaded.item_table, recommender.item_table)
    other = make_dataset([[0, 1, 2, 3]], num_items=24, name="other")
    with pytest.raises(
        UserError, match=r"a recommender of dataset toy \(.*\), this run uses other .*rec_model_path null"
    ):
        load_recommender(tmp_path, other, CPU)
