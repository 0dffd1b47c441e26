"""Upstream's pickled SASRec (`rec_model/*.pt` of AkaliKong/iLoRA@28e4737), read without executing the pickle.

`torch.save(model)` stores a program that names classes and functions to call. Here tensors are rebuilt and whatever
else the file names becomes an inert record, from whose state the weights are gathered.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from src.core.errors import UserError
from src.student.models import ModelConfig, Student, build_model

# Needed to rebuild tensors; they run nothing that a file could choose.
_ADMITTED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}
_INERT_MODULES = ("__main__", "SASRecModules_ori", "recommender.A_SASRec_final_bce_llm", "torch.nn.modules.")
_INERT = {("torch", "device"), ("numpy", "dtype"), ("numpy.core.multiarray", "scalar"), ("_codecs", "encode")}
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


class _Record:
    """Stands for an object of a class that is not loaded: its name and its state."""

    path = ""

    def __init__(self, *args: object) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


class _InertUnpickler(pickle.Unpickler):
    """Calls nothing but what `_ADMITTED` holds."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        if (module, name) in _INERT or module.startswith(_INERT_MODULES):
            return type(name, (_Record,), {"path": f"{module}.{name}"})
        raise UserError(
            f"the pickle names {module}.{name}, which a recommender does not need; it was not executed: get the file "
            "from its original source"
        )


def read_pickled_sasrec(path: Path) -> Student:
    """Upstream's SASRec as ours: the same hidden state at the last item, on the CPU.

    Its item ids, 0 to `num_items - 1`, are those of the files it was trained on.

    Raises:
        UserError: not a file of `torch.save`, another class, or weights of an unexpected name or shape.
    """
    record = _load(path)
    if type(record).__name__ != "SASRec":
        kind = record.path if isinstance(record, _Record) else type(record).__name__
        raise UserError(f"{path}: holds {kind}; only a pickled SASRec of iLoRA serves as teacher.rec_model_path")
    state = _tensors(record)
    try:
        (num_items, hidden), window = state["s_fc.weight"].shape, len(state["positional_embeddings.weight"])
        heads = record.state["_modules"]["mh_attn"].state["num_heads"]
        model = build_model(ModelConfig("sasrec", num_items, hidden, hidden, window, 0.0, num_heads=heads))
        model.load_state_dict({ours: _ours(state, ours, value) for ours, value in model.state_dict().items()})
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a SASRec as iLoRA has it ({str(error).splitlines()[0]})") from error
    return model


def _load(path: Path) -> object:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not a file written by torch.save (a zip archive with data.pkl)")
    try:
        inert = SimpleNamespace(Unpickler=_InertUnpickler, __name__="inert")
        return torch.load(path, map_location="cpu", pickle_module=inert, weights_only=False)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{path}: damaged file ({type(error).__name__}: {error})") from error


def _tensors(record: _Record, prefix: str = "") -> dict[str, Tensor]:
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
