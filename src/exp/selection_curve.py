"""Distilled quality against the share of the training rows that the teacher is asked for.

    python -m src.exp.selection_curve dataset=movielens curve.shares=[0.1,0.3] curve.seeds=[1,2,3]

The LLM is asked once: one export of all rows, of which each point uses some. That equals an export of only those rows,
because no line of it depends on another. A baseline is trained per seed; it chooses the rows, as with
`teacher.export.rows=policy`. Each point is a run folder below `curve/`; started again with the same `hydra.run.dir`,
what is there is kept and what is missing is trained.
"""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from src.core.errors import UserError
from src.core.files import read_json, write_text
from src.core.paths import teacher_outputs_dir
from src.core.seed import set_seed
from src.distill.data_bridge import TeacherOutputs
from src.distill.row_selection import select_rows
from src.distill.selection_policy import STUDENT_MEASURES, ActiveConfig
from src.exp.record import teacher_files_hash, weights_hash
from src.exp.report.study_plots import plot_curve
from src.exp.run_distill import teacher_outputs, train_with
from src.exp.stage import Stage, begin_stage, run_entry_point
from src.exp.variants import ALL_SAMPLES, keep_or_run, trained_baseline, variant
from src.student.checkpoint import load_checkpoint

BASELINE, NONE, ALL = "baseline", "no row", "all rows"  # besides the policies: points that belong to each curve


def run(cfg: DictConfig) -> float:
    stage = begin_stage(cfg, "curve")
    outputs, monitor = _full_export(stage), stage.settings.metrics.monitor
    lines: list[dict[str, object]] = []
    for seed in stage.settings.curve.seeds:
        lines += _points(stage, outputs, seed)
        frame = pd.DataFrame(lines)
        write_text(stage.folder.root / "metrics" / "selection_curve.csv", frame.to_csv(index=False))
        table = summarise(frame, monitor).to_markdown()
        write_text(stage.folder.root / "metrics" / "selection_curve.md", table + "\n")
        plot(frame, monitor, stage.folder.plots_dir / "selection_curve.png")
    stage.logger.info("test %s, mean (standard deviation) over the seeds:\n%s", monitor, table)
    return float(frame[frame["policy"] == ALL][monitor].mean())


def _full_export(stage: Stage) -> TeacherOutputs:
    """The teacher's files.

    Raises:
        UserError: a partial export, or a distillation without a loss per row.
    """
    if not stage.settings.distill.gates_samples:
        raise UserError("distill.lambda=0 or distill.alpha=0: no loss asks for the teacher's rows, there is no curve")
    outputs = teacher_outputs(stage)
    if outputs.known is not None:
        raise UserError(
            f"{teacher_outputs_dir(stage.cfg)}: an export of some rows ({outputs.selection}); the curve needs one of "
            "all rows, teacher.export.rows=all"
        )
    return outputs


def _points(stage: Stage, outputs: TeacherOutputs, seed: int) -> list[dict[str, object]]:
    """All points of one seed; those that are there are not trained again."""
    settings, num_rows = stage.settings.curve, len(stage.dataset.train)
    baseline = trained_baseline(stage, "curve/baseline", seed)
    checkpoint = baseline.folder.model_dir("baseline")
    asked = {(NONE, 0.0): np.arange(0), (ALL, 1.0): np.arange(num_rows)}
    for policy in settings.policies:
        for share in settings.shares:
            set_seed(seed)
            model, _ = load_checkpoint(checkpoint)
            asked[policy, share] = select_rows(_active(policy, share), model, stage.dataset, seed, stage.device)
    lines = [_line(baseline, BASELINE, 0.0, 0)]
    for (policy, share), rows in asked.items():
        job = _distilled(stage, outputs, f"{policy}_{share:g}".replace(" ", "_"), seed, rows)
        lines.append(_line(job, policy, share, len(rows)))
    return lines


def _distilled(stage: Stage, outputs: TeacherOutputs, name: str, seed: int, rows: np.ndarray) -> Stage:
    """Distil with a teacher that was asked for `rows` only."""
    job = variant(
        stage, "distill", f"curve/{name}", seed, {"distill": {"init_checkpoint": None}, "active": ALL_SAMPLES}
    )
    init = None
    if job.settings.distill.init == "baseline":
        init = stage.folder.root / "curve" / "baseline" / f"seed_{seed}" / "models" / "baseline"

    def files(job: Stage) -> dict[str, str | None]:
        used = {"the teacher's files": teacher_files_hash(teacher_outputs_dir(job.cfg))}
        return {**used, "the rows": sha256(rows.tobytes()).hexdigest(), "the initial weights": weights_hash(init)}

    return keep_or_run(
        job, lambda job: train_with(job, outputs.restricted_to(rows, len(job.dataset.train)), init), files
    )


def _line(job: Stage, policy: str, share: float, rows: int) -> dict[str, object]:
    """A line of the file: what was asked for, and the test metric."""
    monitor, found = job.settings.metrics.monitor, read_json(job.folder.eval_file(job.name))
    line = {"policy": policy, "share": share, "rows": rows, "seed": job.settings.general.seed}
    line |= {monitor: found["metrics"][monitor], f"{monitor} masked": found["metrics_masked"][monitor]}
    job.logger.info("%s, share %g, seed %d: %s %.4f", policy, share, line["seed"], monitor, line[monitor])
    return line


def _active(policy: str, share: float) -> ActiveConfig:
    if policy in STUDENT_MEASURES:
        return ActiveConfig("uncertainty", "uncertainty", share, policy, "epoch")
    return ActiveConfig(policy, policy, share)


def summarise(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Shares down, policies across: mean (standard deviation) of a metric over the seeds; the common points in each."""
    groups = frame.groupby(["policy", "share"])[metric]
    cells = groups.mean().map("{:.4f}".format) + groups.std(ddof=1).map(lambda s: "" if np.isnan(s) else f" ({s:.4f})")
    table = cells.unstack("policy")
    policies = [name for name in frame["policy"].unique() if name not in (BASELINE, NONE, ALL)]
    for policy in policies:
        table.loc[0.0, policy] = table.loc[0.0, NONE]
        table.loc[1.0, policy] = table.loc[1.0, ALL]
    table[BASELINE] = table.loc[0.0, BASELINE]
    return table[[*policies, BASELINE]].rename_axis(columns=None)


def plot(frame: pd.DataFrame, metric: str, path: Path) -> None:
    """Mean of a metric against the share of rows, one line a policy, bars one standard deviation of the seeds."""
    table = frame.groupby(["policy", "share"], sort=False)[metric].agg(["mean", "std"]).reset_index()
    names = table["policy"].where(
        table["policy"] == BASELINE, table["policy"] + " " + table["share"].map("{:g}".format)
    )
    common = table["policy"].isin([NONE, ALL])
    table = table.assign(policy=table["policy"].mask(common, None)).set_index(names.rename(None))
    plot_curve(table, x="share", series="policy", metric=metric, path=path, level=BASELINE)


def main() -> None:
    run_entry_point(run)


if __name__ == "__main__":
    main()
