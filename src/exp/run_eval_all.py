"""Evaluate the checkpoints of a run again and write the comparison: table, plots, report."""

import shutil
from collections.abc import Callable
from math import isnan
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from src.core.cost import answer_latency, parameter_counts, record_cost
from src.core.data_utils import Rows, SequenceDataset
from src.core.errors import UserError
from src.core.files import read_json
from src.core.foreign.escape import rich_text
from src.core.paths import STAGES, RunFolder, project_path, result_root
from src.core.significance import Ranks, load_ranks
from src.exp.lookup import find_run
from src.exp.report import STUDENTS, Comparison, summary_table, write_report
from src.exp.stage import Stage, begin_stage, is_multirun, run_entry_point
from src.student.checkpoint import load_checkpoint
from src.student.evaluator import Evaluation, ScoreRows, evaluate_model, evaluate_scores, write_evaluation
from src.student.floors import markov_chain, popularity
from src.student.models import Student

_TIMED_USERS = 200


def run(cfg: DictConfig) -> float:
    stage = begin_stage(cfg, "eval")
    sources = _sources(stage)
    students = {name: _evaluate_student(stage, name, sources[name]) for name in STUDENTS if name in sources}
    floors = {"popular": _floor(stage, popularity), "markov": _floor(stage, markov_chain)}
    evaluations = {name: {"metrics": e.metrics, "metrics_masked": e.metrics_masked} for name, e in floors.items()}
    if "teacher" in sources:  # after the students, which tell whether this is the dataset of that run
        evaluations["teacher"] = _take_over(stage, "teacher", sources["teacher"])
    evaluations |= students
    if "dllm2rec_upstream" in sources:
        evaluations["dllm2rec_upstream"] = _take_over(stage, "dllm2rec_upstream", sources["dllm2rec_upstream"])
    ranks, seeds = _all_seeds(stage, students)
    if "teacher" in sources:
        ranks["teacher"] = [load_ranks(stage.folder.ranks_file("teacher"))]
    ranks |= {name: [e.ranks] for name, e in floors.items()}
    ranks = {name: ranks[name] for name in evaluations if name in ranks}
    comparison = Comparison(
        stage.settings, stage.commit, stage.dataset, stage.device, stage.folder, sources, evaluations, ranks, seeds
    )
    write_report(comparison)
    _print(comparison)
    return evaluations.get("distill", evaluations.get("baseline"))["metrics"][comparison.monitor]


def _all_seeds(stage: Stage, students: dict[str, dict]) -> tuple[dict[str, list[Ranks]], dict[str, list[dict]]]:
    """Per student the ranks and evaluations of this run, then of the runs in `eval.seed_dirs`.

    Raises:
        UserError: a folder holds no student, or one of another data set or of a seed that is there already.
    """
    ranks = {name: [load_ranks(stage.folder.ranks_file(name))] for name in students}
    found = {name: [evaluation] for name, evaluation in students.items()}
    for given in stage.settings.eval.seed_dirs:
        folder = RunFolder(project_path(given))
        here = [name for name in students if folder.is_finished(name)]
        if not here:
            raise UserError(f"eval.seed_dirs: {given} holds no finished {' or '.join(students)}; give run folders")
        for name in here:
            evaluation = read_json(folder.eval_file(name))
            _check_seed_run(stage, given, evaluation, found[name])
            found[name].append(evaluation)
            ranks[name].append(load_ranks(folder.ranks_file(name)))
    return ranks, found


def _check_seed_run(stage: Stage, given: str, evaluation: dict, others: list[dict]) -> None:
    if evaluation["dataset_fingerprint"] != stage.dataset.fingerprint:
        raise UserError(
            f"eval.seed_dirs: {given} is a run of other data; give runs of the dataset {stage.dataset.name}"
        )
    seeds = [other["seed"] for other in others]
    if evaluation["seed"] in seeds:
        raise UserError(
            f"eval.seed_dirs: {given} has seed {evaluation['seed']} once more; give runs of different seeds"
        )


def _sources(stage: Stage) -> dict[str, RunFolder]:
    """The run folder of each finished stage."""
    given = stage.settings.eval.run_dir
    if given is not None:
        folder = RunFolder(project_path(given))
        if not folder.root.is_dir():
            raise UserError(
                f"eval.run_dir={given}: no such folder; give a run folder such as result/result_<timestamp>"
            )
        found = {name: folder for name in STAGES if folder.is_finished(name)}
    elif is_multirun():
        raise UserError("eval.run_dir=null: must be given under multirun, because guessing a run could mix seeds")
    else:
        root = result_root(stage.cfg)
        runs = {
            name: find_run(name, stage.folder, root, stage.dataset.fingerprint, "eval.run_dir", stage.logger)
            for name in STAGES
            # DLLM2Rec's own program belongs to one run only: another run's must not slip into this report.
            if name != "dllm2rec_upstream" or stage.folder.is_finished(name)
        }
        found = {name: run for name, run in runs.items() if run is not None}
    if not found.keys() & {"baseline", "distill"}:
        where = f"in {given}" if given else f"for dataset {stage.dataset.name} under {result_root(stage.cfg)}"
        raise UserError(
            f"eval.run_dir={given}: no finished baseline or distilled student {where}; run "
            "src.exp.run_student_baseline or src.exp.run_distill first"
        )
    return found


