"""Loading a LLaMA-family model and tokenizer from a Hugging Face folder, as the machine allows."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
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

from src.core.device import multiplies_bfloat16
from src.core.errors import UserError
from src.core.foreign.hub import reason
from src.core.foreign.tensors import read_tensors
from src.teacher.llm.folder import CONFIG_FILE, EXPECTED, check_formats, check_llm_folder, quantization, weight_files
from src.teacher.prompt.builder import PAD_TOKEN, PromptBuilder
from src.teacher.prompt.wording import MARKERS, Wording

TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # that are adapted
_TOKENIZER_MODEL = "tokenizer.model"


def native_dtype(dtype: str, device: torch.device) -> str:
    """`teacher.dtype`; `auto` is bfloat16 where the device computes it natively, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if multiplies_bfloat16(device) else "float32"


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
    check_formats(path, load_in_4bit=load_in_4bit)
    config = _read_config(path)
    tokenizer = _make_tokenizer(path, config)
    options: dict[str, Any] = {} if attn_implementation == "auto" else {"attn_implementation": attn_implementation}
    if load_in_4bit:
        options |= _quantization(path, dtype, device)
    model = _load_model(path, config, dtype, options)
    with _as_user_error(path, "model"):
        _make_room(tokenizer, model)
        model = (model if load_in_4bit else model.to(device)).eval()
        _check_output_layer(path, model)
    if device.type == "cpu" and model.dtype == torch.bfloat16:
        model.model.forward = partial(_with_plain_attention, model, model.model.forward)
    return tokenizer, model


def _with_plain_attention(model: PreTrainedModel, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A forward pass in which, unless it trains, attention is PyTorch's plain one.

    Its fused one does not use a processor's own products of bfloat16: a query among 900 keys takes it 40 times as long
    (benchmarks/RESULTS.md). In training the plain one would keep [B, H, S, S] of every layer. Told by the mode, too,
    because reentrant checkpointing trains under `no_grad`.
    """
    if model.training or torch.is_grad_enabled():
        return forward(*args, **kwargs)
    with sdpa_kernel(SDPBackend.MATH):
        return forward(*args, **kwargs)


def check_llm(path: Path, titles: list[str], wording: Wording) -> None:
    """Refuse an LLM that could not be loaded, or read these titles with, before anything is trained for it.

    Of weights in safetensors only names and shapes are read.

    Raises:
        UserError: what `load_llm` and `PromptBuilder` refuse.
    """
    config = _read_config(path)
    tokenizer = _make_tokenizer(path, config)
    PromptBuilder(tokenizer, titles, wording, config.max_position_embeddings)
    _check_weights(path, config)


@contextmanager
def _as_user_error(path: Path, what: str) -> Iterator[None]:
    """Whatever the libraries raise for files of strangers: `tokenizers`, for one, raises a bare `Exception`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"teacher.llm_path={path}: the {what} does not load ({reason(error)}); {EXPECTED}") from error


def _read_config(path: Path) -> PretrainedConfig:
    with _as_user_error(path, "model"):
        # trust_remote_code=False: without it transformers asks on the terminal whether to run code of the folder.
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def _load_model(path: Path, config: PretrainedConfig, dtype: str, options: dict[str, Any]) -> PreTrainedModel:
    with _as_user_error(path, "model"):
        source, weights = _weights(path)
        _check_depth(path, config, weights.get("state_dict") or _shapes(path))
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
    _check_family(path, model)
    absent = found["missing_keys"]  # transformers only warns
    _refuse_gaps(path, [name for name, value in model.named_parameters() if value.is_meta or name in absent])
    return model


def _check_depth(path: Path, config: PretrainedConfig, names: Iterable[str]) -> None:
    """Refuse more layers than the weights have: they are built one by one, even where nothing is allocated."""
    held = len({number for name in names for number in re.findall(r"\.(\d+)\.", name)})  # a name may hold any number
    described = getattr(config, "num_hidden_layers", 0)
    if described > held:
        raise UserError(
            f"teacher.llm_path={path}: its {CONFIG_FILE} describes {described} layers, the weights hold {held}; take "
            f"{CONFIG_FILE} and weights of one checkpoint"
        )


