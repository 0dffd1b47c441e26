"""What `run_eval_all` does with the runs that it has found: evaluate their checkpoints, compare, report."""

import re
import shutil
from functools import partial
from math import isfinite, isnan

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from src.core.errors import UserError
from src.core.files import write_atomic
from src.core.foreign.escape import rich_text
from src.core.git_info import git_commit
from src.core.paths import RunFolder, project_path
from src.core.tracking.base import TEST_TAG
from src.exp.compare.comparison import STUDENTS, Comparison, read_evaluation, summary_table
from src.exp.compare.references import evaluate_references
from src.exp.compare.significance import Ranks, load_ranks
from src.exp.compare.sources import Sources, control_tests, differ_besides_seed
from src.exp.compare.studies import studies_of
from src.exp.report.run_report import write_report
from src.exp.stage.inputs import weights_hash
from src.exp.stage.lookup import Found
from src.exp.stage.stage import Stage, open_stage
from src.exp.stage.training import tracked
from src.student.checkpoint import load_checkpoint
from src.student.cost import answer_latency, parameter_counts, record_cost
from src.student.evaluator import write_evaluation
from src.student.lists import ListMetrics, evaluate_test
from src.student.models import Student

_TIMED_USERS = 200
_METRIC = re.compile(r"[a-z_]+(@\d+)?")  # another program names its metrics as it likes
_UPSTREAM = "dllm2rec_upstream"


def evaluate(stage: Stage, sources: Sources) -> float:
    """Write the comparison into the run folder and print it; returns the value of the student that it is about."""
    open_stage(stage)
    artefact = stage.folder.artefact("eval")
    artefact.begin({f"the {name}": _weights(run, name) for name, run in sources.runs.items()})
    with tracked(stage) as tracker:
        comparison = _compare(stage, sources)
        files = write_report(comparison)
        tracker.conclude(_final_metrics(comparison), 0)
        tracker.add_files(files)
    value = comparison.value("distill" if "distill" in comparison.seeds else "baseline")
    artefact.complete(value, stage.hashes(*files))
    _print(comparison)
    return value


def _final_metrics(comparison: Comparison) -> dict[str, float]:
    """By tag, such as `test/distill/ndcg@10`; what a model has no number of is left out."""
    part = comparison.settings.metrics.part
    return {
        f"{TEST_TAG}{model}/{name}": value
        for model, evaluation in comparison.evaluations.items()
        for name, value in evaluation.get(part, {}).items()
        if isinstance(value, float) and isfinite(value) and _METRIC.fullmatch(name)
    }


def _weights(run: Found, name: str) -> str | None:
    return weights_hash(run.folder.model_dir(name))


def _compare(stage: Stage, sources: Sources) -> Comparison:
    """Every model's evaluation: students and references anew, teacher and upstream's program as they were."""
    runs = sources.runs
    lists = ListMetrics.of(stage.dataset, stage.settings.metrics.list_length)
    students = {name: _evaluate_student(stage, name, runs[name], lists) for name in STUDENTS if name in runs}
    references = evaluate_references(stage, lists)
    evaluations = {
        name: {"metrics": e.metrics, "metrics_masked": e.metrics_masked, "beyond_accuracy": e.beyond}
        for name, e in references.evaluations.items()
    }
    if "teacher" in runs:
        evaluations["teacher"] = _take_over(stage, "teacher", runs["teacher"].folder)
    evaluations |= students
    if _UPSTREAM in runs:
        evaluations[_UPSTREAM] = _take_over(stage, _UPSTREAM, runs[_UPSTREAM].folder)
    ranks, seeds = _all_seeds(stage, students, sources)
    if "teacher" in runs:
        ranks["teacher"] = [load_ranks(stage.folder.ranks_file("teacher"))]
    ranks |= {name: [e.ranks] for name, e in references.evaluations.items()}
    return Comparison(
        settings=stage.settings,
        commit=git_commit(),
        dataset=stage.dataset,
        device=stage.device,
        folder=stage.folder,
        sources={name: run.folder for name, run in runs.items()},
        evaluations=evaluations,
        ranks={name: ranks[name] for name in evaluations if name in ranks},
        seeds=seeds,
        unlike=sources.unlike,
        notes=sources.notes,
        controls=control_tests(stage, runs["distill"]) if "distill" in runs else None,
        titles=references.titles,
        studies=studies_of(stage),
    )


