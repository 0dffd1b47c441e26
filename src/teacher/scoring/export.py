"""The export: rankings of training rows, written as the files that students read (`src/core/teacher_files.py`).

The LLM's part takes hours, so it goes through shards that a killed export leaves behind (`shards.py`). The output
folder is locked from the look at what it holds until the manifest is written: exports of two runs wait for each other.
Independent jobs may make parts of the shards before (`teacher.export.part`); who writes the files joins them.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from src.core.artefacts import locked
from src.core.errors import UserError
from src.core.files import sha256_file
from src.core.git_info import git_commit
from src.core.teacher_files import (
    MANIFEST_FILE,
    ROW_STATS_FILE,
    ChosenRows,
    Manifest,
    find_damage,
    read_manifest,
    write_teacher_files,
)
from src.teacher import processes
from src.teacher.model import TeacherModel
from src.teacher.provenance import ADAPTER
from src.teacher.scoring.ranking import Scores, base_embeddings, score_rows, to_ranking
from src.teacher.scoring.shards import (
    read_shards,
    remove_shards,
    shard_folder,
    wait_for_parts,
    working_on,
    write_shards,
)
from src.teacher.training import learnt_rows


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is to be exported, and to where.

    Attributes:
        folder: the teacher's output folder; overwrite: whether another teacher's export there may be replaced.
        made_with: what its files depend on (`provenance.export_made_from`); equal exports are the same.
        adapter: the file of the weights that score.
        base_model: a name of the LM for people; base_model_license: as its own card gives it.
        shards: folder for what is not finished.
        rankings: whether rows are ranked; else the embeddings are all.
        rows: None: all training rows.
    """

    folder: Path
    overwrite: bool
    made_with: dict[str, Any]
    adapter: Path
    base_model: str
    base_model_license: str | None
    seed: int
    shards: Path
    rankings: bool
    rows: ChosenRows | None

    def index(self, teacher: TeacherModel) -> np.ndarray:
        """Training rows to rank, int64 [N], ascending."""
        return np.arange(len(teacher.dataset.train)) if self.rows is None else self.rows.index


def require_free_export(folder: Path, overwrite: bool, adapter: Path) -> None:
    """Refuse to replace the export of another teacher unless told to; called before the training, too.

    Args:
        adapter: file of this teacher's adapter, there or not: what that adapter has exported may be replaced.

    Raises:
        UserError: `folder` holds what another adapter has exported.
    """
    manifest = _readable_manifest(folder, overwrite)
    if manifest is None or overwrite or (adapter.is_file() and sha256_file(adapter) == manifest.adapter_sha256):
        return
    raise UserError(
        f"{folder}: holds the export of another teacher ({manifest.base_model}, seed {manifest.seed}, "
        f"{manifest.num_rows} rows); set general.overwrite=true to replace it, or another paths.teacher_outputs_dir"
    )


def run_export(
    export: Export, load_teacher: Callable[[], TeacherModel], *, logger: logging.Logger, on_shard: Callable[[], None]
) -> dict[str, str]:
    """Rank the rows and write the files, unless the folder holds this export already.

    Several processes each take their share of the shards, and the main one writes the files.

    Args:
        load_teacher: called if there is something to score.
        on_shard: called when a shard is written.

    Returns:
        SHA-256 of each file by its absolute path; nothing in a process beside the main one.

    Raises:
        UserError: see `require_free_export`.
    """
    if not processes.state().is_main_process:
        if processes.receive():
            _score(export, load_teacher(), logger, on_shard)
        return {}
    with locked(export.folder, notify=logger.warning):
        hashes = _find_export(export, logger)
        processes.broadcast("score" if hashes is None and export.rankings else "")
        if hashes is None:
            hashes = _make(export, load_teacher(), logger, on_shard)
    return {str(export.folder / name): digest for name, digest in hashes.items()}


def run_part(
    export: Export,
    part: str,
    load_teacher: Callable[[], TeacherModel],
    *,
    logger: logging.Logger,
    on_shard: Callable[[], None],
) -> None:
    """Make this job's part of the shards and leave them there; a `run_export` afterwards joins them.

    Raises:
        UserError: another job is making the same part.
    """
    is_main, folder = processes.state().is_main_process, shard_folder(export.shards, export.made_with)
    with working_on(folder, part) if is_main else nullcontext():
        _score(export, load_teacher(), logger, on_shard)
    logger.info("part %s is done; once all parts are, the same command without teacher.export.part joins them", part)


