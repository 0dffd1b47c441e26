"""The whole configuration as checked dataclasses: where Hydra's `cfg` ends."""

import re
import typing
from dataclasses import dataclass, field, is_dataclass
from dataclasses import fields as fields_of
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.core.datasets.base import DatasetConfig
from src.core.datasets.sources import SCHEMAS as DATASETS
from src.core.errors import UserError, check
from src.core.logging import LoggingConfig
from src.core.metrics import MetricsConfig
from src.core.paths import PathsConfig
from src.core.settings import parse_choice, parse_section
from src.distill.selection_policy import STUDENT_MEASURES, ActiveConfig
from src.distill.trainer_distill import DistillConfig
from src.student.config import StudentConfig
from src.teacher.config import TeacherConfig


@dataclass
class GeneralConfig:
    """`general`: what all stages share."""

    experiment_name: str
    seed: int
    device: str
    overwrite: bool

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**31, "general.seed", self.seed, "an integer from 0 to 2**31 - 1")
        check(self.experiment_name.strip() != "", "general.experiment_name", self.experiment_name, "a name")


@dataclass
class EvalConfig:
    """`eval`: what `run_eval_all` looks at."""

    run_dir: str | None = None
    seed_dirs: list[str] = field(default_factory=list)


TEACHERS = ("files", "recommender", "random")


@dataclass
class ArmConfig:
    """A distillation beside another: who teaches, and which settings of `distill` and `active` differ."""

    teacher: str = "files"
    distill: dict[str, Any] = field(default_factory=dict)
    active: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.teacher in TEACHERS, "arms.trained.<name>.teacher", self.teacher, f"one of {', '.join(TEACHERS)}")


@dataclass
class ArmsConfig:
    """`arms`: what `run_arms` trains beside the baseline, and for which seeds."""

    run_dir: str | None = None
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    trained: dict[str, ArmConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(len(self.seeds) == len(set(self.seeds)) > 0, "arms.seeds", self.seeds, "a list of different integers")


@dataclass
class RecommendConfig:
    """`recommend`: a question to a trained student."""

    checkpoint: str | None = None
    history: list[str] = field(default_factory=list)
    top_k: int = 10
    show_history: bool = False

    def __post_init__(self) -> None:
        check(self.top_k >= 1, "recommend.top_k", self.top_k, "an integer >= 1")


@dataclass
class CurveConfig:
    """`curve`: the points of `selection_curve`, policies x shares x seeds."""

    policies: list[str]
    shares: list[float]
    seeds: list[int]

    def __post_init__(self) -> None:
        for key in ("policies", "shares", "seeds"):
            values = getattr(self, key)
            different = len(values) > 0 and len(set(values)) == len(values)
            check(different, f"curve.{key}", values, "one or more different values")
        allowed = ("random", *STUDENT_MEASURES)
        check(set(self.policies) <= {*allowed}, "curve.policies", self.policies, f"of {', '.join(allowed)}")
        check(all(0 < s < 1 for s in self.shares), "curve.shares", self.shares, "numbers between 0 and 1")
        check(all(0 <= s < 2**31 for s in self.seeds), "curve.seeds", self.seeds, "integers from 0 to 2**31 - 1")


@dataclass
class GatherConfig:
    """`gather`: a sweep to tabulate."""

    sweep_dir: str | None = None


@dataclass(frozen=True)
class Settings:
    """Every section, checked."""

    general: GeneralConfig
    dataset: DatasetConfig
    teacher: TeacherConfig
    student: StudentConfig
    distill: DistillConfig
    active: ActiveConfig
    paths: PathsConfig
    logging: LoggingConfig
    metrics: MetricsConfig
    eval: EvalConfig
    curve: CurveConfig
    recommend: RecommendConfig
    arms: ArmsConfig
    gather: GatherConfig


_SCHEMAS = {name: entry.type for name, entry in Settings.__dataclass_fields__.items()}


def parse_settings(cfg: DictConfig) -> Settings:
    """Check every section, whatever the stage, so that a wrong value fails before anything is computed.

    Raises:
        UserError: an unknown key or group, a value of another type or out of range.
    """
    for key in cfg:
        if key not in _SCHEMAS:
            raise UserError(f"{key}: unknown section; available: {', '.join(_SCHEMAS)}")
    own = {
        "dataset": lambda section: parse_choice(DATASETS, section, "dataset"),
        "distill": _parse_distill,
        "teacher": _parse_teacher,
    }
    sections = {
        name: own[name](cfg[name]) if name in own else parse_section(schema, cfg[name], name)
        for name, schema in _SCHEMAS.items()
    }
    return Settings(**sections)


def known_keys(section: str) -> list[str]:
    """The keys of a section such as `student` or `teacher.lora`, of the whole configuration for ``; [] if unknown."""
    schemas: list[Any] = [Settings]
    for name in filter(None, section.split(".")):
        hints = [typing.get_type_hints(schema).get(name) for schema in schemas]
        schemas = [kind for hint in hints for kind in (hint, *typing.get_args(hint)) if is_dataclass(kind)]
        if DatasetConfig in schemas:
            schemas = list(DATASETS.values())
    names = [entry.name for schema in schemas for entry in fields_of(schema)]
    return ["lambda" if name == "kd_weight" else name for name in dict.fromkeys(names)]


def _parse_distill(section: DictConfig) -> DistillConfig:
    """`lambda` cannot name a dataclass field; here it becomes `kd_weight`."""
    values = OmegaConf.to_container(section, resolve=True)
    if "kd_weight" in values:
        raise UserError("distill.kd_weight: unknown key; did you mean distill.lambda?")
    if "lambda" in values:
        values["kd_weight"] = values.pop("lambda")
    try:
        return parse_section(DistillConfig, OmegaConf.create(values), "distill")
    except UserError as error:
        raise UserError(str(error).replace("distill.kd_weight", "distill.lambda")) from error


_NOT_OF_RECOMMENDER = {
    "max_seq_len": "the recommender reads dataset.max_seq_len items",
    "save_interval": "the recommender's training is not resumed",
}


def _parse_teacher(section: DictConfig) -> TeacherConfig:
    """The recommender is configured like a student; its errors name its own keys."""
    for key, why in _NOT_OF_RECOMMENDER.items():
        if key in (section.get("recommender") or {}):
            raise UserError(f"teacher.recommender.{key}={section.recommender[key]}: {why}; leave it out")
    try:
        return parse_section(TeacherConfig, section, "teacher")
    except UserError as error:
        raise UserError(re.sub(r"^student\.", "teacher.recommender.", str(error))) from error
