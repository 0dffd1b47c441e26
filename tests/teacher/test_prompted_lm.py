"""Loss, generation and candidate scores against plain forward passes of single rows."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from src.teacher.adapter.moe_lora import GatedLora, add_gated_lora
from src.teacher.adapter.prompted_lm import PromptedLM
from src.teacher.llm.load import load_llm
from src.teacher.model import TeacherModel
from src.teacher.prompt.builder import IGNORED, Prompt

# Histories of different lengths: left padding has something to do.
HISTORIES = [np.array([1]), np.array([2, 7, 11]), np.array([5, 0])]
CANDIDATES = [np.array([3, 8, 20, 15, 4]), np.array([6, 10, 23, 1, 9]), np.array([12, 2, 22, 17, 19])]
GATES = torch.tensor([[0.2, 0.8], [0.6, 0.4], [0.9, 0.1]])


def make_prompts(teacher: TeacherModel, embed: bool = True) -> list[Prompt]:
    return [teacher.builder.prompt(h, c, template=1, embed=embed) for h, c in zip(HISTORIES, CANDIDATES, strict=True)]


def plain_logits(teacher: TeacherModel, prompt: Prompt, gates: torch.Tensor, tail: list[int]) -> torch.Tensor:
    """Logits [S, vocab] of one un-padded row, its markers replaced one by one."""
    lora: GatedLora = teacher.lm.lora
    ids = torch.tensor([prompt.ids + tail])
    embeds = lora.llm.get_input_embeddings()(ids).clone()
    places = [i for i, token in enumerate(prompt.ids) if token in teacher.builder.embedding_ids]
    if prompt.items:
        assert len(places) == len(prompt.items)
        for place, item in zip(places, prompt.items, strict=True):
            embeds[0, place] = lora.projector(teacher.recommender.item_table[item])
    with lora.gated(gates[None]):
        return lora.llm(inputs_embeds=embeds).logits[0]


def log_prob(teacher: TeacherModel, prompt: Prompt, gates: torch.Tensor, answer: list[int]) -> torch.Tensor:
    """Log-probability of each token of an answer, float [len(answer)]."""
    logits = plain_logits(teacher, prompt, gates, answer)
    before = logits[len(prompt.ids) - 1 : -1].log_softmax(-1)
    return before[torch.arange(len(answer)), torch.tensor(answer)]


@pytest.mark.parametrize("embed", [True, False])
@torch.no_grad()
def test_loss_is_the_mean_over_answer_tokens_of_plain_forwards(teacher, embed):
    prompts = make_prompts(teacher, embed)
    answers = [teacher.builder.answer(int(c[0])) for c in CANDIDATES]
    assert len({len(answer) for answer in answers}) > 1

    loss = teacher.lm.loss(teacher.builder.batch(prompts, answers), GATES)

    tokens = torch.cat([log_prob(teacher, p, g, a) for p, g, a in zip(prompts, GATES, answers, strict=True)])
    assert loss.item() == pytest.approx(-tokens.mean().item(), abs=1e-5)


@torch.no_grad()
def test_loss_is_that_of_the_full_logits(teacher):
    batch = teacher.builder.batch(make_prompts(teacher), [teacher.builder.answer(int(c[0])) for c in CANDIDATES])
    lora = teacher.lm.lora

    with lora.gated(GATES):
        wanted = lora.llm(
            inputs_embeds=teacher.lm.inputs_embeds(batch),
            attention_mask=batch.mask.long(),
            position_ids=(batch.mask.long().cumsum(-1) - 1).clamp(min=0),
            labels=batch.labels,
        ).loss

    assert teacher.lm.loss(batch, GATES).item() == pytest.approx(wanted.item(), abs=1e-5)


@torch.no_grad()
def test_inputs_carry_the_projected_items_at_the_markers_only(teacher):
    batch = teacher.builder.batch(make_prompts(teacher))
    embeds = teacher.lm.inputs_embeds(batch)
    table = teacher.lm.lora.llm.get_input_embeddings().weight

    assert torch.equal(embeds[~batch.is_marker], table[batch.ids[~batch.is_marker]])
    items = [item for h, c in zip(HISTORIES, CANDIDATES, strict=True) for item in [*h, *c]]
    torch.testing.assert_close(
        embeds[batch.is_marker], teacher.lm.lora.projector(teacher.recommender.item_table[items])
    )


def test_the_loss_reaches_the_projector_with_embeddings_only(teacher):
    parameters = [p for p in teacher.lm.lora.projector.parameters() if p.requires_grad]
    answers = [teacher.builder.answer(int(c[0])) for c in CANDIDATES]
    for embed in (False, True):
        teacher.lm.loss(teacher.builder.batch(make_prompts(teacher, embed), answers), GATES).backward()
        assert [p.grad is not None for p in parameters] == [embed] * 4


# --- scores of candidates -----------------------------------------------------------------------------------


@torch.no_grad()
def test_candidates_score_as_if_each_stood_alone(teacher):
    prompts = make_prompts(teacher)
    answers = [[teacher.builder.answer(int(item)) for item in row] for row in CANDIDATES]
    assert len({len(p.ids) for p in prompts}) == 3
    assert len({len(answer) for row in answers for answer in row}) > 2

    total, mean = teacher.lm.candidate_log_probs(teacher.builder.batch(prompts), GATES, answers)

    assert total.shape == mean.shape == (3, 5)
    for i, row in enumerate(answers):
        for j, answer in enumerate(row):
            tokens = log_prob(teacher, prompts[i], GATES[i], answer)
            assert total[i, j].item() == pytest.approx(tokens.sum().item(), abs=1e-4)
            assert mean[i, j].item() == pytest.approx(tokens.mean().item(), abs=1e-4)


@torch.no_grad()
def test_scores_do_not_depend_on_the_order_of_candidates_or_rows(teacher):
    prompts = make_prompts(teacher)
    answers = [[teacher.builder.answer(int(item)) for item in row] for row in CANDIDATES]
    total, _ = teacher.lm.candidate_log_probs(teacher.builder.batch(prompts), GATES, answers)

    turned, _ = teacher.lm.candidate_log_probs(
        teacher.builder.batch(prompts[::-1]), GATES.flip(0), [row[::-1] for row in answers[::-1]]
    )

    torch.testing.assert_close(turned, total.flip(0, 1), atol=1e-4, rtol=0)


# --- generation ---------------------------------------------------------------------------------------------


def greedy(teacher: TeacherModel, prompt: Prompt, gates: torch.Tensor, stop: set[int]) -> tuple[list[int], float]:
    """Tokens, best one first at each step, and the sum of their log-probabilities."""
    tokens: list[int] = []
    total = 0.0
    while len(tokens) < 64 and not (tokens and tokens[-1] in stop):
        best = plain_logits(teacher, prompt, gates, tokens)[-1].log_softmax(-1).max(-1)
        tokens.append(int(best.indices))
        total += best.values.item()
    return tokens, total


def as_text(teacher: TeacherModel, tokens: list[int]) -> str:
    text = teacher.builder.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip().split("\n")[0].strip()


@pytest.fixture
def talkative(teacher, make_lora) -> TeacherModel:
    """An adapter so large that answers vary from token to token and from row to row."""
    return replace(teacher, lm=PromptedLM(make_lora(scale=2.5), teacher.recommender.item_table))


@torch.no_grad()
def test_generation_is_the_greedy_loop_whatever_the_padding(talkative):
    teacher = talkative
    tokenizer, prompts = teacher.builder.tokenizer, make_prompts(teacher)
    stop = {tokenizer.eos_token_id, teacher.builder.newline_id}
    loops = [greedy(teacher, p, g, stop) for p, g in zip(prompts, GATES, strict=True)]
    wanted = [as_text(teacher, tokens) for tokens, _ in loops]
    assert len({tuple(tokens) for tokens, _ in loops}) == len(loops)
    assert len({token for tokens, _ in loops for token in tokens}) > 5

    together, log_probs = teacher.lm.generate(
        teacher.builder.batch(prompts), GATES, tokenizer=tokenizer, newline_id=teacher.builder.newline_id
    )

    assert together == wanted
    assert log_probs.tolist() == pytest.approx([total for _, total in loops], abs=1e-3)
    for i, prompt in enumerate(prompts):
        alone, log_prob_alone = teacher.lm.generate(
            teacher.builder.batch([prompt]),
            GATES[i : i + 1],
            tokenizer=tokenizer,
            newline_id=teacher.builder.newline_id,
        )
        assert alone == wanted[i : i + 1]
        assert log_prob_alone.item() == pytest.approx(log_probs[i].item(), abs=1e-3)


@torch.no_grad()
def test_generation_stops_at_the_newline(talkative):
    """A row that has stopped is padded while the others go on: nothing of that may count."""
    teacher = talkative
    tokenizer, prompts = teacher.builder.tokenizer, make_prompts(teacher)
    free, _ = greedy(teacher, prompts[0], GATES[0], {tokenizer.eos_token_id})
    newline = next(token for token in free[2:] if token not in free[:2])  # any token will do as the newline
    loops = [greedy(teacher, p, g, {tokenizer.eos_token_id, newline}) for p, g in zip(prompts, GATES, strict=True)]
    assert len(loops[0][0]) < len(free)
    assert len({len(tokens) for tokens, _ in loops}) > 1

    texts, log_probs = teacher.lm.generate(
        teacher.builder.batch(prompts), GATES, tokenizer=tokenizer, newline_id=newline
    )

    assert texts == [as_text(teacher, tokens) for tokens, _ in loops]
    assert log_probs.tolist() == pytest.approx([total for _, total in loops], abs=1e-3)


def test_ignored_is_what_cross_entropy_ignores():
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORED


# --- how the LM was loaded ----------------------------------------------------------------------------------

_OWN_WAY = {  # of generating, as a checkpoint may say it
    "do_sample": True,
    "temperature": 5.0,
    "top_k": 3,
    "num_beams": 4,
    "repetition_penalty": 9.0,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 60,
    "max_new_tokens": 1,
    "bad_words_ids": [[token] for token in range(300)],
    "suppress_tokens": list(range(300)),
    "forced_eos_token_id": 5,
    "eos_token_id": 7,
}


@pytest.fixture
def make_teacher(teacher, config, fill_with_ramp):
    """The talkative teacher around the LM of a folder."""

    def make(folder, **options) -> TeacherModel:
        lora = add_gated_lora(load_llm(folder, "float32", torch.device("cpu"), **options)[1], config.lora, 8)
        fill_with_ramp(torch.nn.ParameterList(p for p in lora.model.parameters() if p.requires_grad), 2.5)
        lora.model.eval()
        return replace(teacher, lm=PromptedLM(lora, teacher.recommender.item_table))

    return make


def answers_and_scores(teacher: TeacherModel) -> tuple[list[str], torch.Tensor]:
    """What the teacher writes, and its scores of candidates, float32 [3, 5]."""
    batch, builder = teacher.builder.batch(make_prompts(teacher)), teacher.builder
    texts, _ = teacher.lm.generate(batch, GATES, tokenizer=builder.tokenizer, newline_id=builder.newline_id)
    answers = [[builder.answer(int(item)) for item in row] for row in CANDIDATES]
    return texts, teacher.lm.candidate_log_probs(batch, GATES, answers)[0]


@torch.no_grad()
@pytest.mark.parametrize("content", [json.dumps(_OWN_WAY), "no JSON"])
def test_what_the_checkpoint_says_of_generation_changes_nothing(make_teacher, llm_folder, tmp_path, content):
    folder = shutil.copytree(llm_folder, tmp_path / "llm")
    (folder / "generation_config.json").write_text(content)
    plain, other = make_teacher(llm_folder), make_teacher(folder)
    assert other.lm.lora.llm.generation_config.do_sample == content.startswith("{")  # it was read
    (texts, scores), (other_texts, other_scores) = answers_and_scores(plain), answers_and_scores(other)
    assert texts == other_texts and len(set(texts)) == len(texts)
    assert torch.equal(scores, other_scores)


@torch.no_grad()
def test_the_ways_to_compute_attention_agree(make_teacher, llm_folder):
    ways = {way: make_teacher(llm_folder, attn_implementation=way) for way in ("auto", "eager", "sdpa")}
    used = {way: teacher.lm.lora.llm.config._attn_implementation for way, teacher in ways.items()}
    assert (used["eager"], used["sdpa"]) == ("eager", "sdpa")
    texts, scores = answers_and_scores(ways["sdpa"])
    for way in ("auto", "eager"):
        other_texts, other_scores = answers_and_scores(ways[way])
        assert other_texts == texts
        torch.testing.assert_close(other_scores, scores, atol=1e-3, rtol=1e-4)
