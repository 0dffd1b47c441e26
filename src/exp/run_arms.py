"""Train variants of a finished distillation over several seeds and put them into one table with intervals.

`arms=controls` asks whether it is the LLM that helps, `arms=ablations` which part of the distillation does.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from src.core.errors import UserError
from src.core.files import write_text
from src.core.paths import RunFolder, project_path, teacher_outputs_dir
from src.core.significance import Ranks, load_ranks, paired_tests, user_metric
from src.distill.data_bridge import TeacherOutputs
from src.exp.arm_teachers import random_teacher, recommender_teacher
from src.exp.record import teacher_files_hash, weights_hash
from src.exp.run_distill import teacher_outputs, train_with
from src.exp.settings import ArmConfig, parse_settings
from src.exp.stage import Stage, begin_stage, run_entry_point
from src.exp.variants import ALL_SAMPLES, keep_or_run, trained_baseline, variant
from src.student.checkpoint import load_checkpoint
from src.student.evaluator import evaluate_scores
from src.student.floors import popularity

BASELINE = "arms/baseline"


def run(cfg: DictConfig) -> None:
    source = _source(cfg)
    stage = begin_stage(_as_it_was_run(source, HydraConfig.get().overrides.task), "arms")
    _check_source(stage, source)
    arms = stage.settings.arms
    jobs = {"baseline": [trained_baseline(stage, BASELINE, seed) for seed in arms.seeds]}
    for name, arm in arms.trained.items():
        jobs[name] = [_arm(stage, source, name, arm, seed) for seed in arms.seeds]
    ranks = {name: [load_ranks(job.folder.ranks_file(job.name)) for job in runs] for name, runs in jobs.items()}
    ranks["most_popular"] = [_popular(stage)]
    if source.is_finished("teacher"):
        ranks["teacher"] = [load_ranks(source.ranks_file("teacher"))]
    _write(stage, arms_table(ranks, stage.settings.metrics.monitor))


# --- the distillation that is varied ------------------------------------------------------------------------


def _source(cfg: DictConfig) -> RunFolder:
    given = parse_settings(cfg).arms.run_dir
    if given is None or not RunFolder(project_path(given)).is_finished("distill"):
        raise UserError(
            f"arms.run_dir={given}: must be the run folder of a finished distillation, such as "
            "result/result_<timestamp>; run src.exp.run_distill first"
        )
    return RunFolder(project_path(given))


def _as_it_was_run(source: RunFolder, overrides: list[str]) -> DictConfig:
    """The configuration of the distillation, with the overrides of this call on top."""
    before = OmegaConf.load(source.snapshot_dir("distill") / "overrides.yaml")
    return compose("config", overrides=[*before, *overrides])


def _check_source(stage: Stage, source: RunFolder) -> None:
    """The data and the teacher's files have to be those of the distillation."""
    _, info = load_checkpoint(source.model_dir("distill"))
    if info.dataset_fingerprint != stage.dataset.fingerprint:
        raise UserError(
            f"arms.run_dir={source.root}: distilled on {info.dataset} ({info.dataset_fingerprint[:12]}), this run uses "
            f"{stage.dataset.name} ({stage.dataset.fingerprint[:12]}); leave the dataset's settings as they were there"
        )
    folder = teacher_outputs_dir(stage.cfg)
    if info.teacher_manifest_sha256 not in (None, teacher_files_hash(folder)):
        raise UserError(
            f"{folder}: no longer the teacher's files of {source.root}; point paths.teacher_outputs_dir at them, or "
            "distil again"
        )


# --- the jobs -----------------------------------------------------------------------------------------------


def _arm(stage: Stage, source: RunFolder, name: str, arm: ArmConfig, seed: int) -> Stage:
    """Distil as the arm has it; `distill.init=baseline` starts from this seed's baseline."""
    changes = {"distill": {**arm.distill, "init_checkpoint": None}, "active": arm.active}
    job = variant(stage, "distill", f"arms/{name}", seed, changes)
    if not job.settings.distill.gates_samples and not arm.active:  # the distillation's own policy has nothing to choose
        job = variant(stage, "distill", f"arms/{name}", seed, {**changes, "active": ALL_SAMPLES})
    init = None
    if job.settings.distill.init == "baseline":
        init = variant(stage, "baseline", BASELINE, seed, {}).folder.model_dir("baseline")

    def files(job: Stage) -> dict[str, str | None]:
        teacher = weights_hash(_recommender(job, source)) if arm.teacher == "recommender" else arm.teacher
        used = {"the teacher's files": teacher_files_hash(teacher_outputs_dir(job.cfg)), "the teacher": teacher}
        return {**used, "the initial weights": weights_hash(init)}

    return keep_or_run(job, lambda job: train_with(job, _teacher(job, source, arm), init), files)


