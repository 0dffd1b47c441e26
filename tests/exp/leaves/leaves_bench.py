"""Small runs at the level that an effect needs: a data set, a student, a distillation, a teacher, a whole stage."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import SAMPLE, TINY_STUDENT, TINY_TEACHER, compose_config, read, refusal, run_here
from raw_files import write_raw_files
from safetensors.torch import load_file

from src.core.data_utils import SequenceDataset, load_dataset
from src.core.paths import RunFolder
from src.distill.data_bridge import TeacherOutputs
from src.distill.selection_policy import build_selection_policy
from src.distill.trainer_distill import Distillation, train_distilled
from src.exp.settings import Settings, parse_settings
from src.student.context import Resume, RunContext
from src.student.trainer_baseline import train_baseline
from src.student.training import FitResult
from src.teacher.factory import build_teacher
from src.teacher.ilora_backend import ILoRATeacher

CPU = torch.device("cpu")
QUIET = logging.getLogger("leaves")
_ROWS = 200  # that a student is trained on
_SMALL_STUDENT = [
    *TINY_STUDENT,
    f"dataset.max_train_rows={_ROWS}",
    "student.batch_size=64",
    "distill.batch_size=64",
]
_SMALL_TEACHER = [
    "dataset=sample",
    "dataset.max_train_rows=40",
    f"dataset.raw_dir={SAMPLE}",
    "teacher.batch_size=8",
    "teacher.micro_batch_size=4",
    "teacher.max_train_rows=16",
    "teacher.max_valid_rows=4",
    "teacher.max_eval_rows=4",
    "teacher.recommender.batch_size=32",
]


class Recorder:
    """A TensorBoard writer that keeps what it is given."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.append((tag, scalar_value))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def values(self, tag: str) -> list[float]:
        return [value for name, value in self.scalars if name == tag]


@dataclass(frozen=True)
class Trained:
    """A finished training: its history, the checkpoint's weights and description."""

    result: FitResult
    weights: dict[str, torch.Tensor]
    description: dict

    @property
    def losses(self) -> list[float]:
        return [record["loss"] for record in self.result.history]

    @property
    def shapes(self) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in self.weights.items()}


@dataclass(frozen=True)
class Taught:
    """A trained tiny teacher."""

    teacher: ILoRATeacher
    cfg: Settings
    folder: RunFolder
    writer: Recorder

    @property
    def losses(self) -> list[float]:
        return self.writer.values("train/loss")

    def made(self, name: str) -> Path:
        """Folder of the `adapter`, the `recommender` or the `llm`."""
        return self.folder.model_dir("teacher") / name

    @property
    def adapter(self) -> dict[str, torch.Tensor]:
        return load_file(self.made("adapter") / "adapter_model.safetensors")

    @property
    def recommender(self) -> dict[str, torch.Tensor]:
        return load_file(self.made("recommender") / "model.safetensors")

    @property
    def llm(self) -> dict[str, torch.Tensor]:
        return load_file(self.made("llm") / "model.safetensors")

    @property
    def llm_config(self) -> dict:
        return read(self.made("llm") / "config.json")

    def export(self) -> Path:
        outputs = self.folder.root / "outputs"
        if not outputs.is_dir():
            self.teacher.export_for_dllm2rec(self.cfg, QUIET)
        return outputs


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two models have the same weights."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@dataclass
class Shared:
    """What was trained for one leaf and serves others: students and teachers by file and overrides."""

    folder: Path
    students: dict[tuple[str, ...], Trained] = field(default_factory=dict)
    teachers: dict[tuple[str, ...], Taught] = field(default_factory=dict)
    numbers: "count[int]" = field(default_factory=count)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def new_folder(self) -> Path:
        return self.folder / f"run{next(self.numbers)}"


