"""What a student is made from, and by what two students differ."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.core.artefacts import Record, unlike
from src.core.data_utils import SequenceDataset
from src.core.files import sha256_file
from src.core.paths import WEIGHTS_FILE, project_path
from src.core.settings import flat_settings
from src.core.teacher_files import DATA_FILES, MANIFEST_FILE, ROWS_FILE
from src.exp.settings import Settings
from src.student.config import StudentConfig

DATA, TEACHER_FILES, INITIAL_WEIGHTS = "the data set", "the teacher's files", "the initial weights"
OWN_EMBEDDINGS = "the embeddings file"  # a key only where there is one


def student_inputs(cfg: Settings, dataset: SequenceDataset, student: StudentConfig | None = None) -> dict[str, Any]:
    """All that decides a student's training apart from a teacher.

    Args:
        student: the student as it is trained; None: as `cfg.student` has it.
    """
    return {
        "general.seed": cfg.general.seed,
        **flat_settings(cfg.dataset, "dataset"),
        **flat_settings(student or cfg.student, "student"),
        **flat_settings(cfg.metrics, "metrics"),
        DATA: dataset.fingerprint,
    }


def distillation_inputs(
    cfg: Settings, dataset: SequenceDataset, *, teacher_files: str | None, initial_weights: str | None
) -> dict[str, Any]:
    """All that decides a distilled student. `student.*` holds its budget and loss as it is really trained."""
    own = cfg.distill.embeddings_file if cfg.distill.reads_embeddings else None
    return {
        **student_inputs(cfg, dataset, cfg.distill.as_student(cfg.student)),
        **flat_settings(cfg.distill, "distill"),
        **flat_settings(cfg.active, "active"),
        "teacher.export.rows": cfg.teacher.export.rows,
        TEACHER_FILES: teacher_files,
        INITIAL_WEIGHTS: initial_weights,
        **({OWN_EMBEDDINGS: weights_hash(project_path(own))} if own is not None else {}),
    }


def differ_besides_distillation(baseline: Record, distilled: Record) -> str:
    """By what two students differ apart from the distillation, as `student.name caser / sasrec`; empty: by nothing.

    A fair comparison asks for equal data, rows, student, budget (batch, rate, epochs, patience), loss and seed.
    """
    return unlike(baseline.made_from, shared_inputs(distilled.made_from, baseline.made_from))


def shared_inputs(made_from: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `made_from` that has the sections of `like`, a baseline's."""
    sections = {key.split(".")[0] for key in like}
    return {key: value for key, value in made_from.items() if key.split(".")[0] in sections}


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
