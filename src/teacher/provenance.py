"""What a teacher's steps are made from: flat dictionaries, as `src/core/artefacts.py` records and compares them.

A LLaMA is known by what lies in its folder (`llm_digest`), not by its path: it may be moved, and one that was replaced
is another.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from src.core.data_utils import SequenceDataset
from src.core.files import sha256_file
from src.core.settings import flat_settings
from src.core.teacher_files import ChosenRows
from src.teacher.interfaces import Settings
from src.teacher.llm.folder import llm_digest
from src.teacher.paths import TeacherPaths
from src.teacher.recommender import recommender_config

ADAPTER = "the adapter"
_LLM = "the base model"
_DATA_SET, _TITLES, _RECOMMENDER = "the data set", "the titles", "the frozen recommender"
# Settings that decide which rows are exported; the rows themselves are noted.
_CHOICE_OF_ROWS = ("teacher.export.rows", "teacher.export.student_checkpoint", "teacher.export.max_rows")
# Settings of which one value leaves the choice to the program: what it has chosen, by name.
Chosen = Mapping[str, Any]


def recommender_made_from(cfg: Settings, dataset: SequenceDataset) -> dict[str, Any]:
    """Of the frozen recommender that is trained here."""
    return {
        "general.seed": cfg.general.seed,
        **flat_settings(recommender_config(cfg.teacher, dataset), "teacher.recommender"),
        **flat_settings(cfg.metrics, "metrics"),
        _DATA_SET: dataset.fingerprint,
    }


def tiny_llm_made_from(cfg: Settings, dataset: SequenceDataset) -> dict[str, Any]:
    """Of the tiny LLaMA."""
    return {
        "general.seed": cfg.general.seed,
        **_values(cfg, "max_history", "num_candidates"),
        **_wording(cfg),
        **flat_settings(cfg.teacher.tiny, "teacher.tiny"),
        _DATA_SET: dataset.fingerprint,
        _TITLES: _titles_sha256(dataset),
    }


def training_made_from(
    cfg: Settings, dataset: SequenceDataset, *, paths: TeacherPaths, chosen: Chosen
) -> dict[str, Any]:
    """Of the adapter, the recommender and the tiny LLaMA included; `chosen` is what `auto` has become."""
    used = replace(cfg.teacher, recommender=recommender_config(cfg.teacher, dataset), **chosen)
    given = paths.recommender_weights if cfg.teacher.rec_model_path is not None else None
    return {
        "general.seed": cfg.general.seed,
        **flat_settings(cfg.dataset, "dataset"),
        **flat_settings(used, "teacher"),
        **_wording(cfg),
        **flat_settings(cfg.metrics, "metrics"),
        _DATA_SET: dataset.fingerprint,
        _TITLES: _titles_sha256(dataset),
        _LLM: _llm_digest(paths),
        _RECOMMENDER: _sha256(given),
        "the initial adapter": _sha256(paths.initial_adapter_weights),
    }


def export_made_from(
    cfg: Settings, dataset: SequenceDataset, *, paths: TeacherPaths, chosen: Chosen, rows: ChosenRows | None
) -> dict[str, Any]:
    """Of the files for students, which the manifest says, too."""
    settings = flat_settings(cfg.teacher, "teacher", ["export"])
    return {
        **_scoring_made_from(cfg, dataset, paths, chosen),
        **{key: value for key, value in settings.items() if key not in _CHOICE_OF_ROWS},
        "the exported rows": None if rows is None else hashlib.sha256(rows.index.tobytes()).hexdigest(),
    }


def evaluation_made_from(
    cfg: Settings, dataset: SequenceDataset, *, paths: TeacherPaths, chosen: Chosen
) -> dict[str, Any]:
    """Of the evaluation on test rows, which are ranked as the export ranks: by embeddings, where it does so."""
    export = flat_settings(cfg.teacher, "teacher", ["export"])
    embeds = {key: value for key, value in export.items() if key.startswith("teacher.export.embedding_")}
    return {
        **_scoring_made_from(cfg, dataset, paths, chosen),
        **flat_settings(cfg.teacher, "teacher", ["evaluation"]),
        **flat_settings(cfg.metrics, "metrics", ["evaluation"]),
        "teacher.export.method": cfg.teacher.export.method,
        "teacher.export.candidates": cfg.teacher.export.candidates,
        **(embeds if cfg.teacher.export.method == "generate" else {}),
    }


def _scoring_made_from(cfg: Settings, dataset: SequenceDataset, paths: TeacherPaths, chosen: Chosen) -> dict[str, Any]:
    """What a trained teacher's scores of rows depend on."""
    return {
        "general.seed": cfg.general.seed,
        **{f"teacher.{name}": value for name, value in chosen.items()},
        **_values(cfg, "load_in_4bit", "max_history", "num_candidates"),
        **_wording(cfg),
        _DATA_SET: dataset.fingerprint,
        _TITLES: _titles_sha256(dataset),
        _LLM: _llm_digest(paths),
        _RECOMMENDER: _sha256(paths.recommender_weights),
        ADAPTER: _sha256(paths.adapter_weights),
    }


def _values(cfg: Settings, *names: str) -> dict[str, Any]:
    return {f"teacher.{name}": getattr(cfg.teacher, name) for name in names}


def _wording(cfg: Settings) -> dict[str, Any]:
    """The prompts' texts, wherever they come from."""
    return flat_settings(cfg.teacher.wording, "teacher.prompt")


def _llm_digest(paths: TeacherPaths) -> str | None:
    """None for one that is built here: its settings tell what it is before it is there."""
    return None if paths.given_llm is None else llm_digest(paths.given_llm)


def _titles_sha256(dataset: SequenceDataset) -> str:
    return hashlib.sha256("\n".join(dataset.titles).encode()).hexdigest()


def _sha256(path: Path | None) -> str | None:
    return sha256_file(path) if path is not None and path.is_file() else None