def _check_family(path: Path, model: PreTrainedModel) -> None:
    missing = [name for name in TARGET_MODULES if not any(n.endswith(name) for n, _ in model.named_modules())]
    if missing:
        raise UserError(
            f"teacher.llm_path={path}: a {model.config.model_type} model without {', '.join(missing)}; {EXPECTED}"
        )


def _refuse_gaps(path: Path, lacking: Collection[str]) -> None:
    if lacking:
        first, *others = sorted(lacking)
        raise UserError(
            f"teacher.llm_path={path}: its weights lack {first} and {len(others)} more; get the whole checkpoint"
        )


def _check_weights(path: Path, config: PretrainedConfig) -> None:
    """Compare names and shapes of the weights with those of the model that the configuration describes."""
    with _as_user_error(path, "model"):
        shapes = _shapes(path)
        _check_depth(path, config, shapes)
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    _check_family(path, model)
    if quantization(path) is not None:  # packed: their shapes are others
        return
    packed = sorted(name for name in shapes if name.endswith((".qweight", ".qzeros", ".absmax")))
    if packed:
        raise UserError(
            f"teacher.llm_path={path}: quantised weights ({packed[0]}), which cannot be adapted; give the checkpoint "
            "that they were made from, in float16 or bfloat16"
        )
    wanted = {name: tuple(value.shape) for name, value in model.named_parameters()}
    prefix = f"{model.base_model_prefix}."
    if not any(name.startswith(prefix) for name in shapes):  # of the model without its output layer
        shapes = {prefix + name: shape for name, shape in shapes.items()}
    for name in sorted(wanted.keys() & shapes.keys()):
        if wanted[name] != shapes[name]:
            raise UserError(
                f"teacher.llm_path={path}: {name} holds {shapes[name]}, the model of its config.json wants "
                f"{wanted[name]}; take config.json and weights of one checkpoint"
            )
    tied = set(model._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    _refuse_gaps(path, wanted.keys() - shapes.keys() - tied)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    files = weight_files(path)
    if files[0].suffix != ".safetensors":
        return {name: tuple(value.shape) for name, value in _pickled_state(path).items()}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return shapes


def _weights(path: Path) -> tuple[Path | None, dict[str, Any]]:
    """What tells transformers to take the weights from safetensors, or from memory: its own way to `.bin` is torch's
    loader, which may run what it reads. Those take twice the memory while they are copied.
    """
    if weight_files(path)[0].suffix == ".safetensors":
        return path, {"use_safetensors": True, "low_cpu_mem_usage": True}
    return None, {"state_dict": _pickled_state(path)}


def _pickled_state(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in weight_files(path):
        content = read_tensors(file)
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise UserError(f"{file}: holds no state_dict of tensors; {EXPECTED}")
        state |= content
    return state


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


def _make_tokenizer(path: Path, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """The folder's tokenizer with a BOS, [PAD] and the markers."""
    with _as_user_error(path, "tokenizer"):
        # legacy: the tokenization that upstream's transformers version had.
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path,
            use_fast=not (path / _TOKENIZER_MODEL).is_file(),
            legacy=True,
            add_bos_token=True,
            local_files_only=True,
            trust_remote_code=False,
        )
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        # Without lstrip/rstrip the blanks around a marker would become tokens of their own.
        markers = [AddedToken(m, lstrip=True, rstrip=True, normalized=False, special=True) for m in MARKERS]
        tokenizer.add_special_tokens({"additional_special_tokens": markers})
        _put_bos_first(path, tokenizer, config)
    return tokenizer


def _make_room(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Rows for [PAD] and the markers, which start as the mean of the old ones, so that loading repeats."""
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
