"""Loading a local LLaMA: what is refused, what is added, what repeats."""

import json
import shutil

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from src.core.errors import UserError
from src.teacher.llm import encode_texts, load_llm, positions
from src.teacher.prompt.builder import MARKERS, PAD_TOKEN

CPU = torch.device("cpu")
EXPECTED = "expected a local Hugging Face folder of a LLaMA-family model"


@pytest.fixture
def folder(llm_folder, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(llm_folder, tmp_path / "llm")


def refused(folder, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_llm(folder, "float32", CPU)
    assert str(caught.value).startswith(f"teacher.llm_path={folder}: ")


def test_missing_folder(tmp_path):
    refused(tmp_path / "nowhere", f"no such folder; {EXPECTED}")


def test_no_config(folder):
    (folder / "config.json").unlink()
    refused(folder, f"has no config.json; {EXPECTED}")


def test_no_tokenizer(folder):
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.json").unlink(missing_ok=True)
    refused(folder, f"has no tokenizer; {EXPECTED}")


def test_no_weights(folder):
    for path in folder.glob("*.safetensors"):
        path.unlink()
    refused(folder, EXPECTED)


def test_a_missing_shard_is_named(folder):
    (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "model.safetensors.index.json names model-00001-of-00002.safetensors, missing there")


def test_the_index_of_files_that_were_not_downloaded_does_not_matter(folder):
    """Llama-2-7b-hf has both kinds of weights; one takes the safetensors."""
    index = {"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    load_llm(folder, "float32", CPU)


def test_damaged_weights(folder):
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    refused(folder, "the model does not load")


def test_a_damaged_tokenizer(folder):
    (folder / "tokenizer.model").write_bytes(b"nothing of the sort")
    refused(folder, "the tokenizer does not load")


@pytest.mark.parametrize("content", ["{", '{"model_type": "nonsense"}', "{}"])
def test_a_config_that_is_none(folder, content):
    (folder / "config.json").write_text(content)
    refused(folder, "load|JSON")


def test_a_model_of_another_family(folder):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_positions=32, n_embd=16, n_layer=1, n_head=2))
    model.save_pretrained(folder)
    refused(folder, f"a gpt2 model without q_proj, k_proj, .*down_proj; {EXPECTED}")


def test_markers_and_padding_are_added(llm_folder):
    tokenizer, model = load_llm(llm_folder, "float32", CPU)

    assert tokenizer.pad_token == PAD_TOKEN
    assert set(MARKERS) <= set(tokenizer.additional_special_tokens)
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer)
    assert not model.training


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_mean_of_the_old_and_repeat(folder, tied):
    """A checkpoint from before the markers: what is added must not be random, or loading would not repeat."""
    tokenizer, _ = load_llm(folder, "float32", CPU)
    old = len(tokenizer) - 5
    plain = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=old,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
    )
    plain.save_pretrained(folder)
    for name in ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')

    tokenizer, first = load_llm(folder, "float32", CPU)
    torch.rand(3)
    _, second = load_llm(folder, "float32", CPU)

    assert len(tokenizer) == old + 5
    for model in (first, second):
        for now, before in (
            (model.get_input_embeddings().weight, plain.get_input_embeddings().weight),
            (model.get_output_embeddings().weight, plain.get_output_embeddings().weight),
        ):
            assert torch.equal(now[:old], before)
            torch.testing.assert_close(now[old:], before.mean(0).expand(5, -1))


def test_loading_twice_gives_the_same_model(llm_folder):
    first, second = (load_llm(llm_folder, "float32", CPU)[1].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_dtype(llm_folder):
    assert load_llm(llm_folder, "bfloat16", CPU)[1].dtype == torch.bfloat16


def test_positions_count_real_tokens():
    mask = torch.tensor([[False, False, True, True], [True, True, True, True]])
    assert positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


def test_encoded_texts_do_not_depend_on_their_company(llm_folder):
    tokenizer, model = load_llm(llm_folder, "float32", CPU)
    texts = ["Stone", "The Long Road (2) and on", ""]

    together = encode_texts(model, tokenizer, texts, batch_tokens=100)

    alone = torch.cat([encode_texts(model, tokenizer, [text], batch_tokens=1) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
