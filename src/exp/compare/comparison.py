"""What a report tells about a run: the models that are compared, and their names for people."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.foreign.typed import read_typed
from src.core.paths import RunFolder
from src.exp.compare.significance import PairedTest, Ranks, paired_tests
from src.exp.compare.studies import StudyResult
from src.exp.settings import Settings

if TYPE_CHECKING:
    import pandas as pd
    import torch

STUDENTS = ("baseline", "distill")
REFERENCES = ("popular", "markov", "markov_titles")  # rankings without training

LABELS = {
    "popular": "most popular",
    "markov": "Markov chain",
    "markov_titles": "chain + TF-IDF",
    "teacher": "teacher",
    "baseline": "student, baseline",
    "distill": "student, distilled",
    "dllm2rec_upstream": "DLLM2Rec's program",
}
CONTROLS = {  # by `distill.teacher`; `own` has `distill.embeddings_file`
    "tfidf": "TF-IDF",
    "shuffled": "shuffled titles",
    "own": "own embeddings",
    "recommender": "frozen recommender",
    "random": "random",
}
DIFFERENCE = "distilled - baseline"  # the name of the test that the report is about

_METRICS = {
    "recall": "Recall",
    "ndcg": "NDCG",
    "hit_ratio": "HitRatio",
    "mrr": "MRR",
    "valid": "validation",
    "item_coverage": "item coverage",
    "gini_index": "Gini index",
    "average_popularity": "average popularity",
    "intra_list_diversity": "intra-list diversity",
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything the report tells.

    Attributes:
        folder: where it is written.
        sources: run folder that each stage's model came from.
        evaluations: contents of `eval_*.json` by model, in the order of the table.
        ranks: per model the ranks of its runs, this one's first, then those of other seeds.
        seeds: per student the contents of `eval_*.json` of the runs in `ranks`.
        unlike: what differs between baseline and distilled student besides the distillation, in words; where it is not
            empty the two are not compared.
        notes: sentences that a reader of the verdict has to know.
        controls: the distilled student against those of control teachers, by their key in `CONTROLS`, as far as they
            were trained; None where its own teacher is one.
        titles: how the reference that reads titles was set; empty where there is none.
        studies: of this data, by the metric that decides here.
    """

    settings: Settings
    commit: str
    dataset: SequenceDataset
    device: "torch.device"
    folder: RunFolder
    sources: dict[str, RunFolder]
    evaluations: dict[str, dict]
    ranks: dict[str, list[Ranks]]
    seeds: dict[str, list[dict]]
    unlike: str = ""
    notes: list[str] = field(default_factory=list)
    controls: dict[str, PairedTest] | None = None
    titles: str = ""
    studies: list[StudyResult] = field(default_factory=list)

    @property
    def monitor(self) -> str:
        return self.settings.metrics.monitor

    @property
    def metric(self) -> str:
        """The metric that decides, for people."""
        return metric_label(self.monitor, self.settings.metrics.masked)

    @property
    def references(self) -> list[str]:
        return [name for name in REFERENCES if name in self.evaluations]

    def seed_metrics(self, student: str) -> "pd.DataFrame":
        """Test metrics of a student in the ranking that decides, one line per seed."""
        import pandas as pd

        return pd.DataFrame([evaluation[self.settings.metrics.part] for evaluation in self.seeds[student]])

    def value(self, model: str) -> float:
        """The test metric that decides; a student's is the mean over its seeds."""
        if model in self.seeds:
            return float(self.seed_metrics(model)[self.monitor].mean())
        return self.evaluations[model][self.settings.metrics.part][self.monitor]


class Evaluation(TypedDict):
    """What is read of an `eval_*.json`; it holds more."""

    dataset_fingerprint: str
    seed: int
    metrics: dict[str, float]
    metrics_masked: dict[str, float]
    beyond_accuracy: NotRequired[dict[str, dict[str, float]]]
    answers: NotRequired[dict[str, float]]
    protocol: NotRequired[str]


def read_evaluation(path: Path, monitor: str | None = None, part: str = "metrics") -> dict[str, Any]:
    """Read an `eval_*.json`.

    Args:
        monitor: a metric that `part` of it must hold.

    Raises:
        UserError: it is missing or damaged, or lacks the metric.
    """
    evaluation: dict[str, Any] = {**read_typed(path, Evaluation, "run that stage again")}
    if monitor is not None and monitor not in evaluation[part]:
        raise UserError(f"{path}: has no {monitor} among its {part}; evaluate that run with these metrics.ks")
    return evaluation


def short_label(model: str) -> str:
    """`baseline` for `student, baseline`."""
    return LABELS[model].removeprefix("student, ")


def metric_label(metric: str, masked: bool | None = None) -> str:
    """A metric's name for people, with what is ranked where `masked` says it.

    >>> metric_label("ndcg@10"), metric_label("hit_ratio@5"), metric_label("mrr")
    ('NDCG@10', 'HitRatio@5', 'MRR')
    >>> metric_label("ndcg@10", masked=True)
    'NDCG@10, history removed'
    """
    name, at, k = metric.partition("@")
    protocol = "" if masked is None else f", {history_label(masked)}"
    return f"{_METRICS.get(name, name)}{at}{k}{protocol}"


def history_label(masked: bool) -> str:
    """Which ranking: with the history's items, or without them."""
    return "history removed" if masked else "history shown"


def summary_table(comparison: Comparison) -> "pd.DataFrame":
    """One line per model; columns `<metric>@<k>` with the history shown, `... masked` with it removed."""
    import pandas as pd

    rows = {}
    for name, evaluation in comparison.evaluations.items():
        masked = {f"{key} masked": value for key, value in evaluation["metrics_masked"].items()}
        rows[LABELS[name]] = {**evaluation["metrics"], **masked}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def comparison_tests(comparison: Comparison) -> dict[str, PairedTest]:
    """The distilled student against the baseline, where they are alike, then each student against the references.

    All p values are corrected together.
    """
    students = [name for name in STUDENTS if name in comparison.ranks]
    pairs = [("distill", "baseline")] if len(students) == len(STUDENTS) and not comparison.unlike else []
    pairs += [(student, reference) for student in reversed(students) for reference in comparison.references]
    ranks, metrics = comparison.ranks, comparison.settings.metrics
    found = {_pair(*pair): (ranks[pair[0]], ranks[pair[1]]) for pair in pairs}
    return paired_tests(found, metrics.monitor, metrics.masked)


def _pair(one: str, other: str) -> str:
    return f"{short_label(one)} - {short_label(other)}"
