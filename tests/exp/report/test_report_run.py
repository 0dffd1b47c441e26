"""The report of a finished pipeline, and what it is made of: groups of rows, costs, where a run comes from."""

import re

import numpy as np
import pytest
import torch
from harness import read
from hydra import initialize_config_dir
from torch import nn

from src.core.errors import UserError
from src.core.git_info import PROJECT_ROOT
from src.core.paths import RunFolder
from src.exp.compare.breakdown import breakdown, group_differences, spreads, thirds
from src.exp.compare.comparison import read_evaluation
from src.exp.compare.provenance import changed_settings, repeat_command
from src.exp.report.plots import plot_learning_curves
from src.student.cost import answer_latency, parameter_counts, record_cost


def test_thirds_cover_every_row_once_and_are_named_by_their_range() -> None:
    values = np.array([9, 1, 2, 3, 4, 5, 6, 7, 8])
    masks = thirds(values)
    assert list(masks) == ["1 to 3", "4 to 6", "7 to 9"]
    assert (sum(masks.values()) == 1).all()
    assert list(thirds(np.array([4, 4, 4]))) == ["4"]


def test_a_breakdown_averages_rows_of_a_group_and_runs() -> None:
    def ranks(better: list[int]) -> dict[str, np.ndarray]:
        return {"better": np.array(better), "equal": np.ones(4, int)}

    masks = {"few": np.array([True, True, False, False]), "many": np.array([False, False, True, True])}
    table = breakdown({"distill": [ranks([0, 9, 0, 0]), ranks([9, 9, 0, 9])]}, masks, "recall@1")
    assert table["rows"].tolist() == [2, 2]
    assert table["distill"].tolist() == [(0.5 + 0) / 2, (1 + 0.5) / 2]


def test_the_spread_of_a_group_is_that_of_its_users() -> None:
    """Of four users, two a group: one is hit in the first (mean 1/2, deviation sqrt(1/2)), both in the second."""
    runs = [{"user": np.arange(4), "target": np.arange(4), "better": np.array([0, 9, 0, 0]), "equal": np.ones(4, int)}]
    masks = {"few": np.array([True, True, False, False]), "many": np.array([False, False, True, True])}
    table = spreads({"distill": runs}, masks, "recall@1")
    assert table["distill"].to_dict() == {"few": pytest.approx(1.96 * 0.5), "many": 0}


def test_a_difference_within_a_group_is_that_of_its_rows_alone() -> None:
    def ranks(better: np.ndarray) -> dict[str, np.ndarray]:
        users = np.arange(40)
        return {"user": users, "target": users, "better": better, "equal": np.ones(40, int)}

    few = np.arange(40) < 20
    hit, missed = np.zeros(40, int), np.full(40, 9)
    tests = group_differences(
        ([ranks(np.where(few, hit, missed))], [ranks(missed)]), {"few": few, "many": ~few}, "recall@1"
    )
    assert {name: (test.difference, test.num_users) for name, test in tests.items()} == {
        "few": (1, 20),
        "many": (0, 20),
    }
    assert {name: test.verdict for name, test in tests.items()} == {"few": "better", "many": "cannot tell"}


def test_parameters_are_counted_and_the_first_answer_is_not_timed(tmp_path) -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    assert parameter_counts(model) == {"parameters": 3 * 2 + 2, "trained_parameters": 3 * 2}
    asked: list[int] = []
    cost = answer_latency(asked.append, 4, torch.device("cpu"))
    assert asked == [0, 1, 2, 3] and cost["latency_users"] == 3 and cost["latency_ms"] >= 0
    record_cost(tmp_path / "cost.json", "a", {"parameters": 1})
    record_cost(tmp_path / "cost.json", "b", {"parameters": 2})
    assert read(tmp_path / "cost.json") == {"a": {"parameters": 1}, "b": {"parameters": 2}}


def _source(folder, stage: str, *overrides: str) -> RunFolder:
    (folder / ".hydra" / stage).mkdir(parents=True)
    lines = "".join(f"- {override}\n" for override in overrides)
    (folder / ".hydra" / stage / "overrides.yaml").write_text(lines)
    return RunFolder(folder)


