"""The whole configuration as checked dataclasses: where Hydra's `cfg` ends."""

import re
import typing
from dataclasses import dataclass, field, is_dataclass
from dataclasses import fields as fields_of
from typing import Any

from omegaconf import DictConfig

from src.core.data_utils import DatasetConfig
from src.core.errors import UserError, check
from src.core.logging import LoggingConfig
from src.core.metrics import MetricsConfig
from src.core.paths import PathsConfig, project_path
from src.core.settings import parse_choice, parse_section
from src.distill import selection_policy
from src.distill.config import TEACHERS, DistillConfig
from src.distill.selection_policy import STUDENT_MEASURES, ActiveConfig
from src.student import config as students
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
    sections = {name: _parse(name, schema, cfg[name]) for name, schema in _SCHEMAS.items()}
    if sections["dataset"].raw_dir is not None:
        sections["dataset"].raw_dir = str(project_path(sections["dataset"].raw_dir))
    return Settings(**sections)


def known_keys(section: str) -> list[str]:
    """The keys of a section such as `student` or `teacher.lora`, of the whole configuration for ``; [] if unknown."""
    schema: Any = Settings
    for name in filter(None, section.split(".")):
        fields = typing.get_type_hints(schema)
        options = [t for t in (fields.get(name), *typing.get_args(fields.get(name))) if is_dataclass(t)]
        if not options:
            return []
        schema = options[0]
    return [entry.metadata.get("key", entry.name) for entry in fields_of(schema)]


_CHOICES = {"student": (students.SCHEMAS, "name"), "active": (selection_policy.SCHEMAS, "strategy")}


def _parse(name: str, schema: type, section: DictConfig) -> Any:
    if name == "teacher":
        return _parse_teacher(section)
    if name in _CHOICES:
        schemas, by = _CHOICES[name]
        return parse_choice(schemas, section, name, by)
    return parse_section(schema, section, name)


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
