"""The table of data sets. Another one is a file beside this one, a line in the table, and a YAML in `conf/dataset`."""

import logging
from pathlib import Path
from typing import Any, Protocol

from src.core.datasets.amazon import Amazon
from src.core.datasets.base import DatasetConfig, Interactions, WindowSplits, require_files
from src.core.datasets.csv_log import CsvLog
from src.core.datasets.download import Archive, fetch_missing
from src.core.datasets.lastfm import Lastfm
from src.core.datasets.movielens import Movielens
from src.core.datasets.sample import Sample


class Source(Protocol):
    """Where the raw data of one kind of data set come from; `config` in its methods is of its own class."""

    @property
    def config(self) -> type[DatasetConfig]:
        """Class of its settings."""

    def archive(self, config: Any) -> Archive | None:
        """What is fetched where the raw files are missing; None if the data have no public source."""

    def files(self, config: Any, folder: Path) -> list[Path]:
        """The raw files in their folder."""

    def read(self, config: Any, folder: Path) -> Interactions | WindowSplits:
        """The raw data: windows for the split `given`, else a log.

        Raises:
            UserError: naming file and line, where there is one, of anything that is wrong with a file.
        """


SOURCES: dict[str, Source] = {
    "sample": Sample(),
    "movielens": Movielens(),
    "amazon": Amazon(),
    "lastfm": Lastfm(),
    "csv": CsvLog(),
}
SCHEMAS: dict[str, type[DatasetConfig]] = {name: source.config for name, source in SOURCES.items()}  # by `source`


def find_raw_files(source: Source, config: DatasetConfig, raw_dir: Path, *, logger: logging.Logger) -> list[Path]:
    """The raw files, fetched where they are missing from the default folder and have a public source.

    Raises:
        UserError: a file is missing or empty, or could not be fetched.
    """
    files, archive = source.files(config, raw_dir), source.archive(config)
    if archive is not None and config.raw_dir is None:
        fetch_missing(archive, files, logger)
    given = f"dataset.raw_dir={config.raw_dir!r} must hold them"
    require_files(files, given if config.raw_dir else "put them there, or set dataset.raw_dir to their folder")
    return files
