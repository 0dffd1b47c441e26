"""The comparison of a run: summary table (csv, Markdown), plots (PNG), `report.md` and `report.html`."""

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from src.core.data_utils import SequenceDataset
from src.core.files import read_json, write_text
from src.core.paths import RunFolder
from src.core.significance import PairedTest, Ranks, bootstrap_interval, paired_tests, user_metric
from src.exp.breakdown import breakdown, row_groups, thirds
from src.exp.html import html_page
from src.exp.plots import LABELS, plot_breakdown, plot_comparison, plot_intervals, plot_learning_curves
from src.exp.provenance import changed_settings, repeat_command
from src.exp.settings import Settings
from src.student.cost import device_name

STUDENTS = ("baseline", "distill")
FLOORS = ("popular", "markov")
_OWN_PLOTS = ("comparison.png", "intervals.png", "breakdown.png", "learning_curves.png")


@dataclass(frozen=True)
class Comparison:
    """Everything the report tells.

    Attributes:
        folder: where it is written.
        sources: run folder that each stage's model came from.
        evaluations: contents of `eval_*.json` by model, in the order of the table.
        ranks: per model the ranks of its runs, this one's first, then those of other seeds.
        seeds: per student the contents of `eval_*.json` of the runs in `ranks`.
    """

    settings: Settings
    commit: str
    dataset: SequenceDataset
    device: torch.device
    folder: RunFolder
    sources: dict[str, RunFolder]
    evaluations: dict[str, dict]
    ranks: dict[str, list[Ranks]]
    seeds: dict[str, list[dict]]

    @property
    def monitor(self) -> str:
        return self.settings.metrics.monitor

    def seed_metrics(self, student: str) -> pd.DataFrame:
        """Test metrics of a student, one line per seed."""
        return pd.DataFrame([evaluation["metrics"] for evaluation in self.seeds[student]])


def summary_table(comparison: Comparison) -> pd.DataFrame:
    """One line per model; columns `<metric>@<k>` with the history shown, `... masked` with it removed."""
    rows = {}
    for name, evaluation in comparison.evaluations.items():
        masked = {f"{key} masked": value for key, value in evaluation["metrics_masked"].items()}
        rows[LABELS[name]] = {**evaluation["metrics"], **masked}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def write_report(comparison: Comparison) -> None:
    """Write `metrics/summary.{csv,md}`, `plots/*.png`, `report.md` and `report.html`."""
    folder, frame = comparison.folder, summary_table(comparison)
    write_text(folder.root / "metrics" / "summary.csv", frame.to_csv(float_format="%.6f"))
    write_text(folder.root / "metrics" / "summary.md", _table(frame.T) + "\n")
    tests, tables = _tests(comparison), _breakdowns(comparison)
    _plot(comparison, tests, tables)
    text = _report(comparison, tests, tables)
    write_text(folder.report_file, text)
    write_text(folder.html_report_file, html_page(text, folder.root))


def _tests(comparison: Comparison) -> dict[str, PairedTest]:
    """The distilled student against the baseline, then each student against the floors, corrected together."""
    students = [name for name in STUDENTS if name in comparison.ranks]
    pairs = [("distill", "baseline")] if len(students) == 2 else []
    pairs += [(student, floor) for student in reversed(students) for floor in FLOORS]
    ranks = comparison.ranks
    return paired_tests({_pair(*pair): (ranks[pair[0]], ranks[pair[1]]) for pair in pairs}, comparison.monitor)


def _pair(one: str, other: str) -> str:
    return f"{_short(one)} - {_short(other)}"


def _short(model: str) -> str:
    return LABELS[model].removeprefix("student, ")


