"""The references of a report: rankings without training, which every model has to beat."""

from dataclasses import dataclass

from src.exp.compare.comparison import LABELS
from src.exp.stage.stage import Stage
from src.student.evaluator import Evaluation, evaluate_scores
from src.student.lists import ListMetrics
from src.student.references import Blend, markov_chain, popularity, similarity_to_history


@dataclass(frozen=True, kw_only=True)
class References:
    """The references on the test rows.

    Attributes:
        evaluations: by model, as `comparison.REFERENCES` has them.
        titles: how the one that reads titles was set; empty where the titles say nothing and it is left out.
    """

    evaluations: dict[str, Evaluation]
    titles: str

    def ranks(self) -> dict[str, dict]:
        """Their ranks by their names for people."""
        return {LABELS[name]: evaluation.ranks for name, evaluation in self.evaluations.items()}


def evaluate_references(stage: Stage, lists: ListMetrics) -> References:
    """Evaluate the references; what titles weigh is chosen on validation rows, by the metric that decides.

    Args:
        lists: of the stage's data set, with the vectors of its titles.
    """
    dataset, rows, metrics = stage.dataset, stage.dataset.test, stage.settings.metrics
    scorers = {"popular": popularity(dataset, rows), "markov": markov_chain(dataset, rows)}
    vectors, titles = lists.vectors, ""
    if vectors is None:
        stage.logger.info("no reference with titles: no word stands in two titles of %s", dataset.name)
    else:
        with_titles = Blend.of(dataset, metrics, similarity_to_history(vectors))
        scorers["markov_titles"], titles = with_titles.of_rows(rows), with_titles.description(metrics)
        stage.logger.info("%s: %s", LABELS["markov_titles"], titles)
    found = {
        name: lists.add_to(evaluate_scores(scorer, rows, dataset.num_items, metrics.ks, top_k=lists.k))
        for name, scorer in scorers.items()
    }
    return References(evaluations=found, titles=titles)
