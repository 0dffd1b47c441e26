"""Loading a local LLaMA: what is refused, what is added, what repeats."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from src.core import device
from src.core.errors import UserError
from src.teacher.config import ExportSettings
from src.teacher.llm import load
from src.teacher.llm.folder import check_formats
from src.teacher.llm.load import check_llm, load_llm
from src.teacher.llm.texts import encode_texts, positions
from src.teacher.prompt.builder import PAD_TOKEN
from src.teacher.prompt.wording import MARKERS, read_wording

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
    index["weight_map"] |= {str(number): "m" * (300 + number) for number in range(3)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink(missing_ok=True)
    refused(folder, f"names {'m' * 255} and 3 more files, missing there")


def test_the_index_of_files_that_were_not_downloaded_does_not_matter(folder):
    """Llama-2-7b-hf has both kinds of weights; one takes the safetensors."""
    index = {"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    load_llm(folder, "float32", CPU)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shard", ["10GB", "5KB"])
def test_pickled_weights_are_those_of_safetensors_and_torchs_loader_has_no_part_in_it(
    folder, monkeypatch, shard, dtype
):
    _, expected = load_llm(folder, dtype, CPU)
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=False, max_shard_size=shard)
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(torch, "load", None)

    _, model = load_llm(folder, dtype, CPU)

    state = expected.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert (len(list(folder.glob("*.bin"))) > 1) == (shard == "5KB")


def test_pickled_weights_that_are_none(folder):
    (folder / "model.safetensors").unlink()
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin: holds no state_dict of tensors"):
        load_llm(folder, "float32", CPU)


@pytest.mark.parametrize("safe", [True, False])
def test_a_missing_weight_is_named(folder, safe):
    model = LlamaForCausalLM.from_pretrained(folder)
    state = {name: value for name, value in model.state_dict().items() if name != "model.norm.weight"}
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, state_dict=state, safe_serialization=safe)
    refused(folder, "its weights lack model.norm.weight and 0 more; get the whole checkpoint")


def test_an_adapter_is_no_model(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    refused(folder, r"holds a PEFT adapter \(adapter_config.json\); give the folder of a whole model")


def test_code_of_the_folder_is_neither_run_nor_asked_about(folder, monkeypatch):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "new", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    refused(folder, "the tokenizer does not load|the model does not load")
    assert not (folder / "ran").exists()


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


# --- refused before anything is trained for it --------------------------------------------------------------


def changed_config(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("quantised", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, r"quantised \(gptq, 4 bits, says config.json\), .*; give the checkpoint"),
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, r"quantised \(awq, 4 bits"),
        ({"load_in_8bit": True, "quant_method": "bitsandbytes"}, r"bitsandbytes, 8 bits, .* float16 or bfloat16$"),
        ({"load_in_4bit": True}, r"quantised \(bitsandbytes, 4 bits, .*; or set teacher.load_in_4bit=true, on a GPU"),
        ({"quant_method": "compressed-tensors"}, r"quantised \(compressed-tensors, says"),
    ],
)
def test_a_quantised_checkpoint_is_refused(folder, quantised, message):
    changed_config(folder, quantization_config=quantised)
    refused(folder, message)


def test_four_bits_of_bitsandbytes_are_read_where_four_bits_are_wanted(folder):
    changed_config(folder, quantization_config={"load_in_4bit": True, "quant_method": "bitsandbytes"})
    check_formats(folder, load_in_4bit=True)
    changed_config(folder, quantization_config={"bits": 4, "quant_method": "gptq"})
    with pytest.raises(UserError, match="quantised"):
        check_formats(folder, load_in_4bit=True)


def test_merges_as_later_tokenizers_write_them_are_refused(folder):
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "merges": [["a", "b"]]}}))
    load_llm(folder, "float32", CPU)  # reads tokenizer.model
    (folder / "tokenizer.model").unlink()
    refused(
        folder, r'merges as pairs, as tokenizers 0\.20 .* reads \["a b"\] instead .*; write them so, take a revision'
    )


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "model.safetensors"])
def test_a_pointer_instead_of_the_file_is_refused(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(folder, f"{name} is a Git LFS pointer instead of the file; run `git lfs pull` there")


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_names_nothing_is_refused(folder, content):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)
    refused(folder, "model.safetensors.index.json names no files of weights")


def refused_early(folder, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_llm(folder, ["A title"], read_wording())
    assert str(caught.value).startswith(f"teacher.llm_path={folder}: ")


@pytest.mark.parametrize("safe", [True, False])
def test_weights_of_another_size_are_told_by_their_shapes(folder, safe):
    check_llm(folder, ["A title"], read_wording())
    model = LlamaForCausalLM.from_pretrained(folder)
    width = model.config.intermediate_size
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, safe_serialization=safe)
    check_llm(folder, ["A title"], read_wording())
    changed_config(folder, intermediate_size=2 * width)
    refused_early(
        folder, rf"mlp.down_proj.weight holds \(16, {width}\), the model of .* wants \(16, {2 * width}\); take"
    )


@pytest.mark.parametrize("layers", [9, 10**9])
def test_layers_that_the_weights_do_not_have_are_counted_before_any_is_built(folder, layers):
    changed_config(folder, num_hidden_layers=layers)
    refused_early(folder, f"its config.json describes {layers} layers, the weights hold 3; take config.json")


def test_a_weight_that_is_named_after_a_billionth_layer_is_one_layer_more(folder):
    state = load_file(folder / "model.safetensors") | {"model.layers.999999999.x": torch.zeros(1)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    changed_config(folder, num_hidden_layers=10**9)
    refused_early(folder, "its config.json describes 1000000000 layers, the weights hold 4; take config.json")


def test_weights_that_are_not_there_are_told_by_their_names(folder):
    state = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in state.items() if "layers.1.mlp." not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    refused_early(folder, r"its weights lack model\.layers\.1\.mlp\.down_proj\.weight and 2 more")


def test_packed_weights_are_told_by_their_names(folder):
    state = load_file(folder / "model.safetensors")
    packed = {name.replace("q_proj.weight", "q_proj.qweight"): value for name, value in state.items()}
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    refused_early(folder, r"quantised weights \(model\.layers\.0\.self_attn\.q_proj\.qweight\)")


def test_another_architecture_is_told_by_its_configuration(folder):
    GPT2Config(vocab_size=400, n_positions=32, n_embd=16, n_layer=1, n_head=2).save_pretrained(folder)
    changed_config(folder, max_position_embeddings=512)
    refused_early(folder, "a gpt2 model without q_proj, k_proj")


def test_a_tokenizer_that_loses_the_newline_is_refused(folder):
    words = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "A": 3, "title": 4}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer.model").unlink()
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    refused_early(folder, "its tokenizer loses the newline that ends an answer; take an LLM whose tokenizer has one")


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


@torch.no_grad()
@pytest.mark.parametrize("dtype, fused", [("bfloat16", False), ("float32", True)])
def test_attention_in_bfloat16_on_a_processor_is_not_pytorchs_fused_one(llm_folder, dtype, fused):
    """Which multiplies bfloat16 one number at a time; elsewhere, and behind a pass, it stays as it was."""
    llm, ids, during = load_llm(llm_folder, dtype, CPU)[1], torch.tensor([[1, 5, 6, 7]]), []
    llm.model.layers[1].register_forward_hook(lambda *_: during.append(torch.backends.cuda.flash_sdp_enabled()))
    hidden = llm.model(ids).last_hidden_state
    assert during == [fused] and torch.backends.cuda.flash_sdp_enabled()
    with torch.enable_grad():
        llm.model(ids)
    llm.train().model(ids)  # as checkpointing does it, without gradients
    llm.eval()
    assert during == [fused, True, True]  # else each layer's [heads, S, S] would be kept

    full = load_llm(llm_folder, "float32", CPU)[1].model(ids).last_hidden_state
    torch.testing.assert_close(hidden.float(), full, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    "flags, dtype", [("flags : sse2 avx512_bf16 avx2", "bfloat16"), ("flags : avx512f", "float32"), (None, "float32")]
)
def test_dtype_auto_is_what_the_processor_computes(monkeypatch, tmp_path, flags, dtype):
    if flags:
        (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(device, "_CPU_INFO", tmp_path / "cpuinfo")
    assert load.native_dtype("auto", CPU) == dtype
    assert load.native_dtype("bfloat16", CPU) == "bfloat16"


def test_four_bits_need_safetensors(folder):
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=False)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"teacher.load_in_4bit=true: teacher.llm_path=.* has pickled weights"):
        load_llm(folder, "float32", CPU, load_in_4bit=True)


def test_positions_count_real_tokens():
    mask = torch.tensor([[False, False, True, True], [True, True, True, True]])
    assert positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


def test_encoded_texts_do_not_depend_on_their_company(llm_folder):
    tokenizer, model = load_llm(llm_folder, "float32", CPU)
    texts = ["Stone", "The Long Road (2) and on", ""]

    together = encode_texts(model, tokenizer, texts, ExportSettings(batch_tokens=100))

    alone = torch.cat([encode_texts(model, tokenizer, [text], ExportSettings(batch_tokens=1)) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer, computed", [(0, 0), (1, 1), (3, 3), (-1, 3), (-3, 1)])
def test_layers_behind_the_one_that_is_read_are_not_computed(llm_folder, layer, computed):
    """Of three; the LM is whole again behind it."""
    tokenizer, model = load_llm(llm_folder, "float32", CPU)
    calls, every, norm = [], list(model.model.layers), model.model.norm
    for block in every:
        block.register_forward_hook(lambda *_: calls.append(1))
    encode_texts(model, tokenizer, ["Stone"], ExportSettings(embedding_layer=layer))
    assert len(calls) == computed and list(model.model.layers) == every and model.model.norm is norm