def test_a_pipeline_is_repeated_by_one_command(tmp_path) -> None:
    folders = {
        s: _source(tmp_path, s, "+experiment=quickstart", "general.seed=3") for s in ("teacher", "baseline", "distill")
    }
    assert repeat_command(folders) == "bash cmd/run_all_pipeline.sh +experiment=quickstart general.seed=3"


def test_stages_with_settings_of_their_own_are_repeated_one_by_one(tmp_path) -> None:
    folders = {
        "baseline": _source(tmp_path / "a", "baseline", "dataset=sample"),
        "distill": _source(tmp_path / "b", "distill", "dataset=sample", "distill.alpha=${student.lr}"),
    }
    assert repeat_command(folders).split(" && \\\n") == [
        "bash cmd/run_student_baseline.sh hydra.run.dir=result/repeated dataset=sample",
        "bash cmd/run_distill_dllm2rec.sh hydra.run.dir=result/repeated dataset=sample 'distill.alpha=${student.lr}'",
        "bash cmd/run_eval_all.sh hydra.run.dir=result/repeated dataset=sample",
    ]


@pytest.mark.parametrize("content", ["- [", "a: b: c", "5", "\0", "- &a [x]\n- *a"])
def test_overrides_that_cannot_be_read(tmp_path, content) -> None:
    source = _source(tmp_path, "baseline")
    (tmp_path / ".hydra" / "baseline" / "overrides.yaml").write_text(content)
    with pytest.raises(UserError, match=r"overrides\.yaml: cannot be read as YAML: "):
        repeat_command({"baseline": source})


def test_a_configuration_of_another_version_is_compared_as_far_as_it_goes(tmp_path) -> None:
    """It chose a file that is no more, and a group that never was; what is no configuration is refused."""
    source, folder = _source(tmp_path, "baseline"), tmp_path / ".hydra" / "baseline"
    (folder / "config.yaml").write_text("student: {lr: 0.5}\ngeneral: {seed: 42}\nmodel: {x: '${oc.env:HOME}'}\n")
    (folder / "hydra.yaml").write_text("hydra: {runtime: {choices: {student: ../../x, model: y, teacher: ilora}}}\n")
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        changed = changed_settings(source, "baseline")
        assert changed["student"] == ("sasrec", "../../x") and changed["student.lr"] == (0.001, 0.5)
        assert changed["model.x"] == (None, "${oc.env:HOME}") and "general.seed" not in changed
        for content in ("", "hydra: 5", "hydra: {runtime: {choices: [a]}}", "hydra: {runtime: ["):
            (folder / "hydra.yaml").write_text(content)
            with pytest.raises(UserError, match=r"hydra\.yaml: cannot be read as YAML: "):
                changed_settings(source, "baseline")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "it is a list, must be an object"),
        ('{"seed": "1"}', "dataset_fingerprint is missing"),
        (
            '{"seed": 1, "dataset_fingerprint": "f", "metrics": {"mrr": "x"}, "metrics_masked": {}}',
            r"metrics\.mrr is 'x'",
        ),
        (
            '{"seed": 1, "dataset_fingerprint": "f", "metrics": {}, "metrics_masked": {}}',
            "has no mrr among its metrics",
        ),
    ],
)
def test_evaluations_that_are_none(tmp_path, content, message) -> None:
    (tmp_path / "eval.json").write_text(content)
    with pytest.raises(UserError, match=rf"eval\.json: {message}"):
        read_evaluation(tmp_path / "eval.json", "mrr")


@pytest.mark.parametrize(
    "content",
    ["", "x\n1\n", "epoch,loss_ce\n", "epoch,loss_ce\n1,high\n", "epoch,loss_ce\n1,nan\n", "epoch\n1\n1\n", '"'],
)
def test_a_history_that_is_none_is_refused(tmp_path, content) -> None:
    (tmp_path / "history.csv").write_text(content)
    with pytest.raises(UserError, match=r"history\.csv: not a training history.* delete it, the report does without"):
        plot_learning_curves({"baseline": tmp_path / "history.csv"}, "ndcg@10", "NDCG@10")


