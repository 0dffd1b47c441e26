"""Loading a LLaMA-family model and tokenizer from a local Hugging Face folder."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from src.core.errors import UserError
from src.core.files import read_json
from src.core.foreign.tensors import read_tensors
from src.teacher.adapter.moe_lora import TARGET_MODULES
from src.teacher.prompt.batching import token_batches
from src.teacher.prompt.builder import MARKERS, PAD_TOKEN

_TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
_WEIGHT_FILES = (  # transformers reads the first that is there; a download may leave the index of another
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_EXPECTED = (
    "expected a local Hugging Face folder of a LLaMA-family model with config.json, tokenizer.model or "
    "tokenizer.json, and *.safetensors or pytorch_model*.bin (or use teacher=ilora_tiny, which builds one)"
)


def check_llm_folder(path: Path) -> None:
    """Look at the files only, so that a wrong path fails before anything expensive.

    Raises:
        UserError: `path` is no Hugging Face folder; the message says what is expected there.
    """
    if not path.is_dir():
        raise UserError(f"teacher.llm_path={path}: no such folder; {_EXPECTED}")
    if not (path / "config.json").is_file():
        raise UserError(f"teacher.llm_path={path}: has no config.json; {_EXPECTED}")
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise UserError(f"teacher.llm_path={path}: has no tokenizer; {_EXPECTED}")
    if (path / "adapter_config.json").is_file():  # transformers would load another model, named there
        raise UserError(
            f"teacher.llm_path={path}: holds a PEFT adapter (adapter_config.json); give the folder of a whole model, "
            "with the adapter merged into it"
        )
    _weight_files(path)


def _weight_files(path: Path) -> list[Path]:
    """The files that hold the weights, all of them there."""
    weights = next((path / name for name in _WEIGHT_FILES if (path / name).is_file()), None)
    if weights is None:
        raise UserError(f"teacher.llm_path={path}: has none of {', '.join(_WEIGHT_FILES)}; {_EXPECTED}")
    if weights.suffix != ".json":
        return [weights]
    shards = sorted(set(read_json(weights).get("weight_map", {}).values()))
    missing = [name for name in shards if not (path / name).is_file()]
    if missing:
        raise UserError(f"teacher.llm_path={path}: {weights.name} names {', '.join(missing)}, missing there")
    return [path / name for name in shards]


def load_llm(path: Path, dtype: str, device: torch.device) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Load tokenizer and causal LM, with a padding token and the four markers added to both.

    The tokenizer has a BOS and puts it before every text; its EOS is another token.

    Raises:
        UserError: `path` holds no LLaMA-family model; the message says what is expected there.
    """
    check_llm_folder(path)
    tokenizer = _load_tokenizer(path)
    model = _load_model(path, dtype)
    _add_markers(tokenizer, model)
    _put_bos_first(path, tokenizer, model.config)
    model = model.to(device).eval()
    _check_output_layer(path, model)
    return tokenizer, model


def _load_model(path: Path, dtype: str) -> PreTrainedModel:
    try:
        # trust_remote_code=False: without it transformers asks on the terminal whether to run code of the folder.
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        source, weights = _weights(path)
        model, found = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            torch_dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **weights,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"teacher.llm_path={path}: the model does not load ({reason}); {_EXPECTED}") from error
    missing = [name for name in TARGET_MODULES if not any(n.endswith(name) for n, _ in model.named_modules())]
    if missing:
        raise UserError(
            f"teacher.llm_path={path}: a {config.model_type} model without {', '.join(missing)}; {_EXPECTED}"
        )
    absent = found["missing_keys"]
    lacking = sorted(name for name, value in model.named_parameters() if value.is_meta or name in absent)
    if lacking:  # transformers only warns
        first, *others = lacking
        raise UserError(
            f"teacher.llm_path={path}: its weights lack {first} and {len(others)} more; get the whole checkpoint"
        )
    return model


