"""LLaMA's relatives: Llama 3, Mistral and Qwen2 in shape, random, with a byte-level tokenizer as they have it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from src.core.errors import UserError
from src.teacher.adapter.moe_lora import add_gated_lora
from src.teacher.adapter.prompted_lm import PromptedLM
from src.teacher.config import ExportSettings, LoraSettings
from src.teacher.llm.load import load_llm
from src.teacher.llm.texts import encode_texts, own_tokens
from src.teacher.prompt.builder import PAD_TOKEN, PromptBuilder
from src.teacher.prompt.wording import CANDIDATE_MARKER, HISTORY_MARKER, MARKERS, read_wording

CPU = torch.device("cpu")
SEPARATOR, END = "<|endoftext|>", "<|im_end|>"
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3}
LLAMA_3_ROPE = {"rope_type": "llama3", "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3_ROPE |= {"original_max_position_embeddings": 64}
# As Llama 3 and Qwen2 cut text: punctuation takes the newline after it along.
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

HISTORY, CANDIDATES = np.array([2, 9, 4]), np.array([1, 8, 20, 23, 11])  # titles with brackets and other bytes


def save_tokenizer(folder: Path, titles: list[str], adds_bos: bool, **special: str) -> int:
    """Train it on titles that end with a newline; returns the number of tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[SEPARATOR, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([title + "\n" for title in titles] * 5, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[SEPARATOR, "$A"], special_tokens=[(SEPARATOR, tokenizer.token_to_id(SEPARATOR))]
        )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def llama_3(folder, titles):
    size = save_tokenizer(folder, titles, adds_bos=True, bos_token=SEPARATOR, eos_token=END)
    return LlamaForCausalLM(LlamaConfig(vocab_size=size, bos_token_id=0, rope_scaling=LLAMA_3_ROPE, **SHAPE))


def mistral(folder, titles):
    size = save_tokenizer(folder, titles, adds_bos=False, bos_token=SEPARATOR, eos_token=END)
    return MistralForCausalLM(MistralConfig(vocab_size=size, sliding_window=256, **SHAPE))


def qwen2(folder, titles):
    """No BOS in the tokenizer, its separator for EOS, tied, and a table that is larger than the vocabulary."""
    size = save_tokenizer(folder, titles, adds_bos=False, eos_token=SEPARATOR)
    config = Qwen2Config(vocab_size=size + 40, bos_token_id=0, eos_token_id=0, tie_word_embeddings=True, **SHAPE)
    return Qwen2ForCausalLM(config)


@pytest.fixture(params=[llama_3, mistral, qwen2])
def folder(request, dataset, tmp_path):
    torch.manual_seed(1)
    request.param(tmp_path, dataset.titles).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def loaded(folder):
    return load_llm(folder, "float32", CPU)


def test_a_bos_stands_before_every_text_and_does_not_end_one(loaded):
    tokenizer, _ = loaded
    bos = tokenizer.convert_tokens_to_ids(SEPARATOR)
    assert tokenizer.bos_token_id == bos != tokenizer.eos_token_id
    assert tokenizer("").input_ids == [bos]
    assert tokenizer("Stone").input_ids.count(bos) == 1


def test_prompts_are_the_tokens_of_the_whole_text(loaded, dataset):
    tokenizer, model = loaded
    builder = PromptBuilder(tokenizer, dataset.titles, read_wording("movie"))
    for template in range(3):
        prompt = builder.prompt(HISTORY, CANDIDATES, template=template, embed=True)
        assert prompt.ids == tokenizer(builder.text(HISTORY, CANDIDATES, template=template, embed=True)).input_ids
    assert max(prompt.ids) < model.get_input_embeddings().num_embeddings


def test_names_of_special_tokens_in_titles_are_text(loaded, dataset):
    tokenizer, _ = loaded
    titles = [f"Start {name} over" for name in (*MARKERS, PAD_TOKEN, SEPARATOR, END)]
    builder = PromptBuilder(tokenizer, [*titles, *dataset.titles[len(titles) :]], read_wording())
    of_markers = tokenizer.convert_tokens_to_ids([HISTORY_MARKER, CANDIDATE_MARKER])
    items = np.arange(len(titles))
    for embed in (True, False):
        prompt = builder.prompt(items, items, template=0, embed=embed)
        assert len([i for i in prompt.ids if i in of_markers]) == len(prompt.items) == embed * 2 * len(titles)
    for item, title in enumerate(titles):
        assert tokenizer.decode(builder.answer(item)[1:], skip_special_tokens=True) == f"{title}\n"
    assert tokenizer("[PH]", add_special_tokens=False).input_ids == [builder.placeholder_id]  # as ever elsewhere


def test_a_title_that_is_nothing_to_the_tokenizer_is_refused(loaded, dataset):
    tokenizer, _ = loaded
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\N{SNOWMAN}", "")
    with pytest.raises(UserError, match="titles: that of item 1, '\N{SNOWMAN}', is nothing to the LLM's tokenizer"):
        PromptBuilder(tokenizer, ["Stone", "\N{SNOWMAN}"], read_wording())


def test_an_answer_ends_with_the_newline_that_stops_generation(loaded, dataset):
    tokenizer, _ = loaded
    builder = PromptBuilder(tokenizer, dataset.titles, read_wording("movie"))
    item = dataset.titles.index("The Long Road (2)")
    assert builder.newline_id not in builder.tokens(dataset.titles[item] + "\n")  # ")\n" is one token
    assert builder.answer(item)[-1] == builder.newline_id
    assert tokenizer.decode(builder.answer(item), skip_special_tokens=True) == "The Long Road (2)\n"


@pytest.mark.parametrize(
    "wording", ["{title}", "A film named '{title}'.", "Film: {title}\nIts kind:", "{title} is", "x{title}x"]
)
def test_a_titles_own_tokens_are_found_within_a_wording(loaded, dataset, wording):
    """Whatever a token that a title shares with the wording begins or ends with, the title's is all in it."""
    tokenizer, _ = loaded
    ids = [torch.tensor(tokenizer(wording.replace("{title}", title)).input_ids) for title in dataset.titles]
    before, after = wording.split("{title}")
    for row, (begin, end), title in zip(ids, own_tokens(tokenizer, wording, ids), dataset.titles, strict=True):
        own = tokenizer.decode(row[begin:end])
        assert title in own and len(own) <= len(title) + 4
        around = tokenizer.decode(row[1:begin]) + tokenizer.decode(row[end:])
        assert len(around) >= len(before + after) - 4


@torch.no_grad()
def test_loss_generation_and_scores_are_those_of_plain_forwards(loaded, dataset, fill_with_ramp):
    """Left padding, positions, markers and masks hold for every family."""
    tokenizer, model = loaded
    lora = add_gated_lora(model, LoraSettings(r=4, alpha=6, dropout=0.0, num_experts=2), 8)
    fill_with_ramp(torch.nn.ParameterList(p for p in lora.model.parameters() if p.requires_grad), 0.1)
    lora.model.eval()
    builder = PromptBuilder(tokenizer, dataset.titles, read_wording("movie"))
    lm = PromptedLM(lora, torch.zeros(len(dataset.titles), 8))
    gates = torch.tensor([[0.2, 0.8], [0.6, 0.4]])
    prompts = [builder.prompt(history, CANDIDATES, template=0, embed=False) for history in (HISTORY[:1], HISTORY)]
    answers = [[builder.answer(1), builder.answer(8)], [builder.answer(23), builder.answer(4)]]

    def plain(row: int, answer: list[int]) -> torch.Tensor:
        with lora.gated(gates[row : row + 1]):
            logits = lora.llm(torch.tensor([prompts[row].ids + answer]), use_cache=False).logits[0]
        before = logits[len(prompts[row].ids) - 1 : -1].log_softmax(-1)
        return before[range(len(answer)), answer]

    expected = torch.cat([plain(row, answers[row][0]) for row in range(2)])
    loss = lm.loss(builder.batch(prompts, [row[0] for row in answers]), gates)
    torch.testing.assert_close(loss, -expected.mean(), rtol=1e-4, atol=1e-4)
    total, _ = lm.candidate_log_probs(builder.batch(prompts), gates, answers)
    expected = torch.stack([torch.stack([plain(row, answer).sum() for answer in answers[row]]) for row in range(2)])
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-3)

    texts, log_probs = lm.generate(builder.batch(prompts), gates, tokenizer=tokenizer, newline_id=builder.newline_id)
    alone = [
        lm.generate(
            builder.batch(prompts[i : i + 1]), gates[i : i + 1], tokenizer=tokenizer, newline_id=builder.newline_id
        )
        for i in range(2)
    ]
    assert texts == [text for one, _ in alone for text in one]
    torch.testing.assert_close(log_probs, torch.cat([p for _, p in alone]), rtol=1e-4, atol=1e-3)