def _breakdowns(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Of the models that were tested on every row; the teacher saw a sample."""
    models = {name: comparison.ranks[name] for name in (*FLOORS, *STUDENTS) if name in comparison.ranks}
    groups = row_groups(comparison.dataset)
    return {title: breakdown(models, thirds(values), comparison.monitor) for title, values in groups.items()}


def _plot(comparison: Comparison, tests: dict[str, PairedTest], tables: dict[str, pd.DataFrame]) -> None:
    plots, monitor = comparison.folder.plots_dir, comparison.monitor
    means = {}
    for name, runs in comparison.ranks.items():
        _, values = user_metric(runs, monitor)
        means[name] = (float(values.mean()), *bootstrap_interval(values))
    plot_comparison(comparison.evaluations, sorted(comparison.settings.metrics.ks), plots / "comparison.png")
    plot_intervals(means, tests, monitor, plots / "intervals.png")
    plot_breakdown(tables, monitor, plots / "breakdown.png")
    histories = {name: source.history_file(name) for name, source in comparison.sources.items()}
    plot_learning_curves(histories, monitor, plots / "learning_curves.png")


def _report(comparison: Comparison, tests: dict[str, PairedTest], tables: dict[str, pd.DataFrame]) -> str:
    settings, dataset = comparison.settings, comparison.dataset
    sections = [
        f"# {settings.general.experiment_name}: {dataset.name}",
        _verdict(comparison, tests),
        "## Is the difference real?",
        _test_table(tests),
        f"Differences of {comparison.monitor}, user by user, {_seeds_in_words(comparison)}. 95 % bootstrap interval; "
        f"p of the Wilcoxon signed-rank test, Holm-corrected for {len(tests)} comparisons. `better` and `worse` where "
        "both agree, else `cannot tell`.",
        *_seed_table(comparison),
        "![intervals](plots/intervals.png)",
        *_metrics_section(comparison),
        "## Where it helps",
        "Test rows in thirds, by how often the target was trained on and by how much of the user is known.",
        "![breakdown](plots/breakdown.png)",
        "## Training",
        "![learning curves](plots/learning_curves.png)",
        *_other_plots(comparison.folder.plots_dir),
        *_teacher_section(comparison),
        "## Cost",
        *_cost_section(comparison),
        "## What was run",
        _facts(comparison),
        _settings_table(comparison),
        "## How to repeat it",
        f"At commit `{comparison.commit}`, from the project's root:",
        f"```bash\n{repeat_command(comparison.sources)}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _table(frame: pd.DataFrame, **options: object) -> str:
    """A Markdown table; what a line lacks is a dash."""
    table = frame.astype(object)
    return table.where(table.notna(), None).to_markdown(floatfmt=".4f", missingval="-", **options)


def _rows(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table of text."""
    return pd.DataFrame(rows, columns=columns).to_markdown(index=False, disable_numparse=True)


def _verdict(comparison: Comparison, tests: dict[str, PairedTest]) -> str:
    """What distillation did, then which student is below a floor; students by their mean over seeds."""
    monitor, students = comparison.monitor, list(comparison.seeds)
    values = {name: comparison.seed_metrics(name)[monitor].mean() for name in students}
    floors = {name: comparison.evaluations[name]["metrics"][monitor] for name in FLOORS}
    if len(students) == len(STUDENTS):
        text = _distillation(values["baseline"], values["distill"], tests[_pair("distill", "baseline")], monitor)
    else:
        text = f"Only one student was found, so distillation has nothing to be compared with. Test {monitor}: "
        text += "".join(f"{LABELS[name]} {values[name]:.4f}." for name in students)
    text += f"\n\nFloors: most popular {floors['popular']:.4f}, Markov chain {floors['markov']:.4f}. "
    for floor in FLOORS:
        below = [LABELS[name] for name in students if values[name] < floors[floor]]
        if below:
            text += f"Below {LABELS[floor]}: {'; '.join(below)}. A student below a floor is not worth distilling. "
    if max(map(len, comparison.seeds.values())) == 1:
        text += "This is one seed: give runs of others (`eval.seed_dirs`) before drawing conclusions."
    return text.rstrip()


def _distillation(before: float, after: float, test: PairedTest, monitor: str) -> str:
    claim = "**Cannot tell** whether distillation helps"
    if test.verdict != "cannot tell":
        claim = f"The distilled student is **{test.verdict}** than the baseline"
    relative = f", {(after / before - 1) * 100:+.1f} %" if before > 0 else ""
    return (
        f"{claim}: {test.difference:+.4f} test {monitor}, 95 % interval {test.low:+.4f} to {test.high:+.4f}. "
        f"Baseline {before:.4f}, distilled {after:.4f}{relative}."
    )


def _seeds_in_words(comparison: Comparison) -> str:
    counts = [f"{_short(name)}: {len(runs)}" for name, runs in comparison.seeds.items()]
    return f"each averaged over its seeds ({', '.join(counts)})"


def _test_table(tests: dict[str, PairedTest]) -> str:
    rows = [
        [
            name,
            f"{t.difference:+.4f}",
            f"{t.low:+.4f} to {t.high:+.4f}",
            f"{t.p_value:.3g}",
            str(t.num_users),
            t.verdict,
        ]
        for name, t in tests.items()
    ]
    return _rows(["comparison", "difference", "95 % interval", "p", "users", "verdict"], rows)


def _seed_table(comparison: Comparison) -> list[str]:
    """Mean and standard deviation over seeds, where there are several."""
    if max(map(len, comparison.seeds.values())) == 1:
        return []
    columns = {}
    for student, runs in comparison.seeds.items():
        frame = comparison.seed_metrics(student)
        values = {name: f"{frame[name].mean():.4f} ± {frame[name].std():.4f}" for name in frame if "hit" not in name}
        columns[f"{LABELS[student]}, {len(runs)} seeds"] = values
    return ["Mean and standard deviation over the seeds:", _table(pd.DataFrame(columns))]


def _metrics_section(comparison: Comparison) -> list[str]:
    """Models down, metrics across; hit ratio is left out, being the recall of one target."""
    lines = [
        "## Test metrics",
        f"Full ranking over all {comparison.dataset.num_items} items. Recall is the hit ratio, too.",
    ]
    for part, title in (("metrics", "History shown:"), ("metrics_masked", "Items of the history removed:")):
        frame = pd.DataFrame({LABELS[name]: e[part] for name, e in comparison.evaluations.items()})
        frame = frame.loc[[name for name in frame.index if not name.startswith("hit_ratio")]]
        lines += [title, _table(frame.T)]
    return [*lines, *_protocol_note(comparison), "![comparison](plots/comparison.png)"]


def _protocol_note(comparison: Comparison) -> list[str]:
    upstream = comparison.evaluations.get("dllm2rec_upstream")
    if upstream is None:
        return []
    return [f"{LABELS['dllm2rec_upstream']} follows a protocol of its own ({upstream['protocol']}): do not compare."]


def _other_plots(folder: Path) -> list[str]:
    """Plots that other commands have put into the run folder, such as a selection curve."""
    paths = [path for path in sorted(folder.glob("*.png")) if path.name not in _OWN_PLOTS]
    return [
        part
        for path in paths
        for part in (f"## {path.stem.replace('_', ' ').capitalize()}", f"![{path.stem}](plots/{path.name})")
    ]


def _teacher_section(comparison: Comparison) -> list[str]:
    teacher = comparison.evaluations.get("teacher")
    if teacher is None:
        return []
    answers = teacher["answers"]
    titles = {
        "hr@1_all": "HR@1 among the candidates (correct / all)",
        "hr@1": "HR@1 of the valid answers (correct / valid)",
        "valid_ratio": "ValidRatio",
        "hr@1_likelihood": "HR@1 of the likeliest candidate",
    }
    rows = [
        [title, f"{answers[key]:.4f}", f"{answers[key + '_low']:.4f} to {answers[key + '_high']:.4f}"]
        for key, title in titles.items()
    ]
    return [
        "## Teacher",
        _rows(["measure on the test rows", "value", "95 % interval"], rows),
        f"{answers['num_rows']} rows. Its full ranking in the tables above ranks the frozen recommender's candidates.",
    ]


def _cost_section(comparison: Comparison) -> list[str]:
    folders = list({run.root: run for run in comparison.sources.values()}.values())
    seconds = _merged([run.time_file for run in folders])
    costs = _merged([*(run.cost_file for run in folders), comparison.folder.cost_file])
    times = _rows(["step", "seconds"], [[name, f"{value:.1f}"] for name, value in seconds.items()])
    models = [
        [
            LABELS[name],
            f"{cost['parameters']:,}",
            f"{cost['trained_parameters']:,}",
            f"{cost['latency_ms']:.2f}",
            str(cost["latency_users"]),
            cost["latency_device"],
        ]
        for name, cost in costs.items()
    ]
    return [
        times if seconds else "No times were recorded.",
        _rows(["model", "parameters", "trained", "ms per user", "users timed", "on"], models),
        "ms per user: median over test users who are answered one at a time, after one more to warm up. A student "
        "scores all items and sorts out ten; the teacher ranks the frozen recommender's candidates, prompt included.",
    ]


def _merged(files: list[Path]) -> dict:
    content: dict = {}
    for file in files:
        if file.is_file():
            content |= read_json(file)
    return content


def _facts(comparison: Comparison) -> str:
    dataset, settings = comparison.dataset, comparison.settings
    facts = {
        "dataset": f"{dataset.name}, {dataset.num_items} items; rows: {len(dataset.train)} train, "
        f"{len(dataset.valid)} validation, {len(dataset.test)} test",
        "dataset fingerprint": dataset.fingerprint[:16],
        "student": f"{settings.student.name}, {settings.student.emb_size} dimensions",
        "commit": comparison.commit,
        "hardware": f"{device_name(comparison.device)}, {os.cpu_count()} cores, PyTorch {torch.__version__}",
        **{f"{LABELS[name]} from": _origin(comparison, name) for name in comparison.sources},
    }
    return "\n".join(f"- {key}: {value}" for key, value in facts.items())


def _origin(comparison: Comparison, model: str) -> str:
    root = comparison.sources[model].root
    others = ", ".join(str(evaluation["seed"]) for evaluation in comparison.seeds.get(model, [])[1:])
    text = f"{root.parent.name}/{root.name}, seed {comparison.evaluations[model]['seed']}"
    return text + (f"; further seeds: {others}" if others else "")


def _settings_table(comparison: Comparison) -> str:
    """Settings that are not the defaults; which stages had them, where not all did."""
    stages: dict[tuple[str, ...], list[str]] = {}
    for name, source in comparison.sources.items():
        for key, (default, value) in changed_settings(source, name).items():
            texts = ["null" if v is None else str(v) for v in (default, value)]
            stages.setdefault((key, *texts), []).append(name)
    if not stages:
        return "All settings are the defaults."
    everywhere = len(comparison.sources)
    rows = [[*key, "all" if len(names) == everywhere else ", ".join(names)] for key, names in stages.items()]
    return "Settings that are not the defaults:\n\n" + _rows(["setting", "default", "here", "stages"], rows)
