"""The adapter's folder: `adapter_model.safetensors` with LoRA, router and projector, and `adapter_config.json`.

Both implementations write and read this format, which is that of stock `peft`; the file's metadata names the base
model.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from src.core.errors import UserError
from src.core.files import write_atomic, write_json
from src.core.foreign.hub import HubModel, is_hub_id
from src.core.foreign.tensors import check_fits
from src.core.foreign.typed import read_typed
from src.core.paths import project_path
from src.teacher.llm.folder import llm_name

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_SAMPLE = 256


def find_adapter(given: str) -> str:
    """What `teacher.init_adapter` means: a folder or file that is there, or where the hub's adapter lies in the cache.

    Raises:
        UserError: no such adapter on the hub, or no way to it.
    """
    if project_path(given).exists() or not is_hub_id(given):
        return given
    instead = f"expected a folder with {WEIGHTS_FILE} and {CONFIG_FILE}, upstream's .ckpt, or a hub id, owner/name"
    return str(HubModel(id=given, key="teacher.init_adapter", instead=instead).fetch([WEIGHTS_FILE, CONFIG_FILE]))


@dataclass(frozen=True)
class BaseModel:
    """Which LM an adapter belongs to: a name for people, and a digest of its weights."""

    name: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name} ({self.digest[:12]})"


@torch.no_grad()
def describe_base(llm: PreTrainedModel) -> BaseModel:
    """Digest of every parameter's shape and first 256 values in bfloat16, so that `teacher.dtype` plays no part.

    To be taken before an adapter is added.
    """
    digest = hashlib.sha256()
    for name, parameter in llm.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        values = parameter.flatten()[:_SAMPLE].to(torch.bfloat16).view(torch.int16)
        digest.update(values.cpu().numpy().tobytes())
    return BaseModel(llm_name(Path(llm.name_or_path)), digest.hexdigest())


def write_adapter(folder: Path, state: dict[str, Tensor], config: LoraConfig, base: BaseModel) -> None:
    """Write both files, the same bytes for the same adapter; the weights appear last."""
    write_json(folder / CONFIG_FILE, _described(config))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = {"base_model": f"{base.digest} {base.name}"}  # one key: safetensors writes several in random order
    write_atomic(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path, metadata))


def _described(config: LoraConfig) -> dict[str, object]:
    """What peft's `save_pretrained` writes, which has sets in an order that changes from process to process."""
    values = sorted(config.to_dict().items())
    return {key: sorted(value) if isinstance(value, set) else value for key, value in values}


def read_adapter(folder: Path, base: BaseModel) -> dict[str, Tensor]:
    """The adapter's weights on the CPU. A file that stock `peft` wrote names no base model; then shapes alone decide.

    Raises:
        UserError: the file is missing or damaged, or it was trained on another base model.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"{path}: missing file; an adapter's folder holds {WEIGHTS_FILE} and {CONFIG_FILE}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged file ({error})") from error
    digest, _, name = metadata.get("base_model", f"{base.digest} {base.name}").partition(" ")
    made_for = BaseModel(name, digest)
    if made_for.digest != base.digest:
        raise UserError(
            f"{path}: an adapter of the base model {made_for}, this run's teacher.llm_path is {base}; "
            "give the base model that it was trained on"
        )
    return state


class SavedConfig(TypedDict):
    """What is read of the configuration, which is that of stock `peft`."""

    r: int
    lora_alpha: int
    lora_dropout: float


def read_config(folder: Path) -> SavedConfig:
    """The settings of a saved adapter.

    Raises:
        UserError: the file is missing or damaged.
    """
    return read_typed(folder / CONFIG_FILE, SavedConfig, "copy the adapter's folder again")


def check_fits_model(path: Path, state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Compare names and shapes of an adapter's weights, read from `path`, with those of this run's.

    Raises:
        UserError: naming the first that differs.
    """
    advice = "use the teacher.lora settings, the base model and the recommender that it was trained with"
    check_fits(path, state, wanted, advice)
