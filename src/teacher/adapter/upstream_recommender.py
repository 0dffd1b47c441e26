"""Upstream's pickled SASRec (`rec_model/*.pt` of AkaliKong/iLoRA@28e4737), read without executing the pickle.

`torch.save(model)` stores a program that names classes and functions to call. Here tensors are rebuilt and whatever
else the file names becomes an inert record, from whose state the weights are gathered.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from src.core.errors import UserError
from src.core.foreign.pickles import Record
from src.core.foreign.tensors import read_saved
from src.student.config import ModelConfig
from src.student.models import Student, build_model

# What a module holds beside its tensors; none of it is loaded.
_CLASSES = ("__main__.", "SASRecModules_ori.", "recommender.A_SASRec_final_bce_llm.", "torch.nn.modules.")
_VALUES = {
    "torch.device",
    "builtins.set",
    "__builtin__.set",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
}
# Our names -> upstream's.
_NAMES = {
    "item_embeddings": "item_embeddings",
    "position_embeddings": "positional_embeddings",
    "blocks.0.norm_attention": "ln_1",
    "blocks.0.norm_feed_forward": "ln_2",
    "blocks.0.attention.query": "mh_attn.linear_q",
    "blocks.0.attention.key": "mh_attn.linear_k",
    "blocks.0.attention.value": "mh_attn.linear_v",
    "blocks.0.inner": "feed_forward.w_1",
    "blocks.0.outer": "feed_forward.w_2",
    "blocks.0.norm_block": "feed_forward.layer_norm",
    "norm_output": "ln_3",
    "output": "s_fc",
}


def read_pickled_sasrec(path: Path) -> Student:
    """Upstream's SASRec as ours: the same hidden state at the last item, on the CPU.

    Its item ids, 0 to `num_items - 1`, are those of the files it was trained on.

    Raises:
        UserError: not a file of `torch.save`, another class, or weights of an unexpected name or shape.
    """
    record = read_saved(path, lambda name: name.startswith(_CLASSES) or name in _VALUES)
    if not isinstance(record, Record) or record.name.rpartition(".")[2] != "SASRec":
        raise UserError(
            f"{path}: holds {_what(record)}; only a pickled SASRec of iLoRA, or the folder of a student trained here, "
            "serves as teacher.rec_model_path"
        )
    try:
        state = _tensors(record)
        (num_items, hidden), window = state["s_fc.weight"].shape, len(state["positional_embeddings.weight"])
        heads = record.state["_modules"]["mh_attn"].state["num_heads"]
        if state["mh_attn.linear_q.weight"].shape != (hidden, hidden):  # else a small file could ask for a huge model
            raise ValueError(f"mh_attn.linear_q is not of {hidden} by {hidden} weights, as s_fc asks for")
        model = build_model(ModelConfig("sasrec", num_items, hidden, hidden, window, 0.0, num_heads=heads))
        model.load_state_dict({ours: _ours(state, ours, value) for ours, value in model.state_dict().items()})
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a SASRec as iLoRA has it ({str(error).splitlines()[0]})") from error
    return model


def _what(content: Any) -> str:
    """What a file holds instead, in words."""
    if isinstance(content, Record):
        return content.name
    if isinstance(content, dict) and any(isinstance(value, Tensor) for value in content.values()):
        return f"a state_dict ({len(content)} entries) without its class"
    return type(content).__name__


def _tensors(record: Record, prefix: str = "") -> dict[str, Tensor]:
    """The `state_dict` of a pickled module."""
    own = {prefix + name: value for name, value in record.state["_parameters"].items() if isinstance(value, Tensor)}
    for name, module in record.state["_modules"].items():
        own |= _tensors(module, f"{prefix}{name}.")
    return own


def _ours(state: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    """The value of our parameter `name`; upstream's feed-forward maps are convolutions of width 1."""
    module, leaf = name.rsplit(".", 1)
    value = state[f"{_NAMES[module]}.{leaf}"]
    return value.detach().float().reshape(like.shape)
