"""Gather the jobs of a sweep into one table over seeds: csv, Markdown, plot."""

import re
from dataclasses import dataclass
from math import nan
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from src.core.errors import UserError
from src.core.files import read_json, write_text
from src.core.paths import RunFolder, project_path
from src.exp.report.significance import PairedTest, load_ranks, paired_tests
from src.exp.report.study_plots import plot_study
from src.exp.settings import parse_settings
from src.exp.stage import drop_empty_run_folder, run_entry_point
from src.exp.sweep import Job, load_jobs, varying_keys

_STAGES = {"run_teacher": "teacher", "run_student_baseline": "baseline", "run_distill": "distill"}
_SEED = "general.seed"


@dataclass(frozen=True)
class Arm:
    """The jobs of one model with one setting, which differ in their seeds."""

    model: str
    setting: str
    jobs: list[Job]
    evaluations: list[dict]

    @property
    def name(self) -> str:
        return f"{self.model} {self.setting}".strip()


def run(cfg: DictConfig) -> None:
    settings = parse_settings(cfg)
    drop_empty_run_folder()
    folder, metric = _sweep_dir(settings.gather.sweep_dir), settings.metrics.monitor
    jobs = load_jobs(folder)
    arms = find_arms(jobs)
    if not arms:
        raise UserError(f"gather.sweep_dir={folder}: none of its {len(jobs)} jobs is a finished training")
    missing = [arm.name for arm in arms for found in arm.evaluations if metric not in found["metrics"]]
    if missing:
        raise UserError(f"metrics.monitor={metric}: not among the metrics of {missing[0]}; give one that all jobs have")
    table, tests = sweep_table(arms), compare_arms(arms, metric)
    write_text(folder / "sweep_jobs.csv", job_table(arms).to_csv(index=False, float_format="%.6f"))
    write_text(folder / "sweep.csv", table.to_csv(index=False, float_format="%.6f"))
    text = _markdown(folder.name, arms, table, tests, metric, jobs)
    write_text(folder / "sweep.md", text)
    plot_study(_plotted(arms, table, tests, metric), metric=metric, path=folder / "sweep.png", sort=True)
    print(text)
    for name in ("sweep_jobs.csv", "sweep.csv", "sweep.md", "sweep.png"):
        print(folder / name)


def _sweep_dir(given: str | None) -> Path:
    if given is None:
        raise UserError("gather.sweep_dir=null: must be the folder of a sweep, such as result/result_<timestamp>")
    folder = project_path(given)
    if not load_jobs(folder):
        raise UserError(
            f"gather.sweep_dir={given}: holds no record of a job (<job>/metrics/job_*.json); give a sweep's folder"
        )
    return folder


def find_arms(jobs: list[Job]) -> list[Arm]:
    """The finished trainings, by model and by the overrides that vary apart from the seed."""
    arms: dict[tuple[str, str], Arm] = {}
    for entry_point, stage in _STAGES.items():
        same = [job for job in jobs if job.entry_point == entry_point]
        keys = [key for key in varying_keys(same) if key != _SEED]
        for job in same:
            file = RunFolder(job.folder).eval_file(stage)
            if job.error is not None or not file.is_file():
                continue
            given = {key: job.overrides[key] for key in keys if key in job.overrides}
            setting = " ".join(f"{key}={_short(value)}" for key, value in given.items())
            arm = arms.setdefault((stage, str(given)), Arm(stage, setting, [], []))
            arm.jobs.append(job)
            arm.evaluations.append(read_json(file))
    return list(arms.values())


def _short(value: str) -> str:
    """A sampled number such as 0.0012520653814999472 by six digits."""
    return f"{float(value):.6g}" if re.fullmatch(r"\d*\.\d{7,}(e-?\d+)?", value) else value


def job_table(arms: list[Arm]) -> pd.DataFrame:
    """One line per job: what it was, its best validation value, its test metrics."""
    lines = []
    for arm in arms:
        for job, found in zip(arm.jobs, arm.evaluations, strict=True):
            about = {"model": arm.model, "setting": arm.setting, "seed": job.config[_SEED], "job": job.folder.name}
            masked = {f"{name} masked": value for name, value in found["metrics_masked"].items()}
            lines.append({**about, "valid": job.value, **found["metrics"], **masked})
    return pd.DataFrame(lines)


