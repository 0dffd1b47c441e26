"""Loading a LLaMA-family model and tokenizer from a Hugging Face folder, as the machine allows."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from src.core.errors import UserError
from src.core.foreign.tensors import read_tensors
from src.teacher.llm.folder import EXPECTED, check_llm_folder, weight_files
from src.teacher.prompt.builder import PAD_TOKEN
from src.teacher.prompt.wording import MARKERS

TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # that are adapted
_TOKENIZER_MODEL = "tokenizer.model"
_CPU_BFLOAT16 = {"avx512_bf16", "amx_bf16"}  # flags of a processor that multiplies it
_CPU_INFO = Path("/proc/cpuinfo")


def native_dtype(dtype: str, device: torch.device) -> str:
    """`teacher.dtype`; `auto` is bfloat16 where the device computes it natively, else float32."""
    if dtype != "auto":
        return dtype
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        flags = _CPU_INFO.read_text(encoding="utf-8", errors="replace").split() if _CPU_INFO.is_file() else []
        native = not _CPU_BFLOAT16.isdisjoint(flags)
    return "bfloat16" if native else "float32"


def require_4bit(device: torch.device) -> None:
    """Whether `teacher.load_in_4bit` can be had, before anything is computed.

    Raises:
        UserError: no CUDA, or no bitsandbytes.
    """
    if device.type != "cuda":
        raise UserError(
            f"teacher.load_in_4bit=true: needs a CUDA device, and this run computes on {device} (general.device); set "
            "it to false, and take a smaller LLaMA, as teacher=ilora_small does"
        )
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "teacher.load_in_4bit=true: needs the package bitsandbytes, which is not installed; run `poetry install "
            "--extras quantization`, or set it to false"
        )


def load_llm(
    path: Path, dtype: str, device: torch.device, *, attn_implementation: str = "auto", load_in_4bit: bool = False
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Load tokenizer and causal LM, with a padding token and the four markers added to both.

    The tokenizer has a BOS and puts it before every text; its EOS is another token. What the checkpoint says of
    generation (`generation_config.json`) is of no account: `PromptedLM` chooses each token itself.

    Args:
        attn_implementation: as transformers has it; `auto`: the one that it takes by itself.
        load_in_4bit: NF4 (Dettmers et al., arXiv 2305.14314), computed with in `dtype`; see `require_4bit`.

    Raises:
        UserError: `path` holds no LLaMA-family model; the message says what is expected there.
    """
    check_llm_folder(path)
    tokenizer = _load_tokenizer(path)
    options: dict[str, Any] = {} if attn_implementation == "auto" else {"attn_implementation": attn_implementation}
    if load_in_4bit:
        options |= _quantization(path, dtype, device)
    model = _load_model(path, dtype, options)
    _add_markers(tokenizer, model)
    _put_bos_first(path, tokenizer, model.config)
    model = (model if load_in_4bit else model.to(device)).eval()
    _check_output_layer(path, model)
    return tokenizer, model


def _load_model(path: Path, dtype: str, options: dict[str, Any]) -> PreTrainedModel:
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
            **options,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"teacher.llm_path={path}: the model does not load ({reason}); {EXPECTED}") from error
    missing = [name for name in TARGET_MODULES if not any(n.endswith(name) for n, _ in model.named_modules())]
    if missing:
        raise UserError(
            f"teacher.llm_path={path}: a {config.model_type} model without {', '.join(missing)}; {EXPECTED}"
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
    files = weight_files(path)
    if files[0].suffix == ".safetensors":
        return path, {"use_safetensors": True, "low_cpu_mem_usage": True}
    state: dict[str, Tensor] = {}
    for file in files:
        content = read_tensors(file)
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise UserError(f"{file}: holds no state_dict of tensors; {EXPECTED}")
        state |= content
    return None, {"state_dict": state}


def _quantization(path: Path, dtype: str, device: torch.device) -> dict[str, Any]:
    if weight_files(path)[0].suffix != ".safetensors":
        raise UserError(
            f"teacher.load_in_4bit=true: teacher.llm_path={path} has pickled weights (pytorch_model*.bin); get the "
            "model's safetensors, or set it to false"
        )
    kind = getattr(torch, dtype)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=kind)
    return {"quantization_config": config, "device_map": {"": device}}


@torch.no_grad()
def _check_output_layer(path: Path, model: PreTrainedModel) -> None:
    """The loss calls the output layer itself, on few positions: families that scale its result are refused."""
    ids = torch.arange(4, device=model.device)[None]
    own = model.lm_head(model.model(ids, use_cache=False).last_hidden_state).float()
    if not torch.allclose(own, model(ids, use_cache=False).logits, rtol=1e-2, atol=1e-3):
        raise UserError(
            f"teacher.llm_path={path}: a {model.config.model_type} model, which changes the output layer's logits; "
            f"{EXPECTED}"
        )


def _load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    try:
        # legacy: the tokenization that upstream's transformers version had.
        return AutoTokenizer.from_pretrained(
            path,
            use_fast=not (path / _TOKENIZER_MODEL).is_file(),
            legacy=True,
            add_bos_token=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # SentencePiece raises the last
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"teacher.llm_path={path}: the tokenizer does not load ({reason}); {EXPECTED}") from error


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
