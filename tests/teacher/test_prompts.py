"""Prompts: the same tokens as the whole text, markers where items are, labels on the answer only."""

import io
import logging
import shutil

import numpy as np
import pytest
import sentencepiece
import torch

from src.core.errors import UserError
from src.core.logging import LOGGER_NAME
from src.teacher.llm.load import load_llm
from src.teacher.prompt.builder import IGNORED, PromptBuilder
from src.teacher.prompt.wording import CANDIDATE_MARKER, HISTORY_MARKER, MARKERS, PLACEHOLDER, read_wording

HISTORY, CANDIDATES = np.array([2, 9, 4, 7]), np.array([1, 8, 20, 23, 11])  # every kind of title


@pytest.fixture
def marker_ids(builder) -> dict[str, int]:
    return dict(zip(MARKERS, builder.tokenizer.convert_tokens_to_ids(list(MARKERS)), strict=True))


@pytest.mark.parametrize("name", ["default", "movie"])
@pytest.mark.parametrize("embed", [True, False])
@pytest.mark.parametrize("history", [HISTORY, HISTORY[:1]], ids=["long", "short"])
def test_cached_pieces_are_the_tokens_of_the_whole_text(builder, dataset, name, embed, history):
    builder = PromptBuilder(builder.tokenizer, dataset.titles, read_wording(name))
    for template in range(3):
        prompt = builder.prompt(history, CANDIDATES, template=template, embed=embed)
        assert (
            prompt.ids == builder.tokenizer(builder.text(history, CANDIDATES, template=template, embed=embed)).input_ids
        )
        assert prompt.ids[0] == builder.tokenizer.bos_token_id
        assert prompt.ids.count(builder.bos_id) == 1


@pytest.fixture
def strict_tokenizer(llm_folder, dataset, tmp_path):
    """As LLaMA-2's own, and unlike the tiny one, it keeps every blank it is given."""
    folder = shutil.copytree(llm_folder, tmp_path / "llm")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(dataset.titles + read_wording("movie").templates),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    for name in ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    return load_llm(folder, "float32", torch.device("cpu"))[0]


@pytest.mark.parametrize("template", range(3))
@pytest.mark.parametrize("embed", [True, False])
def test_cached_pieces_with_a_tokenizer_that_keeps_blanks(strict_tokenizer, dataset, template, embed):
    assert strict_tokenizer.tokenize("a  b") != strict_tokenizer.tokenize("a b")
    builder = PromptBuilder(strict_tokenizer, dataset.titles, read_wording("movie"))
    text = builder.text(HISTORY, CANDIDATES, template=template, embed=embed)
    assert builder.prompt(HISTORY, CANDIDATES, template=template, embed=embed).ids == strict_tokenizer(text).input_ids


@pytest.mark.parametrize("template", range(3))
def test_one_marker_a_title_in_reading_order(builder, marker_ids, template):
    prompt = builder.prompt(HISTORY, CANDIDATES, template=template, embed=True)

    assert prompt.ids.count(marker_ids[HISTORY_MARKER]) == len(HISTORY)
    assert prompt.ids.count(marker_ids[CANDIDATE_MARKER]) == len(CANDIDATES)
    assert prompt.ids.count(marker_ids[PLACEHOLDER]) == 0
    assert prompt.items == [*HISTORY, *CANDIDATES]
    # In reading order: all history markers, then all candidate markers, in every template.
    kinds = [token for token in prompt.ids if token in builder.embedding_ids]
    assert kinds == [marker_ids[HISTORY_MARKER]] * 4 + [marker_ids[CANDIDATE_MARKER]] * 5


@pytest.mark.parametrize("template", range(3))
def test_placeholders_carry_no_embeddings(builder, marker_ids, template):
    prompt = builder.prompt(HISTORY, CANDIDATES, template=template, embed=False)

    assert prompt.ids.count(marker_ids[PLACEHOLDER]) == len(HISTORY) + len(CANDIDATES)
    assert not set(prompt.ids) & set(builder.embedding_ids)
    assert prompt.items == []
    batch = builder.batch([prompt])
    assert not batch.is_marker.any()
    assert len(batch.markers) == 0


def test_text_names_the_titles_in_order(builder, dataset):
    text = builder.text(HISTORY, CANDIDATES, template=0, embed=True)
    assert ", ".join(f"{dataset.titles[i]} [HistoryEmb]" for i in HISTORY) + "." in text
    assert ", ".join(f"{dataset.titles[i]} [CansEmb]" for i in CANDIDATES) + "." in text


def test_braces_in_a_title_are_text(builder, dataset):
    titles = ["{history} {0}", *dataset.titles[1:]]
    text = PromptBuilder(builder.tokenizer, titles, read_wording()).text(
        np.array([0]), CANDIDATES, template=0, embed=True
    )
    assert "{history} {0} [HistoryEmb]" in text


@pytest.mark.parametrize("name", [*MARKERS, "</s>", "<s>", "<unk>", "[PAD]", "<0x0A>"])
def test_the_name_of_a_special_token_in_a_title_is_text(builder, dataset, name):
    titles = [f"Start {name} over", name, *dataset.titles[2:]]
    builder = PromptBuilder(builder.tokenizer, titles, read_wording())
    prompt = builder.prompt(np.array([0, 1]), np.array([1, 0, 3]), template=0, embed=True)
    assert builder.batch([prompt]).is_marker.sum() == len(prompt.items) == 5
    assert not set(builder.tokens(titles[0])) & {*builder.tokenizer.all_special_ids} - {builder.tokenizer.unk_token_id}
    assert builder.tokenizer.decode(builder.answer(0)[1:], skip_special_tokens=True) == f"{titles[0]}\n"