@dataclass
class Bench:
    """Where one leaf is tried.

    Attributes:
        file: the YAML whose leaf it is.
    """

    tmp: Path
    patch: pytest.MonkeyPatch
    request: pytest.FixtureRequest
    shared: Shared
    file: str = "dataset/sample"
    runs: "count[int]" = field(default_factory=count)

    def folder(self) -> Path:
        return self.tmp / f"run{next(self.runs)}"

    @property
    def choice(self) -> str:
        group, name = self.file.split("/")
        return f"{group}={name}"

    @property
    def pipeline(self) -> Any:
        """The finished pipeline that all tests share."""
        return self.request.getfixturevalue("pipeline")

    # --- data sets ------------------------------------------------------------------------------------------

    def load(self, *overrides: str, raw: Path | None = None) -> SequenceDataset:
        """The data set of this file, from invented raw files."""
        data = self.tmp / "data"
        where = [f"dataset.raw_dir={raw}"] if raw else []
        config = parse_settings(compose_config(self.choice, *where, *overrides)).dataset
        if not (data / "raw" / config.name).is_dir():
            write_raw_files(self.file.split("/")[1], data / "raw" / config.name)
        return load_dataset(config, data, QUIET)

    # --- students -------------------------------------------------------------------------------------------

    def train(self, *overrides: str, fresh: bool = False) -> Trained:
        """The baseline, on 200 rows."""
        return self._student("baseline", _baseline, overrides, fresh)

    def distil(self, *overrides: str, fresh: bool = False) -> Trained:
        """The distillation, on 200 rows with an invented teacher."""
        return self._student("distill", _distilled, overrides, fresh)

    def _student(self, kind: str, train: "Train", overrides: tuple[str, ...], fresh: bool) -> Trained:
        """One training for equal overrides; `fresh` makes another, which nothing else sees."""
        key = (kind, self.file, *overrides)
        if not fresh and key in self.shared.students:
            return self.shared.students[key]
        mine = [self.choice] if self.file.split("/")[0] in ("student", "distill", "active") else []
        settings = parse_settings(compose_config(*_SMALL_STUDENT, *mine, *overrides))
        dataset = load_dataset(replace(settings.dataset, raw_dir=str(SAMPLE)), self.shared.data, QUIET)
        folder = self.shared.new_folder()
        resume = Resume(folder / "last_state.pt")
        context = RunContext(
            seed=settings.general.seed, device=CPU, logger=QUIET, writer=Recorder(), resume=resume  # type: ignore[arg-type]
        )
        result = train(settings, dataset, folder, context)
        trained = Trained(result, load_file(folder / "model.safetensors"), read(folder / "config.json"))
        return trained if fresh else self.shared.students.setdefault(key, trained)

    # --- teachers -------------------------------------------------------------------------------------------

    def teacher(self, *overrides: str, tiny: bool = True) -> tuple[ILoRATeacher, Settings, RunFolder]:
        """A teacher that is not trained yet."""
        chosen = [o for o in TINY_TEACHER if tiny or not o.startswith(("teacher=", "teacher.tiny."))]
        kind = ["teacher.tiny.pretrain_steps=1"] if tiny else ["teacher=ilora", "teacher.dtype=float32"]
        folder = RunFolder(self.shared.new_folder())
        where = f"paths.teacher_outputs_dir={folder.root / 'outputs'}"
        cfg = parse_settings(compose_config(*chosen, *_SMALL_TEACHER, *kind, where, *overrides))
        dataset = load_dataset(cfg.dataset, self.shared.data, QUIET)
        teacher = build_teacher(cfg, dataset=dataset, folder=folder, device=CPU)
        assert isinstance(teacher, ILoRATeacher)
        return teacher, cfg, folder

    def teach(self, *overrides: str, fresh: bool = False, tiny: bool = True) -> Taught:
        """A trained teacher, one for equal overrides; `fresh` trains another, which nothing else sees."""
        if not fresh and overrides in self.shared.teachers:
            return self.shared.teachers[overrides]
        teacher, cfg, folder = self.teacher(*overrides, tiny=tiny)
        if tiny and not fresh:
            self._take_over_llm(folder)
        taught = Taught(teacher, cfg, folder, Recorder())
        teacher.train(cfg, QUIET, taught.writer)  # type: ignore[arg-type]
        return taught if fresh else self.shared.teachers.setdefault(overrides, taught)

    def _take_over_llm(self, folder: RunFolder) -> None:
        """The tiny LLM of the teacher with the defaults; its record has it made again where a leaf changes it."""
        if () in self.shared.teachers:
            given = self.shared.teachers[()]
            shutil.copytree(given.made("llm"), folder.model_dir("teacher") / "llm")
            (folder.root / "records").mkdir()
            shutil.copy(given.folder.root / "records" / "tiny_llm.json", folder.root / "records")

    # --- stages ---------------------------------------------------------------------------------------------

    def stage(self, function: Callable, *overrides: str, folder: Path | None = None) -> Path:
        """A whole stage in this process, in a new folder next to the shared pipeline's data."""
        folder = folder or self.folder()
        assert run_here(function, *self.pipeline.overrides, f"hydra.run.dir={folder}", *overrides) == 0
        return folder

    def refused_stage(self, function: Callable, *overrides: str, folder: Path | None = None) -> str:
        """The message with which the stage ends."""
        words = (*self.pipeline.overrides, f"hydra.run.dir={folder or self.folder()}", *overrides)
        return refusal(lambda: run_here(function, *words, full_error=True))


Train = Callable[[Settings, SequenceDataset, Path, RunContext], FitResult]


def _baseline(settings: Settings, dataset: SequenceDataset, folder: Path, context: RunContext) -> FitResult:
    return train_baseline(settings.student, dataset, metrics=settings.metrics, folder=folder, context=context)


def _distilled(settings: Settings, dataset: SequenceDataset, folder: Path, context: RunContext) -> FitResult:
    distillation = Distillation(
        settings=settings.distill,
        outputs=_invented_teacher(settings, dataset.num_items),
        policy=build_selection_policy(settings.active),
    )
    return train_distilled(
        settings.student,
        dataset,
        distillation=distillation,
        metrics=settings.metrics,
        folder=folder,
        context=context,
    )


def _invented_teacher(settings: Settings, num_items: int) -> TeacherOutputs:
    random = torch.Generator().manual_seed(0)
    ranking = torch.stack([torch.randperm(num_items, generator=random)[:6] for _ in range(_ROWS)])
    confidence = torch.rand(_ROWS, 6, generator=random).sort(1).values
    top_k = settings.distill.top_k
    width = top_k if settings.distill.confidence == "per_candidate" else 1
    return TeacherOutputs(
        embeddings=torch.randn(num_items, 5, generator=random),
        ranking=ranking[:, :top_k],
        confidence=confidence[:, :width],
    )