def _all_seeds(
    stage: Stage, students: dict[str, dict], sources: Sources
) -> tuple[dict[str, list[Ranks]], dict[str, list[dict]]]:
    """Per student the ranks and evaluations of this run, then of the runs in `eval.seed_dirs`.

    Raises:
        UserError: a folder holds no student, or one that differs in more than its seed, or has a seed once more.
    """
    ranks = {name: [load_ranks(stage.folder.ranks_file(name))] for name in students}
    found = {name: [evaluation] for name, evaluation in students.items()}
    for given in stage.settings.eval.seed_dirs:
        folder = RunFolder(project_path(given))
        here = [name for name in students if folder.artefact(name).status().is_current]
        if not here:
            raise UserError(f"eval.seed_dirs: {given} holds no finished {' or '.join(students)}; give run folders")
        for name in here:
            metrics = stage.settings.metrics
            evaluation = read_evaluation(folder.eval_file(name), metrics.monitor, metrics.part)
            _require_another_seed(given, name, folder, evaluation, others=found[name], main=sources.runs[name])
            found[name].append(evaluation)
            ranks[name].append(load_ranks(folder.ranks_file(name)))
    return ranks, found


def _require_another_seed(
    given: str, name: str, folder: RunFolder, evaluation: dict, *, others: list[dict], main: Found
) -> None:
    record = folder.artefact(name).status().record
    assert record is not None
    if difference := differ_besides_seed(main.record, record):
        raise UserError(
            f"eval.seed_dirs: the {name} of {given} differs from that of {main.folder.root} in more than its seed: "
            f"{difference}; give runs of the same settings and data"
        )
    if evaluation["seed"] in [other["seed"] for other in others]:
        raise UserError(
            f"eval.seed_dirs: {given} has seed {evaluation['seed']} once more; give runs of different seeds"
        )


def _take_over(stage: Stage, name: str, source: RunFolder) -> dict:
    """Test metrics as they were: asking the LLM again would cost what the export costs, upstream saves no model."""
    if source.root != stage.folder.root:
        for path, copy in (
            (source.eval_file(name), stage.folder.eval_file(name)),
            (source.ranks_file(name), stage.folder.ranks_file(name)),
        ):
            if path.is_file():
                write_atomic(copy, partial(shutil.copy2, path))
    return read_evaluation(source.eval_file(name))


def _evaluate_student(stage: Stage, name: str, source: Found, lists: ListMetrics) -> dict:
    """Evaluate a checkpoint and compare with what its training wrote."""
    folder = source.folder.model_dir(name)
    model, info = load_checkpoint(folder)
    before = source.folder.eval_file(name)
    metrics_before = read_evaluation(before)["metrics"] if before.is_file() else {}
    evaluation = evaluate_test(model, stage.dataset, stage.settings.metrics, stage.device, lists=lists)
    inside = folder.is_relative_to(stage.folder.root)
    about = {
        "model": model.config.name,
        "dataset": stage.dataset.name,
        "dataset_fingerprint": stage.dataset.fingerprint,
        "split": "test",
        "num_users": len(stage.dataset.test),
        "num_items": stage.dataset.num_items,
        "seed": info.seed,  # of the training, as the commit
        "git_commit": info.git_commit,
        "checkpoint": str(folder.relative_to(stage.folder.root) if inside else folder),
    }
    write_evaluation(stage.folder.eval_file(name), stage.folder.ranks_file(name), evaluation, about)
    _measure_cost(stage, name, model)
    shared = metrics_before.keys() & evaluation.metrics.keys()
    if all(metrics_before[key] == evaluation.metrics[key] for key in shared):
        stage.logger.info("%s: same test metrics as after its training", name)
    else:
        stage.logger.warning("%s: test metrics differ from those after its training (another device?)", name)
    return read_evaluation(stage.folder.eval_file(name))


def _measure_cost(stage: Stage, name: str, model: Student) -> None:
    """Parameters, and the time to score all items for one test user and to find the top 10."""
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
    dataset = comparison.dataset
    heading = rich_text(f"{dataset.name}, test, ranked over all {dataset.num_items} items")
    table = Table(title=heading, collapse_padding=True)
    table.add_column("metric")
    for label in frame.index:
        words = label.removeprefix("student, ").removeprefix("most ")
        table.add_column("\n".join(words.rsplit(" ", 1)), justify="right")  # six models fit 80 characters
    for column in frame.columns:
        if column.startswith(("recall", "ndcg")):
            table.add_row(column, *("-" if isnan(value) else f"{value:.4f}" for value in frame[column]))
    console = Console()
    console.print(table)
    folder = comparison.folder
    plots = [("plot", path) for path in sorted(folder.plots_dir.glob("*.png"))]
    for title, path in (("report", folder.report_file), ("report", folder.html_report_file), *plots):
        console.print(rich_text(f"{title}: {path}"), soft_wrap=True, highlight=False)