def test_an_answer_is_bos_title_newline(builder, dataset):
    for item in range(dataset.num_items):
        ids = builder.answer(item)
        assert ids[0] == builder.bos_id
        assert ids[-1] == builder.newline_id
        assert builder.newline_id not in ids[:-1]
        assert builder.tokenizer.decode(ids[1:]) == dataset.titles[item] + "\n"


def test_batch_pads_left_and_labels_the_answer_only(builder):
    prompts = [
        builder.prompt(HISTORY, CANDIDATES, template=1, embed=True),
        builder.prompt(HISTORY[:1], CANDIDATES[:2], template=1, embed=True),
    ]
    answers = [builder.answer(3), builder.answer(2)]

    batch = builder.batch(prompts, answers)

    width = len(prompts[0].ids) + len(answers[0])
    assert batch.ids.shape == (2, width)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        padding = width - len(prompt.ids) - len(answer)
        pad = [builder.tokenizer.pad_token_id] * padding
        assert batch.ids[i].tolist() == pad + prompt.ids + answer
        assert batch.mask[i].tolist() == [False] * padding + [True] * (width - padding)
        assert batch.labels[i].tolist() == [IGNORED] * (width - len(answer)) + answer
        places = [j for j in range(width) if batch.ids[i, j] in builder.embedding_ids]
        assert batch.is_marker[i].nonzero().flatten().tolist() == places
    assert batch.markers.tolist() == [*HISTORY, *CANDIDATES, *HISTORY[:1], *CANDIDATES[:2]]
    assert int(batch.is_marker.sum()) == len(batch.markers)


def test_batch_without_answers_has_no_labels(builder):
    batch = builder.batch([builder.prompt(HISTORY, CANDIDATES, template=0, embed=True)])
    assert (batch.labels == IGNORED).all()
    assert batch.mask.all()
    assert torch.equal(batch.to(torch.device("cpu")).ids, batch.ids)


def test_special_tokens_are_single_and_distinct(builder, marker_ids):
    ids = [*marker_ids.values(), builder.tokenizer.pad_token_id, builder.tokenizer.eos_token_id, builder.bos_id]
    assert len(set(ids)) == len(ids)
    assert builder.tokenizer.unk_token_id not in ids
    for marker, token in marker_ids.items():
        # The blanks around a marker are swallowed.
        assert builder.tokenizer(f"a {marker} b", add_special_tokens=False).input_ids.count(token) == 1


# --- what does not fit ---------------------------------------------------------------------------------------


@pytest.fixture
def warnings(caplog, monkeypatch):
    """What the run's logger says, which keeps its lines to itself."""
    monkeypatch.setattr(logging.getLogger(LOGGER_NAME), "propagate", True)
    return caplog


def fitting(builder, context: int) -> PromptBuilder:
    return PromptBuilder(builder.tokenizer, builder.titles, read_wording("movie"), context)


def longest_answer(builder) -> int:
    return max(len(builder.answer(item)) for item in range(len(builder.titles)))


@pytest.mark.parametrize("embed", [True, False])
@pytest.mark.parametrize("missing, kept", [(0, 4), (1, 3)])
def test_the_oldest_items_make_room_for_an_answer(builder, warnings, embed, missing, kept):
    whole = builder.prompt(HISTORY, CANDIDATES, template=1, embed=embed)
    short = fitting(builder, len(whole.ids) + longest_answer(builder) - missing)

    for _ in range(2):
        assert short.prompt(HISTORY, CANDIDATES, template=1, embed=embed) == builder.prompt(
            HISTORY[4 - kept :], CANDIDATES, template=1, embed=embed
        )

    told = [r.getMessage() for r in warnings.records if "its oldest items are left out" in r.getMessage()]
    assert len(told) == (kept < 4)  # once, however many prompts there are


def test_candidates_that_do_not_fit_are_refused(builder, warnings):
    context = len(builder.prompt(HISTORY[:0], CANDIDATES, template=1, embed=False).ids) + longest_answer(builder) - 1
    allowed = rf"teacher\.num_candidates=5: their titles take \d+ tokens, the LLM reads {context}; use fewer"
    with pytest.raises(UserError, match=allowed):
        fitting(builder, context).prompt(HISTORY, CANDIDATES, template=1, embed=False)


@pytest.mark.parametrize("blank", ["", " \t"])
def test_a_blank_title_is_refused(builder, dataset, blank):
    titles = [*dataset.titles[:5], blank, *dataset.titles[6:]]
    with pytest.raises(UserError, match=r"titles: item 5 has a blank title \(1 in all\); the LLM reads titles"):
        PromptBuilder(builder.tokenizer, titles, read_wording("movie"))


def test_a_title_longer_than_the_context_is_refused(builder, dataset):
    titles = [*dataset.titles[:7], "Stone " * 40, *dataset.titles[8:]]
    length = len(builder.tokens("Stone " * 40)) + 2  # BOS and newline
    PromptBuilder(builder.tokenizer, titles, read_wording("movie"), 2 * length)
    allowed = f"titles: that of item 7 has {length} tokens, the LLM reads {2 * length - 1} in all; shorten it"
    with pytest.raises(UserError, match=allowed):
        PromptBuilder(builder.tokenizer, titles, read_wording("movie"), 2 * length - 1)
