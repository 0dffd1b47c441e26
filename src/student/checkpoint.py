"""Student checkpoints: `model.safetensors` beside a readable `config.json`, and the items they rank, `items.json`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.files import Sighting, read_json, write_atomic, write_json
from src.core.foreign.tensors import check_fits
from src.core.foreign.typed import read_typed, typed
from src.core.paths import CONFIG_FILE, ITEMS_FILE, WEIGHTS_FILE
from src.student.config import NORMS, SCORES, ModelConfig
from src.student.models import Student, build_model


@dataclass(frozen=True)
class CheckpointInfo:
    """Where a checkpoint comes from."""

    dataset: str
    dataset_fingerprint: str
    seed: int
    git_commit: str
    epoch: int
    monitor: str
    valid_value: float
    teacher_manifest_sha256: str | None = None


class _Description(TypedDict):
    model: ModelConfig
    info: CheckpointInfo


@dataclass(frozen=True)
class Catalogue:
    """What a student's item numbers mean: the raw id and the title of each, [num_items]."""

    item_ids: list[str]
    titles: list[str]


def save_checkpoint(folder: Path, model: Student, state: dict[str, torch.Tensor], info: CheckpointInfo) -> None:
    """Write the weights `state` of `model` and then the description that makes them complete."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomic(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path))
    write_json(folder / CONFIG_FILE, {"model": model.config.as_dict(), "info": asdict(info)})


def load_checkpoint(folder: Path) -> tuple[Student, CheckpointInfo]:
    """Rebuild a saved model on the CPU.

    Raises:
        UserError: files are missing or damaged, or the weights do not fit the description.
    """
    before = Sighting.of(folder / CONFIG_FILE, folder / WEIGHTS_FILE)
    description = typed(
        read_json(folder / CONFIG_FILE),
        _Description,
        where=f"{folder / CONFIG_FILE}: not a student checkpoint",
        advice="copy the folder again",
    )
    config, info = description["model"], description["info"]
    state = _read_weights(folder)
    before.require_same()
    _check_fits(folder, state, _without_memory(config, folder / CONFIG_FILE, len(state)))
    model = build_model(config)
    model.load_state_dict(state)
    return model, info


def save_catalogue(folder: Path, items: Catalogue) -> None:
    """Write the items beside a student's weights, which are served with them and without the log."""
    write_json(folder / ITEMS_FILE, asdict(items))


def load_catalogue(folder: Path, num_items: int) -> Catalogue:
    """The items that a saved student ranks.

    Raises:
        UserError: the file is missing or damaged, or has not an id of its own and a title for each of `num_items`.
    """
    path, advice = folder / ITEMS_FILE, "take the file of the same training"
    items = read_typed(path, Catalogue, advice)
    counts = {len(items.item_ids), len(items.titles), len(set(items.item_ids))}
    if counts != {num_items}:
        raise UserError(
            f"{path}: must hold item_ids and titles, {num_items} texts each as the model has items, no id twice; "
            f"{advice}"
        )
    return items


def load_checkpoint_of(folder: Path, dataset: SequenceDataset, key: str) -> Student:
    """Rebuild a saved model that was trained on `dataset`; `key` is what names the folder in the configuration.

    Raises:
        UserError: as `load_checkpoint`, or it was trained on another dataset.
    """
    model, info = load_checkpoint(folder)
    if info.dataset_fingerprint != dataset.fingerprint:
        raise UserError(
            f"{key}={folder}: trained on {info.dataset} ({info.dataset_fingerprint[:12]}), this run "
            f"uses {dataset.name} ({dataset.fingerprint[:12]})"
        )
    return model


def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy a checkpoint's weights into `model`.

    Raises:
        UserError: the file is missing or damaged, or a name or shape differs.
    """
    state = _read_weights(folder)
    _check_fits(folder, state, model)
    model.load_state_dict(state)


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"{path}: missing file; a checkpoint folder holds {WEIGHTS_FILE} and {CONFIG_FILE}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged file ({error})") from error


def _without_memory(config: ModelConfig, path: Path, num_tensors: int) -> Student:
    """The model of the description in `path` on the meta device: a description may ask for more than its file has.

    Raises:
        UserError: no model is like that, or one of more blocks than there are tensors.
    """
    try:
        sound = 0 <= config.num_blocks <= num_tensors and config.num_heads > 0
        sound = sound and config.hidden_size % config.num_heads == 0
        known = config.norm in NORMS and config.scores in SCORES and 0 < config.temperature < float("inf")
        if not (sound and known):
            keys = ("num_blocks", "num_heads", "norm", "scores", "temperature")
            raise ValueError(", ".join(f"{key}={getattr(config, key)!r}" for key in keys))
        with torch.device("meta"), _WithoutStart():
            return build_model(config)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"{path}: describes no student ({error})") from error


class _WithoutStart(TorchFunctionMode):
    """Leaves out `nn.init`, which has nothing to fill on the meta device and imports SymPy to do it, for seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _check_fits(folder: Path, state: dict[str, torch.Tensor], model: nn.Module) -> None:
    advice = "use the student settings and the dataset of the checkpoint"
    check_fits(folder / WEIGHTS_FILE, state, model.state_dict(), advice)
