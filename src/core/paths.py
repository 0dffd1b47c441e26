"""Where things are: the folders of the project and the files of a run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hydra.core.hydra_config import HydraConfig

from src.core.artefacts import Artefact

# Of a student's checkpoint, in its `RunFolder.model_dir`.
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
ITEMS_FILE = "items.json"
ONNX_FILE = "model.onnx"
CARD_FILE = "README.md"  # the model card, in the form of the Hugging Face hub


@dataclass(frozen=True, kw_only=True)
class PathsConfig:
    """`conf/paths`: folders; relative ones start where the command was called."""

    data_dir: str
    result_root: str
    teacher_outputs_dir: str


class HasPaths(Protocol):
    """Hydra's `cfg`, or the settings that were made of it."""

    @property
    def paths(self) -> PathsConfig: ...


def project_path(path: str) -> Path:
    """Resolve a path against the folder the command was called in.

    Hydra has already changed into the run folder, so the current folder would be the wrong base.
    """
    base = HydraConfig.get().runtime.cwd if HydraConfig.initialized() else Path.cwd()
    return (Path(base) / Path(path).expanduser()).resolve()


def data_dir(cfg: HasPaths) -> Path:
    """Raw and processed data."""
    return project_path(cfg.paths.data_dir)


def result_root(cfg: HasPaths) -> Path:
    """Parent of all run folders."""
    return project_path(cfg.paths.result_root)


def teacher_outputs_dir(cfg: HasPaths) -> Path:
    """Folder of the teacher's files for this dataset."""
    return project_path(cfg.paths.teacher_outputs_dir)


@dataclass(frozen=True)
class RunFolder:
    """The files of one run folder; every name in it is decided here."""

    root: Path

    def model_dir(self, stage: str) -> Path:
        return self.root / "models" / stage

    def last_state_file(self, stage: str) -> Path:
        """What an interrupted training goes on from."""
        return self.model_dir(stage) / "last_state.pt"

    def log_file(self, stage: str) -> Path:
        names = {"baseline": "train_student_baseline", "eval": "eval_all", "study": "study"}
        return self.root / "logs" / f"{names.get(stage, f'train_{stage}')}.log"

    def tensorboard_dir(self, stage: str) -> Path:
        return self.root / "tb" / stage

    def tracking_dir(self, tracker: str, name: str) -> Path:
        """What a tracker other than TensorBoard keeps here."""
        return self.root / "tracking" / tracker / name

    def eval_file(self, stage: str) -> Path:
        return self.root / "metrics" / f"eval_{stage}.json"

    def ranks_file(self, stage: str) -> Path:
        return self.root / "metrics" / f"ranks_{stage}.npz"

    def history_file(self, stage: str) -> Path:
        return self.root / "metrics" / f"history_{stage}.csv"

    @property
    def selection_file(self) -> Path:
        return self.root / "metrics" / "selection.npz"

    @property
    def time_file(self) -> Path:
        return self.root / "metrics" / "time.json"

    @property
    def cost_file(self) -> Path:
        return self.root / "metrics" / "cost.json"

    @property
    def plots_dir(self) -> Path:
        return self.root / "plots"

    @property
    def report_file(self) -> Path:
        return self.root / "report.md"

    @property
    def html_report_file(self) -> Path:
        return self.root / "report.html"

    def snapshot_dir(self, stage: str) -> Path:
        return self.root / ".hydra" / stage

    def artefact(self, name: str) -> Artefact:
        """A thing that is made in this folder; `records/<name>.json` says from what, and whether it is whole."""
        return Artefact(name=name, record_file=self.root / "records" / f"{name}.json", base=self.root)
