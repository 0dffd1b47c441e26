"""The whole configuration as frozen, checked dataclasses: built once, where Hydra's configuration ends."""

import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from dataclasses import fields as fields_of
from typing import Any

from omegaconf import DictConfig

from src.core.datasets import sources
from src.core.datasets.base import DatasetConfig
from src.core.errors import UserError, check
from src.core.metrics import MetricsConfig
from src.core.paths import PathsConfig
from src.core.settings import parse_choice, parse_section
from src.core.tracking import choices as trackers
from src.core.tracking.base import TrackingConfig
from src.distill import active_config as policies
from src.distill.active_config import ActiveConfig
from src.distill.config import DistillConfig
from src.exp.study.config import GatherConfig, StudyConfig
from src.serving.config import ExportConfig, RecommendConfig
from src.student import config as students
from src.student.config import StudentConfig, fit_window
from src.teacher.config import TeacherConfig


@dataclass(frozen=True, kw_only=True)
class GeneralConfig:
    """`general`: what all stages share."""

    experiment_name: str
    seed: int
    device: str
    overwrite: bool

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**31, "general.seed", self.seed, "an integer from 0 to 2**31 - 1")
        check(self.experiment_name.strip() != "", "general.experiment_name", self.experiment_name, "a name")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """`eval`: what `run_eval_all` looks at."""

    run_dir: str | None = None
    seed_dirs: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every section, checked; what the specification calls `cfg`.

    Attributes:
        composed: the configuration as Hydra composed it, for the snapshot in the run folder.
    """

    general: GeneralConfig
    dataset: DatasetConfig
    teacher: TeacherConfig
    student: StudentConfig
    distill: DistillConfig
    active: ActiveConfig
    paths: PathsConfig
    logging: TrackingConfig
    metrics: MetricsConfig
    eval: EvalConfig
    recommend: RecommendConfig
    export: ExportConfig
    study: StudyConfig
    gather: GatherConfig
    composed: DictConfig = field(repr=False, compare=False)


_SCHEMAS: dict[str, type] = {name: kind for name, kind in typing.get_type_hints(Settings).items() if name != "composed"}
_SECTIONS = list(_SCHEMAS)
# Sections whose schema one of their values chooses, the first that is there.
_CHOICES: dict[str, tuple[dict[str, type], tuple[str, ...]]] = {
    "dataset": (sources.SCHEMAS, ("source", "name")),
    "student": (students.SCHEMAS, ("name",)),
    "active": (policies.SCHEMAS, ("strategy",)),
    "logging": (trackers.SCHEMAS, ("tracker",)),
}


def parse_settings(config: DictConfig) -> Settings:
    """Check every section, whatever the stage, so that a wrong value fails before anything is computed.

    Raises:
        UserError: an unknown key or group, a value of another type or out of range.
    """
    for key in map(str, config):
        if key not in _SECTIONS:
            raise UserError(f"{key}: unknown section; available: {', '.join(_SECTIONS)}")
    sections = {name: _parse(name, config[name]) for name in _SECTIONS}
    sections["student"] = fit_window(sections["student"], sections["dataset"].max_seq_len)
    return Settings(**sections, composed=config)


def _parse(name: str, section: DictConfig) -> Any:
    own: dict[str, Callable[[DictConfig], Any]] = {"teacher": _parse_teacher}
    if name in own:
        return own[name](section)
    if name in _CHOICES:
        schemas, by = _CHOICES[name]
        return parse_choice(schemas, section, name, by)
    return parse_section(_SCHEMAS[name], section, name)


def schemas() -> dict[str, list[type]]:
    """The dataclasses that each section may have."""
    return {name: list(_CHOICES[name][0].values()) if name in _CHOICES else [kind] for name, kind in _SCHEMAS.items()}


def known_keys(section: str) -> list[str]:
    """The keys of a section such as `student` or `teacher.lora`, of the whole configuration for ``; [] if unknown.

    A section with several schemas has the keys of them all.
    """
    if not section:
        return _SECTIONS
    kinds = [kind for hint in _types_of(section) for kind in (hint, *typing.get_args(hint)) if is_dataclass(kind)]
    return list(dict.fromkeys(e.metadata.get("key", e.name) for schema in kinds for e in fields_of(schema)))


def takes_new_keys(section: str) -> bool:
    """Whether the section maps names that the user chooses, as `study.variants` does."""
    return any(typing.get_origin(hint) is dict for hint in _types_of(section))


def _types_of(section: str) -> list[Any]:
    """The types that the section may have: several where it has several schemas; [] if unknown."""
    first, *rest = section.split(".")
    if first not in _SECTIONS:
        return []
    types: list[Any] = list(schemas()[first])
    for name in rest:
        inner = [kind for hint in types for kind in (hint, *typing.get_args(hint)) if is_dataclass(kind)]
        types = [hints[name] for schema in inner if name in (hints := typing.get_type_hints(schema))]
    return types


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