def _make(
    export: Export, teacher: TeacherModel, logger: logging.Logger, on_shard: Callable[[], None]
) -> dict[str, str]:
    """Rank the rows, if they are wanted, and write; returns the files' hashes by name."""
    num_rows, shards = 0, None
    if export.rankings:
        num_rows = len(export.index(teacher))
        wait_for_parts(shard_folder(export.shards, export.made_with), logger.warning)
        shards = _score(export, teacher, logger, on_shard)
    hashes = _write(export, teacher, read_shards(shards, num_rows) if shards else None)
    if shards:
        remove_shards(shards)
    logger.info("wrote %s (%d rows, %d items)", export.folder, num_rows, teacher.dataset.num_items)
    return hashes


def _find_export(export: Export, logger: logging.Logger) -> dict[str, str] | None:
    """Hashes of the files if they are there and whole, by name; None if they have to be made."""
    folder, manifest = export.folder, _readable_manifest(export.folder, export.overwrite)
    if manifest is None or manifest.made_with != export.made_with:
        require_free_export(folder, export.overwrite, export.adapter)
        return None
    damage = find_damage(folder, manifest)
    if damage is not None:
        logger.warning("%s: exporting again", damage)
        return None
    logger.info("%s: holds this export already", folder)
    unlisted = [ROW_STATS_FILE, MANIFEST_FILE] if manifest.has_rankings else [MANIFEST_FILE]
    others = {name: sha256_file(folder / name) for name in unlisted}
    return manifest.sha256 | others


def _readable_manifest(folder: Path, overwrite: bool) -> Manifest | None:
    """The folder's manifest; with `overwrite` an unreadable one counts as none."""
    try:
        return read_manifest(folder)
    except UserError:
        if not overwrite:
            raise
        return None


def _score(export: Export, teacher: TeacherModel, logger: logging.Logger, on_shard: Callable[[], None]) -> Path:
    """This process's share of the shards; returns their folder when all processes have theirs."""
    train, index, kind = teacher.dataset.train, export.index(teacher), teacher.config.export.candidates
    method = teacher.config.export.method

    def score(places: np.ndarray, advance: Callable[[int], None]) -> Scores:
        return score_rows(teacher, train, index[places], seed=export.seed, candidates=kind, advance=advance)

    logger.info("exporting %d of %d rows by %s, candidates: %s", len(index), len(train), method, kind)
    folder, process = shard_folder(export.shards, export.made_with), processes.state()
    part, parts = teacher.config.export.part_of
    write_shards(
        folder,
        len(index),
        score,
        logger=logger,
        on_shard=on_shard,
        index=part * process.num_processes + process.process_index,
        count=parts * process.num_processes,
    )
    process.wait_for_everyone()
    return folder


def _write(export: Export, teacher: TeacherModel, scores: Scores | None) -> dict[str, str]:
    """The teacher's files, from the scores of the exported rows where there are any; returns their hashes by name."""
    embeddings = base_embeddings(teacher, teacher.dataset.titles)
    by_row = {} if scores is None else _by_row(export, teacher, scores, embeddings)
    in_sample = int(by_row["row_stats"]["in_sample"].sum()) if by_row else 0
    about = _about(export, teacher, in_sample)
    return write_teacher_files(export.folder, embeddings=embeddings, about=about, **by_row)


def _by_row(export: Export, teacher: TeacherModel, scores: Scores, embeddings: Tensor) -> dict[str, Any]:
    """What `write_teacher_files` takes of rows."""
    config, dataset = teacher.config, teacher.dataset
    count = min(config.export.top_n, dataset.num_items)
    ranking = to_ranking(teacher, scores, embeddings=embeddings, count=count)
    row_stats = {
        "raw_best_distance": ranking.distances[:, 0],
        "log_prob": ranking.log_prob,
        "valid": ranking.valid,
        "in_sample": np.isin(export.index(teacher), learnt_rows(dataset, config, export.seed)),
    }
    distances = ranking.confidences(config.export.confidence)
    return {"ranking": ranking.items, "distances": distances, "row_stats": row_stats, "rows": export.rows}


def _about(export: Export, teacher: TeacherModel, in_sample_rows: int) -> dict[str, Any]:
    """What the manifest says besides the files' shapes and hashes."""
    settings = teacher.config.export
    return {
        "dataset": teacher.dataset.name,
        "dataset_fingerprint": teacher.dataset.fingerprint,
        "engine": teacher.lm.lora.name,
        "method": settings.method if export.rankings else "none",
        "candidates": settings.candidates if export.rankings else "none",
        "leaks_target": export.rankings and settings.candidates == "sampled",
        "confidence": settings.confidence,
        "base_model": export.base_model,
        "base_model_license": export.base_model_license,
        "adapter_sha256": export.made_with[ADAPTER],
        "in_sample_rows": in_sample_rows,
        "seed": export.seed,
        "git_commit": git_commit(),
        "made_with": export.made_with,
        "embedding_pooling": settings.embedding_pooling,
        "embedding_layer": settings.embedding_layer,
        "embedding_text": settings.embedding_text,
    }
