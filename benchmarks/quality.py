"""Test NDCG@10 of every student on MovieLens-100K over several seeds, with two reference models; prints one JSON line.

    python -m benchmarks.quality --raw_dir <folder of ML-100K's u.data and u.item> [--students ...] [--seeds ...]

Leave-one-out by (time, line of the file), full ranking over 1,682 items, history shown / masked. Each student has the
settings of its YAML in `conf/student`; the best epoch is chosen on validation.
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from src.core.data_utils import SequenceDataset, load_dataset
from src.core.datasets.movielens import MovielensConfig
from src.core.metrics import MetricsConfig
from src.core.settings import parse_choice
from src.core.tracking.base import Untracked
from src.exp.settings import Settings, parse_settings
from src.student.checkpoint import load_checkpoint
from src.student.config import SCHEMAS, StudentConfig
from src.student.context import RunContext
from src.student.evaluator import Evaluation, evaluate_model, evaluate_scores
from src.student.references import markov_chain, popularity
from src.student.trainer_baseline import train_baseline

CONF = Path(__file__).resolve().parents[1] / "conf"
CPU = torch.device("cpu")
METRIC = "ndcg@10"


def settings_of(overrides: list[str]) -> Settings:
    """What a command with these overrides would have."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse_settings(compose("config", overrides=overrides))


def student_settings(name: str) -> StudentConfig:
    return parse_choice(SCHEMAS, OmegaConf.load(CONF / "student" / f"{name}.yaml"), "student")


def quiet_context(seed: int) -> RunContext:
    """On the CPU, untracked."""
    return RunContext(seed=seed, device=CPU, logger=logging.getLogger("benchmarks"), writer=Untracked())


def train_and_test(name: str, dataset: SequenceDataset, seed: int) -> Evaluation:
    metrics = MetricsConfig()
    with tempfile.TemporaryDirectory() as folder:
        context = quiet_context(seed)
        train_baseline(student_settings(name), dataset, metrics=metrics, folder=Path(folder), context=context)
        return evaluate_model(load_checkpoint(Path(folder))[0], dataset.test, dataset, metrics.ks, CPU)


def summary(evaluations: list[Evaluation]) -> dict[str, list[float]]:
    """Mean and, of several, standard deviation, history shown and masked."""
    result = {}
    for part in ("shown", "masked"):
        values = [(e.metrics if part == "shown" else e.metrics_masked)[METRIC] for e in evaluations]
        spread = [statistics.stdev(values)] if len(values) > 1 else []
        result[part] = [round(value, 4) for value in (statistics.mean(values), *spread)]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw_dir", required=True)
    parser.add_argument("--students", nargs="*", default=["sasrec", "gru4rec", "caser", "sasrec_plus"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    args = parser.parse_args()
    config = MovielensConfig(raw_dir=args.raw_dir)
    with tempfile.TemporaryDirectory() as folder:
        dataset = load_dataset(config, Path(folder), logging.getLogger("quality"))
    result = {}
    for name, reference in (("popular", popularity), ("markov", markov_chain)):
        scorer = reference(dataset, dataset.test)
        result[name] = summary([evaluate_scores(scorer, dataset.test, dataset.num_items, [10])])
    for name in args.students:
        result[name] = summary([train_and_test(name, dataset, seed) for seed in args.seeds])
        print(name, result[name], file=sys.stderr)  # an hour's work must not be lost with the next student's
    print(json.dumps({"metric": METRIC, "seeds": args.seeds, **result}))


if __name__ == "__main__":
    main()
