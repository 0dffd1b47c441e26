"""What a study or a sweep has found: the finished runs of each variant, and which of them may be compared."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from src.core.artefacts import Record
from src.core.errors import UserError
from src.core.metrics import MetricsConfig
from src.core.paths import RunFolder
from src.exp.compare.comparison import read_evaluation
from src.exp.compare.significance import Ranks, load_ranks
from src.exp.compare.sources import HISTORY, SEED
from src.exp.stage.inputs import differ_besides_distillation


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished training: its record and its evaluation on the test rows."""

    stage: str
    folder: RunFolder
    record: Record
    evaluation: dict[str, Any]

    @property
    def seed(self) -> int:
        return self.record.made_from[SEED]

    @property
    def ranks(self) -> Ranks:
        return load_ranks(self.folder.ranks_file(self.stage))


def result(stage: str, folder: RunFolder) -> Result | None:
    """The result of a stage in a run folder; None if it is not complete."""
    status = folder.artefact(stage).status()
    if not status.is_current or status.record is None or not folder.eval_file(stage).is_file():
        return None
    evaluation = read_evaluation(folder.eval_file(stage))
    if type(status.record.made_from.get(SEED)) is not int:
        raise UserError(f"{folder.artefact(stage).record_file}: has no {SEED} in made_from; run that stage again")
    return Result(stage=stage, folder=folder, record=status.record, evaluation=evaluation)


def compared_with(variant: Sequence[Result], reference: Sequence[Result]) -> str:
    """By what a variant may not be compared with its reference, in words; empty where it may.

    A distilled student is compared with a baseline that differs from it in nothing but the distillation, seed by seed.
    Two variants of one stage differ on purpose; they need the same test rows and the same seeds.
    """
    if difference := _histories(variant[0], reference[0]):
        return difference
    if [run.seed for run in variant] != [run.seed for run in reference]:
        return f"{SEED} {_seeds(reference)} / {_seeds(variant)}"
    for one, other in zip(reference, variant, strict=True):
        if one.evaluation["dataset_fingerprint"] != other.evaluation["dataset_fingerprint"]:
            return "the data set"
        if one.stage == "baseline" and other.stage == "distill":
            difference = differ_besides_distillation(one.record, other.record)
            if difference:
                return difference
    return ""


def _histories(variant: Result, reference: Result) -> str:
    """Best epochs that were chosen by two rankings, in words; empty where it was one."""
    chosen = [str(run.record.made_from.get(HISTORY, "shown")) for run in (reference, variant)]
    return "" if chosen[0] == chosen[1] else f"{HISTORY} {chosen[0]} / {chosen[1]}"


def _seeds(runs: Iterable[Result]) -> str:
    return ",".join(str(run.seed) for run in runs)


def reference_of(name: str, found: Mapping[str, Sequence[Result]]) -> tuple[str, str]:
    """The variant that another is compared with, and why it may not be, in words, where none fits.

    A distilled variant's reference is the first baseline that fits it, a baseline's the first baseline of all.
    """
    baselines = [key for key, runs in found.items() if runs[0].stage == "baseline"] or list(found)[:1]
    reasons = {key: compared_with(found[name], found[key]) for key in baselines if key != name}
    fitting = next((key for key, reason in reasons.items() if not reason), None)
    nearest = min(reasons, key=lambda key: reasons[key].count(","), default="")
    return (fitting, "") if fitting else (nearest, reasons.get(nearest, ""))


def require_metric(found: Mapping[str, Sequence[Result]], metrics: MetricsConfig) -> None:
    """Raises a UserError where a variant lacks the metric that decides, or none was trained for its ranking."""
    for name, runs in found.items():
        if any(metrics.monitor not in run.evaluation[metrics.part] for run in runs):
            raise UserError(
                f"metrics.monitor={metrics.monitor}: not among the metrics of {name}; give one that all runs have"
            )
    histories = {str(run.record.made_from.get(HISTORY, metrics.history)) for runs in found.values() for run in runs}
    if metrics.history not in histories:
        given = " or ".join(sorted(histories))
        raise UserError(
            f"{HISTORY}={metrics.history}: the best epochs were chosen with {given}; give {HISTORY}={given}"
        )


def run_table(found: Mapping[str, Sequence[Result]]) -> pd.DataFrame:
    """One line per run: what it was, its best validation value, its test metrics."""
    lines = []
    for name, runs in found.items():
        for run in runs:
            head = {"variant": name, "model": run.stage, "seed": run.seed, "folder": run.folder.root.name}
            masked = {f"{key} masked": value for key, value in run.evaluation["metrics_masked"].items()}
            lines.append({**head, "valid": run.record.value, **run.evaluation["metrics"], **masked})
    return pd.DataFrame(lines)
