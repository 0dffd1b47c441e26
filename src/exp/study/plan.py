"""From a study's settings to its jobs, and the check that each of them can run before the first is trained."""

from dataclasses import dataclass, field, replace
from itertools import product

from hydra import compose

from src.core.artefacts import State
from src.core.datasets.base import check_label
from src.core.errors import UserError
from src.core.paths import RunFolder, project_path, teacher_outputs_dir
from src.exp import baseline_steps, distill_steps
from src.exp.settings import Settings, parse_settings
from src.exp.stage.inputs import DATA, TEACHER_FILES, teacher_files_hash
from src.exp.stage.messages import one_line
from src.exp.stage.snapshot import saved_overrides
from src.exp.stage.stage import Stage
from src.exp.study.config import BASELINE, StudyConfig

_NOT_PASSED_ON = (
    "study",
    "hydra",
    "gather",
    "general.seed",
)  # overrides of the study's command that its jobs don't get


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to train the student.

    Attributes:
        stage: `baseline` or `distill`.
        overrides: what makes it from the study's settings.
        place: its value on each axis of the grid; empty for a variant that was named.
    """

    name: str
    stage: str
    overrides: list[str]
    place: dict[str, str] = field(default_factory=dict)

    def folder(self, study: RunFolder, seed: int) -> RunFolder:
        return RunFolder(study.root / self.subfolder(seed))

    def subfolder(self, seed: int) -> str:
        return f"runs/{self.name}/seed_{seed}"


def variants(config: StudyConfig) -> list[Variant]:
    """The baseline, the named variants, then the grid's combinations."""
    named = [Variant(name=name, stage="distill", overrides=list(words)) for name, words in config.variants.items()]
    axes = [config.axis_values(name) for name in config.grid]
    combined = []
    for values in product(*axes) if axes else []:
        words = [word for axis, value in zip(axes, values, strict=True) for word in axis[value]]
        place, name = dict(zip(config.grid, values, strict=True)), "_".join(values)
        check_label("study.grid", name)
        combined.append(Variant(name=name, stage="distill", overrides=words, place=place))
    found = [Variant(name=BASELINE, stage="baseline", overrides=[]), *named, *combined]
    if len({variant.name for variant in found}) < len(found):
        raise UserError(f"study: two variants have one name: {', '.join(variant.name for variant in found)}")
    return found


# --- where the study starts from ----------------------------------------------------------------------------


def source_run(config: StudyConfig) -> RunFolder | None:
    """The run folder whose distillation the variants start from.

    Raises:
        UserError: it holds no finished distillation.
    """
    if config.run_dir is None:
        return None
    folder = RunFolder(project_path(config.run_dir))
    if folder.artefact("distill").status().state is not State.COMPLETE:
        raise UserError(
            f"study.run_dir={config.run_dir}: must be the run folder of a finished distillation, such as "
            "result/result_<timestamp>; run src.exp.run_distill first"
        )
    if not folder.snapshot_dir("distill").is_dir():
        raise UserError(
            f"study.run_dir={config.run_dir}: lacks {folder.snapshot_dir('distill').relative_to(folder.root)}, the "
            "settings of its distillation, from which the study starts; copy run folders whole"
        )
    return folder


def base_overrides(source: RunFolder | None, own: list[str]) -> list[str]:
    """The overrides that all jobs share: those of the distillation, then those of this command."""
    before = saved_overrides(source, "distill") if source is not None else []
    return [word for word in [*before, *own] if not _is_own(word)]


def _is_own(word: str) -> bool:
    key = _key(word)
    return any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in _NOT_PASSED_ON)


def check_source(source: RunFolder, stage: Stage) -> None:
    """The data and the teacher's files have to be those of the distillation."""
    record = source.artefact("distill").status().record
    assert record is not None
    if record.made_from.get(DATA) != stage.dataset.fingerprint:
        raise UserError(
            f"study.run_dir={source.root}: distilled on other data ({str(record.made_from.get(DATA))[:12]}) than "
            f"{stage.dataset.name} of this run ({stage.dataset.fingerprint[:12]}); leave the dataset's settings as "
            "they were there"
        )
    folder = teacher_outputs_dir(stage.settings)
    if record.made_from.get(TEACHER_FILES) not in (None, teacher_files_hash(folder)):
        raise UserError(
            f"{folder}: no longer the teacher's files of {source.root}; point paths.teacher_outputs_dir at them, or "
            "distil again"
        )


# --- the check ----------------------------------------------------------------------------------------------


def check_variants(found: list[Variant], base: list[str], stage: Stage) -> None:
    """Ask every variant whether it could be trained.

    Raises:
        UserError: naming the variant, and why not.
    """
    for variant in found:
        try:
            settings = parse_settings(compose("config", overrides=_combined(base, variant.overrides)))
            _require_same_data(settings, stage.settings)
            job = replace(stage, name=variant.stage, settings=settings, folder=variant.folder(stage.folder, 0))
            if variant.stage == "baseline":
                baseline_steps.plan(job)
            else:
                distill_steps.require_trainable(job)
        except Exception as error:
            named = variant.name in stage.settings.study.variants
            without = f"; or leave it out by '~study.variants.{variant.name}'" if named else ""
            raise UserError(f"variant {variant.name}: {one_line(error)}{without}") from error


def _require_same_data(settings: Settings, study: Settings) -> None:
    if settings.dataset != study.dataset:
        raise UserError("changes the data set, whose rows the variants are compared on; start another study for it")


def job_overrides(variant: Variant, base: list[str], seed: int) -> list[str]:
    """The overrides of one job."""
    words = _combined(base, variant.overrides)
    return [*words, f"general.seed={seed}", f"hydra.sweep.subdir={variant.subfolder(seed)}"]


def _combined(base: list[str], words: list[str]) -> list[str]:
    """A variant's overrides after those of all; where it chooses a group anew (`active=all`), the group's own go.

    Of two overrides of one key the later one counts.
    """
    groups = {_key(word) for word in words if "." not in _key(word)}
    kept = [word for word in base if _key(word).split(".")[0] not in groups]
    return list({_key(word): word for word in [*kept, *words]}.values())


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]
