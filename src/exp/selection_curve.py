"""Distilled quality against the share of the training rows that the teacher is asked for.

    python -m src.exp.selection_curve dataset=movielens curve.shares=[0.1,0.3] curve.seeds=[1,2,3]

The LLM is asked once: one export of all rows, of which each point uses some. That equals an export of only those rows,
because no line of it depends on another. A baseline is trained per seed; it chooses the rows, as with
`teacher.export.rows=policy`. Every finished point is kept in `metrics/selection_curve.csv`.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from omegaconf import DictConfig

from src.core.errors import UserError
from src.core.files import write_atomic, write_text
from src.core.logging import TensorBoardWriter, tensorboard_writer
from src.core.paths import teacher_outputs_dir
from src.core.seed import set_seed
from src.distill.data_bridge import TeacherOutputs
from src.distill.row_selection import select_rows
from src.distill.selection_policy import STUDENT_MEASURES, ActiveConfig, SelectionPolicyAll
from src.distill.trainer_distill import train_distilled
from src.exp.run_distill import teacher_outputs
from src.exp.stage import Stage, begin_stage, run_entry_point
from src.student.checkpoint import load_checkpoint
from src.student.evaluator import evaluate_model
from src.student.trainer_baseline import train_baseline

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BASELINE, NONE, ALL = "baseline", "no row", "all rows"  # besides the policies: points that belong to each curve


@dataclass(frozen=True)
class Curve:
    """A curve in the making: `folder` holds a model per point, `file` a line per point."""

    stage: Stage
    outputs: TeacherOutputs
    folder: Path
    file: Path

    def baseline(self, seed: int) -> Path:
        """Train the student alone; returns its checkpoint."""
        stage, settings, name = self.stage, self.stage.settings, f"{BASELINE}_seed{seed}"
        writer = self._writer(name)
        train_baseline(
            settings.student,
            stage.dataset,
            settings.metrics,
            self.folder / name,
            seed,
            stage.device,
            stage.logger,
            writer,
        )
        writer.close()
        return self.folder / name

    def distilled(self, name: str, rows: np.ndarray, seed: int, baseline: Path) -> Path:
        """Distil with a teacher that was asked for `rows` only; returns the checkpoint."""
        stage, settings, name = self.stage, self.stage.settings, f"{name.replace(' ', '_')}_seed{seed}"
        writer = self._writer(name)
        train_distilled(
            settings.distill,
            settings.student,
            stage.dataset,
            self.outputs.restricted_to(rows, len(stage.dataset.train)),
            SelectionPolicyAll(),
            baseline if settings.distill.init == "baseline" else None,
            settings.metrics,
            self.folder / name,
            seed,
            stage.device,
            stage.logger,
            writer,
        )
        writer.close()
        return self.folder / name

    def _writer(self, name: str) -> TensorBoardWriter:
        return tensorboard_writer(self.stage.folder.tensorboard_dir("curve") / name, self.stage.settings.logging)

    def record(self, policy: str, share: float, rows: int, seed: int, checkpoint: Path) -> None:
        """Test a checkpoint and add its line to the file."""
        stage, monitor = self.stage, self.stage.settings.metrics.monitor
        model, _ = load_checkpoint(checkpoint)
        found = evaluate_model(model, stage.dataset.test, stage.dataset, stage.settings.metrics.ks, stage.device)
        line = {"policy": policy, "share": share, "rows": rows, "seed": seed, monitor: found.metrics[monitor]}
        line[f"{monitor} masked"] = found.metrics_masked[monitor]
        before = [pd.read_csv(self.file)] if self.file.is_file() else []
        write_text(self.file, pd.concat([*before, pd.DataFrame([line])]).to_csv(index=False))
        stage.logger.info("%s, share %g, seed %d: %s %.4f", policy, share, seed, monitor, found.metrics[monitor])


def run(cfg: DictConfig) -> float:
    stage = begin_stage(cfg, "curve")
    curve = _curve(stage)
    monitor = stage.settings.metrics.monitor
    for seed in stage.settings.curve.seeds:
        _add_seed(curve, seed)
        frame = pd.read_csv(curve.file)
        table = summarise(frame, monitor).to_markdown()
        write_text(stage.folder.root / "metrics" / "selection_curve.md", table + "\n")
        plot(frame, monitor, stage.folder.plots_dir / "selection_curve.png")
    stage.logger.info("test %s, mean (standard deviation) over the seeds:\n%s", monitor, table)
    return float(frame[frame["policy"] == ALL][monitor].mean())


def _curve(stage: Stage) -> Curve:
    """Read the export and make sure that it holds all rows and that no curve is overwritten.

    Raises:
        UserError: a partial export, a distillation without a loss per row, or a curve that is there.
    """
    file = stage.folder.root / "metrics" / "selection_curve.csv"
    if file.is_file():
        if not stage.settings.general.overwrite:
            raise UserError(f"{file}: exists; use another hydra.run.dir, or general.overwrite=true to replace it")
        file.unlink()
    if not stage.settings.distill.gates_samples:
        raise UserError("distill.lambda=0 or distill.alpha=0: no loss asks for the teacher's rows, there is no curve")
    outputs = teacher_outputs(stage)
    if outputs.known is not None:
        raise UserError(
            f"{teacher_outputs_dir(stage.cfg)}: an export of some rows ({outputs.selection}); the curve needs one of "
            "all rows, teacher.export.rows=all"
        )
    return Curve(stage, outputs, stage.folder.model_dir("curve"), file)


def _add_seed(curve: Curve, seed: int) -> None:
    """All points of one seed."""
    stage, settings = curve.stage, curve.stage.settings.curve
    everything = np.arange(len(stage.dataset.train))
    baseline = curve.baseline(seed)
    curve.record(BASELINE, 0.0, 0, seed, baseline)
    for name, share, rows in ((NONE, 0.0, everything[:0]), (ALL, 1.0, everything)):
        curve.record(name, share, len(rows), seed, curve.distilled(name, rows, seed, baseline))
    for policy in settings.policies:
        for share in settings.shares:
            set_seed(seed)
            model, _ = load_checkpoint(baseline)
            rows = select_rows(_active(policy, share), model, stage.dataset, seed, stage.device)
            checkpoint = curve.distilled(f"{policy}_{share:g}", rows, seed, baseline)
            curve.record(policy, share, len(rows), seed, checkpoint)


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
    figure, axis = plt.subplots(figsize=(7, 4.2))
    common = frame[frame["policy"].isin([NONE, ALL])]
    for policy in frame["policy"].unique():
        if policy in (BASELINE, NONE, ALL):
            continue
        points = pd.concat([common, frame[frame["policy"] == policy]]).groupby("share")[metric]
        axis.errorbar(points.mean().index, points.mean(), points.std(ddof=0), marker="o", capsize=3, label=policy)
    axis.axhline(frame[frame["policy"] == BASELINE][metric].mean(), color="grey", linestyle="--", label=BASELINE)
    axis.set_xlabel("share of the training rows that the teacher is asked for")
    axis.set_ylabel(f"test {metric}")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.tight_layout()
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))
    plt.close(figure)


def main() -> None:
    run_entry_point(run)


if __name__ == "__main__":
    main()