@pytest.fixture
def report(pipeline) -> str:
    return pipeline.folder.joinpath("report.md").read_text(encoding="utf-8")


def cells(report: str, first: str) -> list[list[str]]:
    """The lines of the Markdown table whose first column is `first`."""
    lines = iter(report.splitlines())
    next(line for line in lines if line.startswith("|") and line.split("|")[1].strip() == first)
    next(lines)
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.split("|")[1:-1]])
    return found


def test_the_report_says_what_differs_from_the_defaults(report) -> None:
    rows = {key: values for key, *values in cells(report, "setting")}
    assert rows["`teacher`"] == ["`ilora`", "`ilora_tiny`", "all"]
    assert rows["`student.emb_size`"] == ["`64`", "`8`", "all"]
    assert not [key for key in rows if key.startswith(("`paths.", "`student.dropout"))]


def test_the_report_tests_the_differences_and_says_what_it_can(report) -> None:
    rows = cells(report, "comparison")
    assert [row[0] for row in rows] == [
        "distilled - baseline",
        "distilled - most popular",
        "distilled - Markov chain",
        "distilled - chain + TF-IDF",
        "baseline - most popular",
        "baseline - Markov chain",
        "baseline - chain + TF-IDF",
    ]
    assert all(row[-1] in ("better", "worse", "cannot tell") for row in rows)
    assert report.splitlines()[2].startswith(("**Cannot tell whether", "**The distilled student is "))


def test_the_report_tells_what_is_recommended_beside_how_well(pipeline, report) -> None:
    header = next(line for line in report.splitlines() if line.startswith("| model") and "coverage" in line)
    names = [cell.strip() for cell in header.split("|")[2:-1]]
    assert names == [
        f"{name}@10"
        for name in ("item coverage", "Gini index", "average popularity", "novelty", "intra-list diversity")
    ]
    section = report[report.index("## Beyond accuracy") :]
    rows = {name: values for name, *values in cells(section, "model")}
    assert list(rows) == [
        "most popular",
        "Markov chain",
        "chain + TF-IDF",
        "teacher",
        "student, baseline",
        "student, distilled",
    ]
    found = read(pipeline.folder / "metrics" / "eval_distill.json")["beyond_accuracy"]["metrics"]
    assert rows["student, distilled"] == [f"{value:.4f}" for value in found.values()]
    assert rows["most popular"][0] == f"{10 / 200:.4f}"  # everybody's list is the same
    assert "popular" in section.splitlines()[2]


def test_the_report_tells_times_parameters_and_latency(pipeline, report) -> None:
    costs = read(pipeline.folder / "metrics" / "cost.json")
    assert set(costs) == {"teacher", "baseline", "distill"}
    for cost in costs.values():
        assert f"{cost['parameters']:,}" in report and f"{cost['latency_ms']:.2f}" in report
    assert costs["teacher"]["trained_parameters"] < costs["teacher"]["parameters"]
    assert costs["baseline"]["parameters"] == costs["distill"]["parameters"]
    seconds = read(pipeline.folder / "metrics" / "time.json").values()
    assert [row[1] for row in cells(report, "step")] == [f"{value:.1f}" for value in seconds]


def test_the_html_report_says_the_same_in_one_file(pipeline, report) -> None:
    page = (pipeline.folder / "report.html").read_text(encoding="utf-8")
    titles = re.findall(r'<h2 id="(.*?)">(.*?)</h2>', page)
    assert [title for _, title in titles] == re.findall(r"^## (.*)$", report, re.M)
    assert re.findall(r'<li><a href="#(.*?)">', page) == [name for name, _ in titles]
    assert not re.search(r"<script .|<link|<img|https?://|@import|src=", page)
    for value in (row[1] for row in cells(report, "comparison")):
        assert f'<td class="number">{value}</td>' in page


def test_no_internal_name_is_shown(pipeline, report) -> None:
    page = (pipeline.folder / "report.html").read_text(encoding="utf-8")
    for text in (report, re.sub(r"<svg.*?</svg>|<style.*?</style>", "", page, flags=re.S)):
        assert not re.search(r"hr@1_|dllm2rec_upstream|_time|metrics_masked|floor", text)