def test_texts_are_encoded_behind_a_bos(loaded):
    tokenizer, model = loaded
    encoded = encode_texts(model, tokenizer, ["Stone", "", "Zig-Zag: Part II"], ExportSettings(batch_tokens=4))
    bos = model.model(torch.tensor([[tokenizer.bos_token_id]])).last_hidden_state[0, -1]
    torch.testing.assert_close(encoded[1], bos, rtol=1e-4, atol=1e-4)


def test_a_larger_table_is_kept_and_a_smaller_one_grows(loaded):
    tokenizer, model = loaded
    rows = model.get_input_embeddings().num_embeddings
    assert rows == (len(tokenizer) + 35 if model.config.model_type == "qwen2" else len(tokenizer))
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (model.config.model_type == "qwen2")
    assert len(model.get_output_embeddings().weight) == rows


def test_no_bos_anywhere_is_refused(dataset, tmp_path):
    model = qwen2(tmp_path, dataset.titles)
    model.config.bos_token_id = model.generation_config.bos_token_id = None
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no BOS token, which prompts and answers begin with; set bos_token in its"):
        load_llm(tmp_path, "float32", CPU)


def test_an_instruct_tokenizer_keeps_its_eos(dataset, tmp_path):
    qwen2(tmp_path, dataset.titles).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"eos_token": END}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "special_tokens_map.json").unlink()
    assert load_llm(tmp_path, "float32", CPU)[0].eos_token == END
    settings["eos_token"] = SEPARATOR
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_llm(tmp_path, "float32", CPU)[0].eos_token == PAD_TOKEN


def test_a_family_that_scales_its_logits_is_refused(dataset, tmp_path):
    size = save_tokenizer(tmp_path, dataset.titles, adds_bos=True, bos_token=SEPARATOR, eos_token=END)
    config = CohereConfig(vocab_size=size, logit_scale=0.06, bos_token_id=0, **SHAPE)
    CohereForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a cohere model, which changes the output layer's logits; expected"):
        load_llm(tmp_path, "float32", CPU)


def test_weights_that_lack_a_layer_are_refused(dataset, tmp_path):
    """`transformers` would fill the second layer with random numbers and only warn."""
    llama_3(tmp_path, dataset.titles).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"its config\.json describes 3 layers, the weights hold 2; take config"):
        load_llm(tmp_path, "float32", CPU)
