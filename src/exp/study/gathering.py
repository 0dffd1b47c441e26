"""The jobs of a sweep in one table over seeds, as a study without variants of its own."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.core.errors import UserError
from src.core.files import write_text
from src.core.foreign.escape import terminal
from src.core.paths import project_path
from src.exp.compare.comparison import metric_label
from src.exp.report.tables import for_spreadsheets
from src.exp.settings import Settings
from src.exp.stage.multirun import SweepJob, load_jobs, varying_keys
from src.exp.study.pages import Study, study_page
from src.exp.study.results import Result, reference_of, require_metric, result, run_table
from src.exp.study.table import study_table

_SEED = "general.seed"
_TRAININGS = ("teacher", "baseline", "distill")


def gather(cfg: Settings) -> None:
    """Write csv, Markdown, HTML and plot into the sweep's folder, and print the table."""
    folder, metrics = _sweep_dir(cfg.gather.sweep_dir), cfg.metrics
    jobs = load_jobs(folder)
    variants = find_variants(jobs)
    if not variants:
        raise UserError(f"gather.sweep_dir={folder}: none of its {len(jobs)} jobs is a finished training")
    require_metric(variants, metrics)
    references = {name: reference_of(name, variants) for name in variants}
    first = next((name for name, runs in variants.items() if runs[0].stage == "baseline"), next(iter(variants)))
    table = study_table(
        {name: [run.ranks for run in runs] for name, runs in variants.items()},
        metric=metrics.monitor,
        masked=metrics.masked,
        reference=first,
        references={name: reference for name, (reference, _) in references.items()},
        validation={name: [run.record.value or 0.0 for run in runs] for name, runs in variants.items()},
        unlike={name: words for name, (_, words) in references.items()},
    )
    study = Study(
        name="sweep",
        title=f"Sweep {folder.name}",
        metric=metric_label(metrics.monitor, metrics.masked),
        table=table,
        reference=first,
        about=[
            "Differences are over users, each averaged over the seeds first. A distilled student is compared with the "
            "baseline that differs from it in nothing but the distillation."
        ],
        unfinished=[f"job {job.folder.root.name} ({job.artefact}): {job.error}" for job in jobs if job.error],
    )
    write_text(
        folder / "sweep_jobs.csv", for_spreadsheets(run_table(variants)).to_csv(index=False, float_format="%.6f")
    )
    files = [folder / "sweep_jobs.csv", *study_page(study, folder)]
    print((folder / "sweep.md").read_text(encoding="utf-8"))
    for file in files:
        print(terminal(str(file)))


def _sweep_dir(given: str | None) -> Path:
    if given is None:
        raise UserError("gather.sweep_dir=null: must be the folder of a sweep, such as result/result_<timestamp>")
    folder = project_path(given)
    if not load_jobs(folder):
        raise UserError(
            f"gather.sweep_dir={given}: holds no record of a job (<job>/records/*.json); give a sweep's folder"
        )
    return folder


def find_variants(jobs: Sequence[SweepJob]) -> Mapping[str, list[Result]]:
    """The finished trainings, by model and by the overrides that vary apart from the seed."""
    variants: dict[str, list[Result]] = {}
    for stage in _TRAININGS:
        same = [job for job in jobs if job.artefact == stage]
        keys = [key for key in varying_keys(same) if key != _SEED]
        for job in same:
            found = result(stage, job.folder) if job.error is None else None
            if found is not None:
                given = {key: job.overrides[key] for key in keys if key in job.overrides}
                setting = " ".join(f"{key}={_short(value)}" for key, value in given.items())
                variants.setdefault(f"{stage} {setting}".strip(), []).append(found)
    return variants


def _short(value: str) -> str:
    """A sampled number such as 0.0012520653814999472 by six digits."""
    return f"{float(value):.6g}" if re.fullmatch(r"\d*\.\d{7,}(e-?\d+)?", value) else value