def _floor(stage: Stage, floor: Callable[[SequenceDataset, Rows], ScoreRows]) -> Evaluation:
    """A scorer without training that every model has to beat."""
    dataset = stage.dataset
    scorer = floor(dataset, dataset.test)
    return evaluate_scores(scorer, dataset.test, dataset.num_items, stage.settings.metrics.ks)


def _take_over(stage: Stage, name: str, source: RunFolder) -> dict:
    """Test metrics as they were: asking the LLM again would cost what the export costs, upstream saves no model."""
    if source.root != stage.folder.root:
        for path, copy in (
            (source.eval_file(name), stage.folder.eval_file(name)),
            (source.ranks_file(name), stage.folder.ranks_file(name)),
        ):
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                shutil.copy2(path, copy)
    return read_json(source.eval_file(name))


def _evaluate_student(stage: Stage, name: str, source: RunFolder) -> dict:
    """Evaluate a checkpoint and compare with what its training wrote."""
    folder = source.model_dir(name)
    model, info = load_checkpoint(folder)
    if info.dataset_fingerprint != stage.dataset.fingerprint:
        raise UserError(
            f"{folder}: trained on {info.dataset} ({info.dataset_fingerprint[:12]}), this run uses "
            f"{stage.dataset.name} ({stage.dataset.fingerprint[:12]}); give the dataset settings of that run"
        )
    before = read_json(source.eval_file(name))
    evaluation = evaluate_model(model, stage.dataset.test, stage.dataset, stage.settings.metrics.ks, stage.device)
    about = stage.about(model.config.name, len(stage.dataset.test), folder)
    about["seed"], about["git_commit"] = info.seed, info.git_commit  # of the training, not of this evaluation
    write_evaluation(stage.folder.eval_file(name), stage.folder.ranks_file(name), evaluation, about)
    _measure_cost(stage, name, model)
    shared = before["metrics"].keys() & evaluation.metrics.keys()
    if all(before["metrics"][k] == evaluation.metrics[k] for k in shared):
        stage.logger.info("%s: same test metrics as after its training", name)
    else:
        stage.logger.warning("%s: test metrics differ from those after its training (another device?)", name)
    return read_json(stage.folder.eval_file(name))


def _measure_cost(stage: Stage, name: str, model: Student) -> None:
    """Parameters, and the time to score all items for one test user and to sort out the best ten."""
    rows, model = stage.dataset.test, model.eval().to(stage.device)

    @torch.no_grad()
    def answer(i: int) -> torch.Tensor:
        history, length, _ = rows.windows(model.config.max_seq_len, stage.dataset.pad_id, np.array([i]))
        scores = model(torch.from_numpy(history).to(stage.device), torch.from_numpy(length).to(stage.device))
        return scores.topk(min(10, stage.dataset.num_items)).indices

    latency = answer_latency(answer, min(_TIMED_USERS + 1, len(rows)), stage.device)
    record_cost(stage.folder.cost_file, name, parameter_counts(model) | latency)


def _print(comparison: Comparison) -> None:
    """The table (metrics down, models across, so that it fits a terminal) and where everything is."""
    frame = summary_table(comparison)
    title = f"{comparison.dataset.name}, test, ranked over all {comparison.dataset.num_items} items"
    table = Table(title=rich_text(title))
    table.add_column("metric")
    for label in frame.index:
        table.add_column(rich_text(label.removeprefix("student, ").removeprefix("most ")), justify="right")
    for column in frame.columns:
        if column.startswith(("recall", "ndcg")):
            table.add_row(column, *("-" if isnan(value) else f"{value:.4f}" for value in frame[column]))
    console = Console()
    console.print(table)
    reports = [("report", comparison.folder.report_file), ("report", comparison.folder.html_report_file)]
    for title, path in (*reports, *_plots(comparison.folder.plots_dir)):
        console.print(rich_text(f"{title}: {path}"), soft_wrap=True)


def _plots(folder: Path) -> list[tuple[str, Path]]:
    return [("plot", path) for path in sorted(folder.glob("*.png"))]


def main() -> None:
    run_entry_point(run)


if __name__ == "__main__":
    main()
