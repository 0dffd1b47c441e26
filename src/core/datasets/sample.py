"""The invented data set that is committed under `data/raw/sample`; `make_sample` writes it."""

from dataclasses import dataclass
from pathlib import Path

from src.core.datasets.base import Interactions, LogConfig, plain_or_gzipped
from src.core.datasets.csv_log import CsvColumns, read_csv


@dataclass(frozen=True, kw_only=True)
class SampleConfig(LogConfig):
    """`conf/dataset/sample.yaml`."""

    source: str = "sample"
    name: str = "sample"
    max_seq_len: int = 20


class Sample:
    """The source of the sample: it is committed, there is nothing to fetch."""

    config = SampleConfig

    def archive(self, config: SampleConfig) -> None:
        return None

    def files(self, config: SampleConfig, folder: Path) -> list[Path]:
        return [plain_or_gzipped(folder / name) for name in ("interactions.csv", "items.csv")]

    def read(self, config: SampleConfig, folder: Path) -> Interactions:
        return read_csv(*self.files(config, folder), separator=",", columns=CsvColumns())
