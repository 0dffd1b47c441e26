"""What a stage's result was made from, so that a stage that is complete and unchanged need not run again."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.core.data_utils import SequenceDataset
from src.core.files import read_json, sha256_file, write_json
from src.core.teacher_files import DATA_FILES, MANIFEST_FILE, ROWS_FILE
from src.student.checkpoint import WEIGHTS_FILE

_STUDENT = ("dataset", "student", "metrics")
_DISTILL = (*_STUDENT, "distill", "active")
_SECTIONS = {
    "teacher": ("dataset", "teacher", "metrics"),
    "baseline": _STUDENT,
    "distill": _DISTILL,
    "dllm2rec_upstream": _DISTILL,
}
_OWN_IN_DISTILL = {"student.batch_size", "student.lr", "student.num_epochs"}  # `distill` has its own of these
_TOLD = 5  # changes that a message names
_WITHOUT_EFFECT = {
    "dataset.raw_dir",
    "student.save_interval",
    "teacher.save_interval",
    "teacher.save_steps",
    "teacher.gradient_checkpointing",
    "teacher.export.batch_tokens",
}  # on the numbers
CHOICE_OF_ROWS = "rows to export: "  # before the names of what a teacher's export reads besides its settings
_AFTER_TRAINING = {"teacher": ("teacher.export.", "teacher.max_eval_rows", "metrics.ks", CHOICE_OF_ROWS)}
_WHILE_TRAINING = {"teacher": ("teacher.micro_batch_size",)}


@dataclass(frozen=True)
class Record:
    """A stage's record in its run folder.

    Attributes:
        made_from: settings by dotted key, and what was read: the data's fingerprint, hashes of files.
        value: what the stage returned, its best validation value; None until it is complete.
        trained: the same as soon as its training is done, which may be long before (a teacher's export takes hours).
    """

    made_from: dict[str, Any]
    value: float | None = None
    trained: float | None = None

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))


def read_record(path: Path) -> Record | None:
    """The record of a stage, None where it has not begun."""
    return Record(**read_json(path)) if path.is_file() else None


def made_from(cfg: DictConfig, stage: str, dataset: SequenceDataset, files: dict[str, str | None]) -> dict[str, Any]:
    """All that decides the numbers of a stage.

    Args:
        files: hashes of what it reads besides the data set, by a name for messages.
    """
    values: dict[str, Any] = {"general.seed": cfg.general.seed}
    for section in _SECTIONS[stage]:
        values |= _flat(OmegaConf.to_container(cfg[section], resolve=True), section)
    ignored = _WITHOUT_EFFECT | (_OWN_IN_DISTILL if stage in ("distill", "dllm2rec_upstream") else set())
    kept = {key: value for key, value in values.items() if key not in ignored}
    return {**kept, "the data set": dataset.fingerprint, **files}


def _flat(node: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {leaf: value for key, inner in node.items() for leaf, value in _flat(inner, f"{prefix}.{key}").items()}


def is_same_training(stage: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a finished training of the stage need not be repeated: only what comes after it has changed."""
    return all(key.startswith(_AFTER_TRAINING.get(stage, ())) for key in _changed(before, now))


def can_go_on(stage: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether an interrupted training of the stage can go on: besides, what may change from step to step has."""
    harmless = _AFTER_TRAINING.get(stage, ()) + _WHILE_TRAINING.get(stage, ())
    return all(key.startswith(harmless) for key in _changed(before, now))


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [key for key in {**before, **now} if before.get(key) != now.get(key)]


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, as `student.lr changed from 0.001 to 0.01`."""
    keys = _changed(before, now)
    told = [f"{key} changed from {_short(before.get(key))} to {_short(now.get(key))}" for key in keys[:_TOLD]]
    return told + ([f"{len(keys) - _TOLD} more keys changed"] if len(keys) > _TOLD else [])


def _short(value: Any) -> Any:
    """A hash by its first digits."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else value


def teacher_files_hash(folder: Path) -> str | None:
    """The manifest's hash, which covers the files; of the files themselves where there is none; None without files."""
    if (folder / MANIFEST_FILE).is_file():
        return sha256_file(folder / MANIFEST_FILE)
    hashes = [sha256_file(folder / name) for name in (*DATA_FILES, ROWS_FILE) if (folder / name).is_file()]
    return " ".join(digest[:12] for digest in hashes) or None


def weights_hash(path: Path | None, name: str = WEIGHTS_FILE) -> str | None:
    """The hash of a weights file, or of that in a folder (a student's, if not another `name`); None without one."""
    if path is not None and path.is_dir():
        path = path / name
    return sha256_file(path) if path is not None and path.is_file() else None