def _teacher(job: Stage, source: RunFolder, arm: ArmConfig) -> TeacherOutputs:
    distill = job.settings.distill
    if arm.teacher == "recommender":
        per_sequence = distill.confidence == "per_sequence"
        return recommender_teacher(_recommender(job, source), job.dataset, distill.top_k, per_sequence, job.device)
    outputs = teacher_outputs(job)
    if arm.teacher == "random":
        return random_teacher(outputs, job.dataset.num_items, job.settings.general.seed)
    return outputs


def _recommender(job: Stage, source: RunFolder) -> Path:
    """The checkpoint of the frozen recommender that the teacher reads."""
    given = job.settings.teacher.rec_model_path
    folder = project_path(given) if given else source.model_dir("teacher") / "recommender"
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no frozen recommender, which an arm with teacher=recommender distils; set "
            "teacher.rec_model_path to one, or leave the arm out with ~arms.trained.<name>"
        )
    return folder


# --- the table ----------------------------------------------------------------------------------------------


def _popular(stage: Stage) -> Ranks:
    rows, dataset = stage.dataset.test, stage.dataset
    return evaluate_scores(popularity(dataset, rows), rows, dataset.num_items, stage.settings.metrics.ks).ranks


def arms_table(ranks: dict[str, list[Ranks]], metric: str) -> pd.DataFrame:
    """One line per arm: its metric, and its difference to the first arm with a 95 % interval.

    Args:
        ranks: by arm, the ranks of its runs (seeds).

    Returns:
        Columns seeds, users, mean and std (over seeds), masked (mean with the history removed), difference, low, high,
        p_value (Holm-corrected), verdict; the first arm has none of the last five.
    """
    first, *others = ranks
    tests = paired_tests({name: (ranks[name], ranks[first]) for name in others}, metric)
    lines = {}
    for name, runs in ranks.items():
        values = [float(user_metric([run], metric)[1].mean()) for run in runs]
        line = {"seeds": len(runs), "users": len(user_metric(runs, metric)[0]), "mean": np.mean(values)}
        line["std"] = np.std(values, ddof=1) if len(runs) > 1 else np.nan
        line["masked"] = user_metric(runs, metric, masked=True)[1].mean()
        if name in tests:
            test = tests[name]
            line |= {"difference": test.difference, "low": test.low, "high": test.high}
            line |= {"p_value": test.p_value, "verdict": test.verdict}
        lines[name] = line
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("arm")


def _write(stage: Stage, table: pd.DataFrame) -> None:
    """`metrics/arms.{csv,md}`."""
    folder, metrics = stage.folder, stage.settings.metrics
    file = folder.root / "metrics" / "arms.csv"
    write_text(file, table.to_csv(float_format="%.6f"))
    shown = table.astype(object)
    text = shown.where(shown.notna(), None).to_markdown(floatfmt=".4f", missingval="-")
    seeds = ", ".join(map(str, stage.settings.arms.seeds))
    note = (
        f"Test {metrics.monitor} on {stage.dataset.name}, seeds {seeds}: mean and standard deviation over seeds; "
        "`masked`: items of the history removed. Difference to the baseline: seeds "
        "averaged, users paired, 95 % bootstrap interval, Wilcoxon's p after Holm. The interval covers the choice of "
        "users, not of seeds. The teacher ranks its candidates only, on the users it was tested on."
    )
    write_text(file.with_suffix(".md"), f"{note}\n\n{text}\n")
    console = Console()
    console.print(text, soft_wrap=True, highlight=False)
    console.print(f"table: {file.with_suffix('.md')}", soft_wrap=True, highlight=False)


def main() -> None:
    run_entry_point(run)


if __name__ == "__main__":
    main()
