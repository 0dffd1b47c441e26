"""Raw data to processed data to split rows: `load_dataset`, and what it returns."""

import logging
from pathlib import Path
from typing import Any

from src.core.datasets.base import GIVEN_SPLIT, MIN_INTERACTIONS, DatasetConfig, Interactions, WindowSplits
from src.core.datasets.sources import SOURCES, find_raw_files
from src.core.errors import UserError
from src.core.files import Sighting
from src.core.paths import project_path
from src.core.sequences.cache import SPLITS, Processed, load_or_make
from src.core.sequences.numbering import number_and_split
from src.core.sequences.rows import Rows, SequenceDataset, sample_rows
from src.core.sequences.titles import make_titles
from src.core.settings import flat_settings

__all__ = ["Rows", "SequenceDataset", "load_dataset", "sample_rows"]

# Part of what processed data are made from: raise it when the same raw files give another result, or other files.
_PROCESSING_VERSION = 3


def load_dataset(config: DatasetConfig, data_dir: Path, logger: logging.Logger) -> SequenceDataset:
    """Read, process and split a data set, or load what an identical earlier call made.

    Args:
        config: the data set, of a class in `src.core.datasets.sources.SCHEMAS`.
        data_dir: holds `raw/<name>` (unless `config.raw_dir` is given) and the cache, `processed/<name>/<key>`.
        logger: gets what was dropped or renamed, and one line of sizes.

    Raises:
        UserError: for missing or damaged files, or when no user is left.
    """
    source = SOURCES[config.source]
    raw_dir = Path(data_dir) / "raw" / config.name if config.raw_dir is None else project_path(config.raw_dir)
    files = find_raw_files(source, config, raw_dir, logger=logger)
    before = Sighting.of(*files)

    def process() -> Processed:
        raw = source.read(config, raw_dir)
        before.require_same()  # else it would be kept as what the files were at first
        return _process(raw, config, logger)

    processed = load_or_make(
        Path(data_dir) / "processed" / config.name,
        _made_from(config, raw_dir, files),
        process,
        logger=logger,
    )
    train, valid, test = (processed.rows(split) for split in SPLITS)
    dataset = SequenceDataset(
        name=config.name,
        num_items=len(processed.titles),
        num_users=processed.num_users,
        titles=processed.titles,
        item_ids=processed.item_ids,
        max_seq_len=config.max_seq_len,
        train=train,
        valid=valid,
        test=test,
        fingerprint=processed.fingerprint(),
    )
    _require_rows(dataset, config)
    logger.info(
        f"dataset {dataset.name}: {dataset.num_users} users, {dataset.num_items} items, rows: {len(train)} train, "
        f"{len(valid)} valid, {len(test)} test (fingerprint {dataset.fingerprint[:12]})"
    )
    return dataset


def _require_rows(dataset: SequenceDataset, config: DatasetConfig) -> None:
    """Refuse data without a row to train, validate or test on."""
    advice = {
        "leave_one_out": f"a user has a training row from {MIN_INTERACTIONS + 1} interactions on; add data",
        GIVEN_SPLIT: "the file of that part holds no history with an item; add some",
    }
    for name, rows in (("training", dataset.train), ("validation", dataset.valid), ("test", dataset.test)):
        if len(rows) == 0:
            raise UserError(f"dataset {dataset.name}: no {name} row; {advice.get(config.split.method, 'add data')}")


def _made_from(config: DatasetConfig, raw_dir: Path, files: list[Path]) -> dict[str, Any]:
    """All that decides the processed data: this code's version, the settings but the window, the raw files' state."""
    settings = flat_settings(config, "dataset")
    del settings["dataset.max_seq_len"]  # windows are cut when rows are read
    state = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    return {"processing version": _PROCESSING_VERSION, **settings, "raw folder": str(raw_dir.resolve()), **state}


def _process(raw: Interactions | WindowSplits, config: DatasetConfig, logger: logging.Logger) -> Processed:
    """Number the items, split the rows, name the items, and sample the training rows."""
    for note in raw.notes:
        logger.info("%s", note)
    for warning in raw.warnings:
        logger.warning("%s", warning)
    numbered = number_and_split(raw, config, logger)
    titles = make_titles(numbered.raw_titles, numbered.item_ids, logger)
    train, valid, test = numbered.rows
    if config.max_train_rows is not None:
        num_rows, train = len(train), sample_rows(train, config.max_train_rows)
        logger.info("dataset.max_train_rows=%d: %d of %d rows", config.max_train_rows, len(train), num_rows)
    return Processed(
        item_ids=numbered.item_ids,
        titles=titles,
        items=train.items,
        bounds=train.bounds,
        pos={split: rows.pos for split, rows in zip(SPLITS, (train, valid, test), strict=True)},
    )
