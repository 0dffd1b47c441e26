"""What distillation does on MovieLens-100K when the teacher knows more than the student's rows; prints one JSON line.

    python -m benchmarks.distillation --raw_dir <folder of ML-100K's u.data and u.item> [--seeds 1 2 3]

The student gets a fifth of the training rows. The teacher is a `sasrec_plus` fitted on all training rows, never on
validation or test rows: its output layer gives the embeddings, its ten best items of each of the student's rows,
history removed, the rankings. A random teacher has the same shapes. Per variant: mean over the seeds of
test NDCG@10, history shown / masked, and for the gain over the baseline the 95 % bootstrap interval over users of the
seed-averaged difference in NDCG@10 (masked).
"""

import argparse
import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality import CPU, METRIC, quiet_context, student_settings, summary
from src.core.data_utils import SequenceDataset, load_dataset
from src.core.datasets.movielens import MovielensConfig
from src.core.metrics import MetricsConfig
from src.distill.config import DistillConfig
from src.distill.data_bridge import TeacherOutputs
from src.distill.trainer_distill import Distillation, train_distilled
from src.student.checkpoint import load_checkpoint
from src.student.evaluator import Evaluation, evaluate_model, history_mask
from src.student.trainer_baseline import train_baseline

LOGGER = logging.getLogger("distillation")
TOP_K = 10
VARIANTS: dict[str, dict] = {
    "distilled": {},
    "ranking only": {"ed_weight": 0.0},
    "embedding only": {"kd_weight": 0.0},
    "random teacher": {"random": True},
    "random teacher, weights / 10": {"random": True, "kd_weight": 0.07, "ed_weight": 0.03},
    "random teacher, weights / 100": {"random": True, "kd_weight": 0.007, "ed_weight": 0.003},
    "weights 0": {"kd_weight": 0.0, "ed_weight": 0.0},
}


def fit_teacher(dataset: SequenceDataset, rows: SequenceDataset, folder: Path) -> TeacherOutputs:
    """Train on all of `dataset`, rank for the training rows of `rows`."""
    train_baseline(
        student_settings("sasrec_plus"), dataset, metrics=MetricsConfig(), folder=folder, context=quiet_context(7)
    )
    model = load_checkpoint(folder)[0].eval()
    best, distances = [], []
    with torch.no_grad():
        for index in np.array_split(np.arange(len(rows.train)), 40):
            history, length, _ = rows.train.windows(model.config.max_seq_len, dataset.pad_id, index)
            scores = model(torch.from_numpy(history), torch.from_numpy(length))
            scores[history_mask(rows.train.select(index), dataset.num_items)] = float("-inf")
            top = scores.log_softmax(1).topk(TOP_K)
            best.append(top.indices)
            distances.append(
                (top.values[:, :1] - top.values) / (top.values[:, :1] - top.values[:, -1:]).clamp(min=1e-9)
            )
    return TeacherOutputs(
        embeddings=model.output.weight.detach().clone(), ranking=torch.cat(best), confidence=torch.cat(distances)
    )


def random_teacher(like: TeacherOutputs) -> TeacherOutputs:
    random = torch.Generator().manual_seed(0)
    num_items, num_rows = len(like.embeddings), len(like.ranking)
    ranking = torch.rand(num_rows, num_items, generator=random).topk(TOP_K).indices
    embeddings = torch.randn(like.embeddings.shape, generator=random) * like.embeddings.std()
    return TeacherOutputs(embeddings=embeddings, ranking=ranking, confidence=like.confidence)


def _test(folder: Path, dataset: SequenceDataset) -> Evaluation:
    return evaluate_model(load_checkpoint(folder)[0], dataset.test, dataset, MetricsConfig().ks, CPU)


def ndcg_by_user(evaluation: Evaluation) -> np.ndarray:
    """NDCG@10 masked of each user, ties as if the target came last among them (they don't occur): float64 [N]."""
    rank = evaluation.ranks["better_masked"] + evaluation.ranks["equal_masked"] - 1
    return np.where(rank < 10, 1 / np.log2(rank + 2), 0.0)


def gain(variant: list[Evaluation], baseline: list[Evaluation]) -> list[float]:
    """Mean difference over users and seeds, and its 95 % bootstrap interval over users."""
    difference = np.mean([ndcg_by_user(v) - ndcg_by_user(b) for v, b in zip(variant, baseline, strict=True)], axis=0)
    random = np.random.default_rng(0)
    means = [difference[random.integers(len(difference), size=len(difference))].mean() for _ in range(5000)]
    return [round(float(value), 4) for value in (difference.mean(), *np.quantile(means, (0.025, 0.975)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw_dir", required=True)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    args = parser.parse_args()
    config = MovielensConfig(raw_dir=args.raw_dir)
    student, metrics = student_settings("sasrec"), MetricsConfig()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        dataset = load_dataset(config, root / "data", LOGGER)
        fifth = replace(config, max_train_rows=len(dataset.train) // 5)
        rows = load_dataset(fifth, root / "data", LOGGER)
        teacher = fit_teacher(dataset, rows, root / "teacher")
        result = {"teacher": summary([_test(root / "teacher", dataset)])}
        baseline = []
        for seed in args.seeds:
            train_baseline(student, rows, metrics=metrics, folder=root / "student", context=quiet_context(seed))
            baseline.append(_test(root / "student", rows))
        result["baseline"] = summary(baseline)
        for name, changes in VARIANTS.items():
            changes = dict(changes)
            outputs = random_teacher(teacher) if changes.pop("random", False) else teacher
            distillation = Distillation(settings=DistillConfig(name="dllm2rec", **changes), outputs=outputs)
            evaluations = []
            for seed in args.seeds:
                train_distilled(
                    student,
                    rows,
                    distillation=distillation,
                    metrics=metrics,
                    folder=root / "student",
                    context=quiet_context(seed),
                )
                evaluations.append(_test(root / "student", rows))
            result[name] = {**summary(evaluations), "gain": gain(evaluations, baseline)}
    print(json.dumps({"metric": METRIC, "seeds": args.seeds, "train_rows": len(rows.train), **result}))


if __name__ == "__main__":
    main()