def sweep_table(arms: list[Arm]) -> pd.DataFrame:
    """One line per arm: number of seeds, mean and standard deviation (n - 1; none for one seed) of each column."""
    frame = job_table(arms)
    groups = frame.drop(columns=["seed", "job"]).groupby(["model", "setting"], sort=False)
    values = groups.agg(["mean", "std"])
    values.columns = [f"{name} {'sd' if kind == 'std' else kind}" for name, kind in values.columns]
    values.insert(0, "seeds", frame.groupby(["model", "setting"], sort=False)["seed"].nunique())
    return values.reset_index()


def _plotted(arms: list[Arm], table: pd.DataFrame, tests: dict[str, PairedTest], metric: str) -> pd.DataFrame:
    """What `plot_study` draws: mean, sd and test of each arm."""
    lines = {
        arm.name: {"mean": line[f"{metric} mean"], "std": line[f"{metric} sd"]}
        | dict.fromkeys(("difference", "low", "high"), nan)
        | {"verdict": None}
        for arm, (_, line) in zip(arms, table.iterrows(), strict=True)
    }
    for name, test in tests.items():
        lines[name] |= {"difference": test.difference, "low": test.low, "high": test.high, "verdict": test.verdict}
    return pd.DataFrame.from_dict(lines, orient="index")


def compare_arms(arms: list[Arm], metric: str) -> dict[str, PairedTest]:
    """Each arm against the first baseline, else the first arm, where they share the data set."""
    reference = _reference(arms)
    data = reference.evaluations[0]["dataset_fingerprint"]
    comparable = [
        arm
        for arm in arms
        if arm is not reference and all(found["dataset_fingerprint"] == data for found in arm.evaluations)
    ]
    ranks = {arm.name: [load_ranks(RunFolder(j.folder).ranks_file(arm.model)) for j in arm.jobs] for arm in arms}
    return paired_tests({arm.name: (ranks[arm.name], ranks[reference.name]) for arm in comparable}, metric)


def _reference(arms: list[Arm]) -> Arm:
    return next((arm for arm in arms if arm.model == "baseline"), arms[0])


def _markdown(
    title: str, arms: list[Arm], table: pd.DataFrame, tests: dict[str, PairedTest], metric: str, jobs: list[Job]
) -> str:
    rows = []
    for arm, (_, line) in zip(arms, table.iterrows(), strict=True):
        row = {"model": arm.model, "setting": arm.setting, "seeds": line["seeds"]}
        row |= {"validation": _mean_sd(line, "valid"), f"test {metric}": _mean_sd(line, metric)}
        row[f"{metric} masked"] = _mean_sd(line, f"{metric} masked")
        test = tests.get(arm.name)
        row["difference [95 %]"] = f"{test.difference:+.4f} [{test.low:+.4f}, {test.high:+.4f}]" if test else "-"
        row["p (Holm)"], row["verdict"] = (f"{test.p_value:.3g}", test.verdict) if test else ("-", "-")
        rows.append(row)
    reference = _reference(arms)
    failed = [f"- job {job.folder.name} ({job.entry_point}): {job.error}" for job in jobs if job.error is not None]
    parts = [
        f"# Sweep {title}",
        pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True),
        f"Mean ± standard deviation over seeds. Difference of {metric} to: {reference.name}, over users, each averaged "
        "over the seeds first; 95 % bootstrap interval; p of the Wilcoxon signed-rank test, Holm-corrected. "
        "`cannot tell` unless interval and test agree.",
        "![sweep](sweep.png)",
        *(["## Not finished", "\n".join(failed)] if failed else []),
    ]
    return "\n\n".join(parts) + "\n"


def _mean_sd(line: pd.Series, name: str) -> str:
    mean, deviation = line.get(f"{name} mean", nan), line.get(f"{name} sd", nan)
    if pd.isna(mean):
        return "-"
    return f"{mean:.4f}" + ("" if pd.isna(deviation) else f" ± {deviation:.4f}")


def main() -> None:
    run_entry_point(run)


if __name__ == "__main__":
    main()