def _weights(path: Path) -> tuple[Path | None, dict[str, Any]]:
    """What tells transformers to take the weights from safetensors, or from memory: its own way to `.bin` is torch's
    loader, which may run what it reads. Those take twice the memory while they are copied.
    """
    files = _weight_files(path)
    if files[0].suffix == ".safetensors":
        return path, {"use_safetensors": True, "low_cpu_mem_usage": True}
    state: dict[str, Tensor] = {}
    for file in files:
        content = read_tensors(file)
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise UserError(f"{file}: holds no state_dict of tensors; {_EXPECTED}")
        state |= content
    return None, {"state_dict": state}


@torch.no_grad()
def _check_output_layer(path: Path, model: PreTrainedModel) -> None:
    """The loss calls the output layer itself, on few positions: families that scale its result are refused."""
    ids = torch.arange(4, device=model.device)[None]
    own = model.lm_head(model.model(ids, use_cache=False).last_hidden_state).float()
    if not torch.allclose(own, model(ids, use_cache=False).logits, rtol=1e-2, atol=1e-3):
        raise UserError(
            f"teacher.llm_path={path}: a {model.config.model_type} model, which changes the output layer's logits; "
            f"{_EXPECTED}"
        )


def _load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    try:
        # legacy: the tokenization that upstream's transformers version had.
        return AutoTokenizer.from_pretrained(
            path,
            use_fast=not (path / _TOKENIZER_FILES[0]).is_file(),
            legacy=True,
            add_bos_token=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # SentencePiece raises the last
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"teacher.llm_path={path}: the tokenizer does not load ({reason}); {_EXPECTED}") from error


def _add_markers(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Add [PAD] and the markers; new rows start as the mean of the old ones, so that loading repeats."""
    tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    # Without lstrip/rstrip the blanks around a marker would become tokens of their own.
    markers = [AddedToken(m, lstrip=True, rstrip=True, normalized=False, special=True) for m in MARKERS]
    tokenizer.add_special_tokens({"additional_special_tokens": markers})
    old = model.get_input_embeddings().num_embeddings
    if len(tokenizer) <= old:
        return
    model.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            table[old:] = table[:old].float().mean(0).to(table.dtype)


def _put_bos_first(path: Path, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Make the tokenizer begin every text with a BOS that does not end an answer.

    Qwen's tokenizers know none; their models' configuration names what separates documents. That token may be the
    EOS, too, while answers begin with the BOS and end with a newline: then [PAD] takes the EOS's place.
    """
    if tokenizer.bos_token is None and config.bos_token_id in tokenizer.get_vocab().values():
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(config.bos_token_id)
    if tokenizer.bos_token is None:
        raise UserError(
            f"teacher.llm_path={path}: no BOS token, which prompts and answers begin with; set bos_token in its "
            "tokenizer_config.json"
        )
    if tokenizer.eos_token is None or tokenizer.eos_token == tokenizer.bos_token:
        tokenizer.eos_token = PAD_TOKEN
    if tokenizer.is_fast and tokenizer("a").input_ids[:1] != [tokenizer.bos_token_id]:
        bos = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, tokenizer.bos_token_id)]
        )


@torch.no_grad()
def encode_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], batch_tokens: int
) -> Tensor:
    """Embed each text: the last layer's hidden state at its last token, float32 [len(texts), llm_dim] on the CPU.

    BIGRec's item embedding: the text alone, BOS first. `model` must be the base LLM, adapter off.

    Args:
        batch_tokens: tokens of a forward pass, padding included.
    """
    ids = [torch.tensor(tokenizer(text).input_ids) for text in texts]
    result = torch.empty(len(texts), model.config.hidden_size)
    for batch in token_batches(np.array([len(row) for row in ids], dtype=int), batch_tokens):
        rows = [ids[i].flip(0) for i in batch]  # flipped twice: padding on the left
        padded = pad_sequence(rows, batch_first=True, padding_value=-1).flip(1)
        mask = padded >= 0
        hidden = model.model(
            input_ids=padded.clamp(min=0).to(model.device),
            attention_mask=mask.long().to(model.device),
            position_ids=positions(mask).to(model.device),
            use_cache=False,
        ).last_hidden_state
        result[torch.from_numpy(batch)] = hidden[:, -1].float().cpu()
    return result


def positions(mask: Tensor) -> Tensor:
    """Position ids that count real tokens: bool [B, S] -> int64 [B, S], 0 on padding."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
