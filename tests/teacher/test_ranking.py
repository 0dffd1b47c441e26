"""Rankings for the student, and the embeddings of the catalogue."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from src.core.errors import UserError
from src.teacher.adapter.prompted_lm import PromptedLM
from src.teacher.config import ExportSettings
from src.teacher.llm.load import load_llm
from src.teacher.recommender import FrozenRecommender, load_recommender
from src.teacher.scoring.inference import candidate_items
from src.teacher.scoring.ranking import Ranking, base_embeddings, encode_answers, rank_rows, score_rows, to_ranking

CPU = torch.device("cpu")
SEED, COUNT = 7, 4


@pytest.fixture
def generating(teacher, with_export):
    return with_export(teacher, method="generate")


def rank(teacher, index=None, *, count: int = COUNT, candidates: str = "retrieval") -> Ranking:
    rows, embeddings = teacher.dataset.train, base_embeddings(teacher, teacher.dataset.titles)
    index = np.arange(len(rows)) if index is None else index
    return rank_rows(teacher, rows, index, embeddings=embeddings, seed=SEED, candidates=candidates, count=count)


# --- by likelihood ------------------------------------------------------------------------------------------


def test_likelihood_ranking_is_in_order_distinct_and_new(teacher):
    ranking, rows = rank(teacher), teacher.dataset.train

    assert ranking.items.shape == ranking.distances.shape == (len(rows), COUNT)
    assert (np.diff(ranking.distances, axis=1) >= 0).all()
    for i, items in enumerate(ranking.items):
        assert len(set(items.tolist())) == COUNT
        assert not set(items.tolist()) & set(rows.history(i).tolist())
    assert ranking.valid.all()


def test_likelihood_ranking_is_minus_the_mean_log_probability(teacher):
    """Each row again, alone, with one forward pass of the LM, which is tested in test_prompted_lm."""
    ranking, rows, builder = rank(teacher), teacher.dataset.train, teacher.builder
    for i in (0, 11, len(rows) - 1):
        retrieved = teacher.recommender.retrieve(rows, np.array([i]), 5)[0]
        assert set(ranking.items[i].tolist()) <= set(retrieved.tolist())
        shown = np.random.default_rng([SEED, i]).permutation(retrieved)
        prompt = builder.prompt(rows.history(i)[-3:], shown, template=0, embed=True)
        with torch.no_grad():
            gates = teacher.lm.lora.router(teacher.recommender.users(rows, np.array([i])))
        total, mean = teacher.lm.candidate_log_probs(
            builder.batch([prompt]), gates, [[builder.answer(int(item)) for item in shown]]
        )
        distance = -mean[0].numpy()
        best = np.argsort(distance)
        assert ranking.items[i].tolist() == shown[best][:COUNT].tolist()
        assert ranking.distances[i] == pytest.approx(distance[best][:COUNT], abs=1e-4)
        assert ranking.spread[i] == pytest.approx([distance.min(), distance.max()], abs=1e-4)
        assert ranking.log_prob[i] == pytest.approx(total[0, best[0]].item(), abs=1e-3)


def test_ranking_does_not_depend_on_the_batch(teacher, with_export):
    index = np.array([5, 2, 17, 8])
    one, four = (rank(with_export(teacher, batch_tokens=tokens), index) for tokens in (1, 4000))
    assert np.array_equal(one.items, four.items)
    np.testing.assert_allclose(one.distances, four.distances, atol=1e-4)
    assert np.array_equal(rank(teacher).items[index], one.items)


def test_the_target_plays_no_part(teacher):
    """Another target behind the same history gives the same ranking."""
    rows = teacher.dataset.train
    items = rows.items.copy()
    changed = replace(rows, items=items)
    last = int(np.flatnonzero(rows.user == 0)[-1])
    items[rows.pos[last]] = (items[rows.pos[last]] + 1) % 24
    embeddings = base_embeddings(teacher, teacher.dataset.titles)

    first = rank_rows(
        teacher, rows, np.array([last]), embeddings=embeddings, seed=SEED, candidates="retrieval", count=COUNT
    )
    second = rank_rows(
        teacher, changed, np.array([last]), embeddings=embeddings, seed=SEED, candidates="retrieval", count=COUNT
    )

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


def test_minmax_confidences_lie_between_0_and_1(teacher):
    ranking = rank(teacher, count=5)
    confidences = ranking.confidences("minmax")
    assert ((confidences >= 0) & (confidences <= 1)).all()
    assert (confidences[:, 0] == 0).all()
    assert confidences[:, -1] == pytest.approx(np.ones(len(confidences)))  # all 5 candidates are kept


# --- by generation ------------------------------------------------------------------------------------------


def scores_of(*answers: str) -> dict[str, np.ndarray]:
    return {"answer": np.array(answers), "log_prob": -np.arange(len(answers), dtype=np.float32)}


def test_generated_answers_are_grounded_by_embedding_distance(generating):
    teacher = generating
    titles = teacher.dataset.titles
    said = [titles[3].upper(), titles[10], "nothing of the sort"]
    embeddings = base_embeddings(teacher, titles)

    ranking = to_ranking(teacher, scores_of(*said), embeddings=embeddings, count=24)

    table, answers = embeddings.numpy(), base_embeddings(teacher, said).numpy()
    for i in range(3):
        distance = np.sqrt(((table - answers[i]) ** 2).sum(1))
        np.testing.assert_allclose(ranking.distances[i], np.sort(distance), atol=1e-3)
        np.testing.assert_allclose(distance[ranking.items[i]], ranking.distances[i], atol=1e-3)
        np.testing.assert_allclose(ranking.spread[i], [distance.min(), distance.max()], atol=1e-3)
    assert ranking.items[1, 0] == 10
    assert ranking.log_prob.tolist() == [0.0, -1.0, -2.0]
    assert ranking.valid.tolist() == [True, True, False]
    assert ((ranking.confidences("minmax") >= 0) & (ranking.confidences("minmax") <= 1)).all()


def test_distances_survive_what_all_embeddings_have_in_common(generating):
    """Squares of 1e4 leave nothing of differences of 0.1 in float32: |1e4 - (1e4 + 0.1 k)|."""
    embeddings = torch.full((24, 16), 1e4)
    embeddings[:, 0] += torch.arange(24) * 0.125
    ranking = to_ranking(generating, scores_of(generating.dataset.titles[2]), embeddings=embeddings, count=3)
    assert ranking.items[0, 0] == 2
    assert ranking.distances[0] == pytest.approx([0.0, 0.125, 0.125], abs=1e-4)


def test_an_answer_is_encoded_once_and_a_title_never(generating, monkeypatch):
    teacher, titles = generating, generating.dataset.titles
    embeddings = base_embeddings(teacher, titles)
    encoded: list[list[str]] = []

    def recorded(teacher, texts):
        encoded.append(texts)
        return base_embeddings(teacher, texts)

    monkeypatch.setattr("src.teacher.scoring.ranking.base_embeddings", recorded)
    said = [titles[5], "Stoned", titles[0], "Stoned", titles[5], "A Lamp"]
    ranking = to_ranking(teacher, scores_of(*said), embeddings=embeddings, count=24)

    assert encoded == [["A Lamp", "Stoned"]]
    assert np.array_equal(ranking.items[[1, 0]], ranking.items[[3, 4]])
    torch.testing.assert_close(encode_answers(teacher, said[:1], embeddings), base_embeddings(teacher, said[:1]))


def test_a_quoted_title_is_a_valid_answer(generating):
    teacher = generating
    teacher.lm.generate = lambda batch, gates, **options: ([f'"{teacher.dataset.titles[10]}"'], torch.zeros(1))
    assert rank(teacher, np.array([0])).valid.tolist() == [True]


def test_generation_does_not_depend_on_the_batch(generating, make_lora, with_export, monkeypatch):
    """An adapter so large that answers differ from row to row; batches of one row against all rows in one."""
    monkeypatch.setattr("src.teacher.adapter.prompted_lm._MAX_ANSWER_TOKENS", 8)  # an untrained LM never stops
    lm = PromptedLM(make_lora(scale=2.5), generating.recommender.item_table)
    teacher = replace(generating, lm=lm)
    scores = []
    for tokens in (1, 100_000):
        changed, rows, every = with_export(teacher, batch_tokens=tokens), teacher.dataset.train, np.arange(24)
        scores.append(score_rows(changed, rows, every, seed=SEED, candidates="retrieval", advance=lambda count: None))

    assert len(set(scores[0]["answer"])) > 3
    assert scores[0]["answer"].tolist() == scores[1]["answer"].tolist()
    np.testing.assert_allclose(scores[0]["log_prob"], scores[1]["log_prob"], atol=1e-3)
    embeddings = base_embeddings(teacher, teacher.dataset.titles)
    one, all_rows = (to_ranking(teacher, s, embeddings=embeddings, count=COUNT) for s in scores)
    assert np.array_equal(one.items, all_rows.items)
    assert (np.diff(one.distances, axis=1) >= 0).all()
    assert (one.log_prob < 0).all()


def test_batches_keep_to_their_tokens(teacher, with_export, monkeypatch):
    sizes: list[int] = []
    score = teacher.lm.candidate_log_probs

    def recorded(batch, gates, answers):
        answer_tokens = max(sum(map(len, row)) for row in answers)
        sizes.append(len(answers) * (batch.ids.shape[1] + answer_tokens))
        return score(batch, gates, answers)

    monkeypatch.setattr(teacher.lm, "candidate_log_probs", recorded)
    rank(with_export(teacher, batch_tokens=900))
    assert max(sizes) <= 900
    assert 1 < len(sizes) < 24


# --- candidates ---------------------------------------------------------------------------------------------


def test_sampled_candidates_hold_the_target_and_retrieved_ones_need_not(teacher):
    rows, index = teacher.dataset.train, np.arange(24)
    sampled = candidate_items(teacher, rows, index, seed=SEED, kind="sampled")
    retrieved = candidate_items(teacher, rows, index, seed=SEED, kind="retrieval")
    assert sampled.shape == retrieved.shape == (24, 5)
    assert (sampled == rows.targets[:, None]).sum(1).tolist() == [1] * 24
    assert not (retrieved == rows.targets[:, None]).any(1).all()
    assert set(rank(teacher, candidates="sampled", count=5).items[7].tolist()) == set(sampled[7].tolist())


def test_without_candidates_the_prompt_is_an_open_question(generating):
    teacher, seen = generating, []
    assert candidate_items(teacher, teacher.dataset.train, np.arange(3), seed=SEED, kind="none").shape == (3, 0)
    generate = teacher.lm.generate

    def recorded(batch, gates, **options):
        seen.extend(teacher.builder.tokenizer.batch_decode(batch.ids))
        return generate(batch, gates, **options)

    teacher.lm.generate = recorded
    rank(teacher, np.array([4, 9]), candidates="none")
    assert len(seen) == 2
    assert all("[HistoryEmb]" in text and "[CansEmb]" not in text and "candidates" not in text for text in seen)


def test_likelihood_needs_candidates():
    ExportSettings(method="generate", candidates="none")
    with pytest.raises(
        UserError, match="candidates='none': must be one of retrieval, sampled with .*=likelihood, which ranks what"
    ):
        ExportSettings(candidates="none")


def test_too_little_gpu_memory_says_what_to_lower(teacher, with_export, monkeypatch):
    def full(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(teacher.lm, "candidate_log_probs", full)
    with pytest.raises(UserError, match=r"teacher.export.batch_tokens=9000: 24 rows of up to \d+ tokens .*; lower it"):
        rank(with_export(teacher, batch_tokens=9000))


# --- embeddings ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_embeddings_are_the_last_hidden_state_at_the_last_token(teacher, llm_folder):
    tokenizer, llm = load_llm(llm_folder, "float32", CPU)  # without any adapter

    table = base_embeddings(teacher, teacher.dataset.titles)

    assert (table.shape, table.dtype) == ((24, 16), torch.float32)
    for row, title in zip(table, teacher.dataset.titles, strict=True):
        ids = tokenizer(title).input_ids
        assert ids[0] == tokenizer.bos_token_id
        hidden = llm(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(row, hidden[0, -1], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("layer", [-1, 3, 1, 0, -4])
def test_embeddings_of_a_layer_within_a_wording(teacher, with_export, llm_folder, pooling, layer):
    """The wording is read, but not averaged."""
    tokenizer, llm = load_llm(llm_folder, "float32", CPU)
    reading = {"embedding_pooling": pooling, "embedding_layer": layer, "embedding_text": "a film: {title} . a word"}
    reading |= {"batch_tokens": 60}

    table = base_embeddings(with_export(teacher, **reading), teacher.dataset.titles)

    before, after = (len(tokenizer(text, add_special_tokens=False).input_ids) for text in ("a film:", ". a word"))
    for row, title in zip(table, teacher.dataset.titles, strict=True):
        ids = tokenizer(f"a film: {title} . a word").input_ids
        hidden = llm(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
        own = slice(1 + before, len(ids) - after)
        assert tokenizer.decode(ids[own]).strip() == title
        torch.testing.assert_close(row, hidden[own].mean(0) if pooling == "mean" else hidden[-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_do_not_depend_on_the_batch(teacher, with_export, pooling):
    titles, teacher = teacher.dataset.titles, with_export(teacher, embedding_pooling=pooling)
    alone = base_embeddings(with_export(teacher, batch_tokens=1), titles)
    torch.testing.assert_close(alone, base_embeddings(teacher, titles), atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_average_leaves_the_bos_out_unless_there_is_nothing_else(teacher, with_export, llm_folder):
    tokenizer, llm = load_llm(llm_folder, "float32", CPU)
    table = base_embeddings(with_export(teacher, embedding_pooling="mean"), ["The Long Road (2)", ""])
    hidden = llm.model(torch.tensor([tokenizer("The Long Road (2)").input_ids])).last_hidden_state[0]
    torch.testing.assert_close(table[0], hidden[1:].mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(table[1], hidden[0], atol=1e-5, rtol=0)  # what stands before


def test_the_adapter_works_again_after_embedding(teacher):
    layer = teacher.lm.lora.llm.model.layers[0].self_attn.q_proj
    x = torch.ones(1, 1, 16)
    with teacher.lm.lora.gated(torch.ones(1, 2)):
        before = layer(x)
        base_embeddings(teacher, ["Stone"])
        assert torch.equal(layer(x), before)


# --- the frozen recommender ---------------------------------------------------------------------------------


def test_a_large_catalogues_candidates_are_found_for_few_rows_at_a_time(teacher, dataset, monkeypatch):
    """Room for the scores of two rows, or of less than one."""
    rows, index = dataset.train, np.arange(5)
    whole = candidate_items(teacher, rows, index, seed=SEED, kind="retrieval")
    original, asked = FrozenRecommender.retrieve, []

    def counted(self, rows, chunk, count):
        asked.append(len(chunk))
        return original(self, rows, chunk, count)

    monkeypatch.setattr(FrozenRecommender, "retrieve", counted)
    for room, expected in ((2.5, [2, 2, 1]), (0.5, [1] * 5)):
        monkeypatch.setattr("src.teacher.scoring.inference._SCORES_AT_ONCE", int(room * dataset.num_items))
        assert candidate_items(teacher, rows, index, seed=SEED, kind="retrieval").tolist() == whole.tolist()
        assert asked == expected
        asked.clear()


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
