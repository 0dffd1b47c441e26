"""Weights under iLoRA's names (AkaliKong/iLoRA@28e4737) and under ours, and its checkpoints.

Upstream's names are those of its Lightning module: `llama_model.base_model.model...lora_A.default.weight`,
`router.conv1.weight`, `projector.mlp_proj.0.weight`. Ours are those of the adapter file.
"""

import logging
import re
from pathlib import Path

from torch import Tensor

from src.core.errors import UserError
from src.core.foreign.tensors import read_tensors
from src.teacher.adapter.adapter_file import check_fits_model

_LLM, _OURS = "llama_model.", "base_model.model."
_PROJECTOR = {"mlp_proj.0": "inner", "mlp_proj.2": "outer"}
_ROUTER = {"conv1": "conv", "bn1": "bn", "gate.fc": "gate"} | {
    f"layer{stage + 1}.{block}": f"blocks.{3 * stage + block}" for stage in range(3) for block in range(3)
}
_BUFFER = re.compile(r"\.(running_mean|running_var|num_batches_tracked)$")


def to_adapter(upstream: dict[str, Tensor]) -> dict[str, Tensor]:
    """Upstream's names -> ours, without its per-layer `gating` modules: with the shared router nothing uses them."""
    return {_our_name(name): value for name, value in upstream.items() if ".gating." not in name}


def from_adapter(adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names -> upstream's, without its unused `gating` modules."""
    return {_upstream_name(name): value for name, value in adapter.items()}


def _our_name(name: str) -> str:
    if name.startswith(_LLM):
        return name.removeprefix(_LLM).replace(".default.", ".")
    part, _, rest = name.partition(".")
    return f"{_OURS}{part}.{_renamed(rest, _ROUTER if part == 'router' else _PROJECTOR)}"


def _upstream_name(name: str) -> str:
    part, rest = name.removeprefix(_OURS).split(".", 1)
    if part == "router":
        return f"router.{_renamed(rest, {ours: theirs for theirs, ours in _ROUTER.items()})}"
    if part == "projector":
        return f"projector.{_renamed(rest, {ours: theirs for theirs, ours in _PROJECTOR.items()})}"
    return _LLM + re.sub(r"\.(lora_[AB])\.", r".\1.default.", name)


def _renamed(name: str, table: dict[str, str]) -> str:
    """Replace the longest leading part of a name that the table knows."""
    parts = name.split(".")
    for end in (2, 1):
        head = ".".join(parts[:end])
        if head in table:
            return ".".join([table[head], *parts[end:]])
    raise UserError(f"{name}: not a weight of iLoRA's router or projector")


def read_checkpoint(path: Path, wanted: dict[str, Tensor], logger: logging.Logger) -> dict[str, Tensor]:
    """The adapter in a checkpoint of upstream's training (`.ckpt`), under our names, for a model with state `wanted`.

    Upstream saves what has gradients only, so the router's BatchNorm statistics are missing: those of `wanted` are
    kept, with a warning. Nothing in the file is executed.

    Raises:
        UserError: not such a checkpoint, or other weights or shapes than `wanted`.
    """
    content = read_tensors(path)
    upstream = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(upstream, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in upstream.items()
    ):
        raise UserError(f"{path}: not a checkpoint of iLoRA's training, which has a state_dict of tensors")
    try:
        state = to_adapter(upstream)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    statistics = {name: wanted[name] for name in wanted.keys() - state.keys() if _BUFFER.search(name)}
    if not any(".projector." in name for name in state):
        raise UserError(f"{path}: has no projector; upstream drops it from a checkpoint that follows a [PH] batch")
    check_fits_model(path, {**statistics, **state}, wanted)
    if statistics:
        logger.warning(
            "%s: lacks the router's BatchNorm statistics (upstream does not save them); they start anew, so that gates "
            "differ from those of its training until ours has estimated them",
            path,
        )
    return {**statistics, **state}
