"""What item embeddings alone say about the next item, for any teacher's export; prints one JSON line.

    python -m benchmarks.embeddings dataset=csv dataset.raw_dir=<folder> --exports <folder> [<folder> ...]

Test NDCG@10 over all items, history removed, by the cosine of an item with a user's last items, the latest counting
most: embeddings as they are, centred, and whitened as a student gets them (`src.distill.fusion.whiten`); beside them
TF-IDF of the titles' words, and chance. Dataset overrides are those of the stages.
"""

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from benchmarks.quality import settings_of
from src.core.data_utils import SequenceDataset, load_dataset
from src.core.errors import UserError
from src.core.paths import data_dir
from src.core.teacher_files import read_manifest
from src.distill.config import DistillConfig
from src.distill.data_bridge import load_teacher_outputs
from src.distill.fusion import whiten
from src.student.evaluator import evaluate_scores

CONF = Path(__file__).resolve().parents[1] / "conf"
METRIC, LAST, DECAY = "ndcg@10", 10, 0.7
LOGGER = logging.getLogger("embeddings")


def tf_idf(titles: list[str]) -> sparse.csr_matrix:
    """[num_items, words] of unit rows, as scikit-learn's TfidfVectorizer has it by default."""
    words = [re.findall(r"\w\w+", title.lower()) for title in titles]
    numbers = {word: number for number, word in enumerate(sorted({word for row in words for word in row}))}
    row = np.repeat(np.arange(len(words)), [len(found) for found in words])
    column = np.array([numbers[word] for found in words for word in found], dtype=int)
    counts = sparse.csr_matrix((np.ones(len(row)), (row, column)), shape=(len(words), max(1, len(numbers))))
    frequency = np.bincount(counts.indices, minlength=counts.shape[1])
    weighted = counts @ sparse.diags(np.log((1 + len(words)) / (1 + frequency)) + 1)
    length = np.sqrt(weighted.multiply(weighted).sum(1)).A1
    return sparse.diags(1 / np.maximum(length, 1e-12)) @ weighted


def ndcg(dataset: SequenceDataset, users: np.ndarray, similarity: Callable[[np.ndarray], np.ndarray]) -> float:
    """NDCG@10 of some test users, history removed.

    Args:
        similarity: from weights of items float32 [B, num_items] to scores of the same shape.
    """
    rows = dataset.test.select(users)

    def score(index: np.ndarray) -> Tensor:
        history, length, _ = rows.windows(LAST, dataset.pad_id, index)
        age = length[:, None] - 1 - np.arange(history.shape[1])
        weights = np.zeros((len(index), dataset.num_items + 1), dtype=np.float32)
        np.add.at(
            weights, (np.arange(len(index))[:, None], history), np.where(age >= 0, DECAY ** np.maximum(age, 0), 0)
        )
        return torch.from_numpy(similarity(weights[:, :-1])).float()

    return round(evaluate_scores(score, rows, dataset.num_items, [10]).metrics_masked[METRIC], 4)


def by_cosine(embeddings: Tensor) -> Callable[[np.ndarray], np.ndarray]:
    unit = F.normalize(embeddings.float()).numpy()
    return lambda weights: (weights @ unit) @ unit.T


def by_words(titles: list[str]) -> Callable[[np.ndarray], np.ndarray]:
    words = tf_idf(titles)
    return lambda weights: np.asarray((sparse.csr_matrix(weights) @ words @ words.T).todense())


def table(embeddings: Tensor, dims: list[int], measure: Callable[[Tensor], float]) -> dict[str, float]:
    """The metric of the embeddings raw, centred, and whitened to each number of dimensions that they have."""
    result = {"raw": measure(embeddings), "centred": measure(embeddings - embeddings.mean(0))}
    for number in dims:
        with suppress(UserError):  # they vary in fewer directions
            result[f"whitened_{number}"] = measure(whiten(embeddings, number))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="dataset=..., paths.data_dir=...")
    parser.add_argument("--exports", nargs="+", required=True, help="folders that run_teacher wrote")
    parser.add_argument("--dims", nargs="*", type=int, default=[64, 128, 256])
    parser.add_argument("--users", type=int, default=6000, help="test users, the first ones")
    args = parser.parse_args()
    try:
        result = measured(args.overrides, [Path(folder) for folder in args.exports], args.dims, args.users)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(result))


def chosen_dataset(overrides: list[str]) -> SequenceDataset:
    cfg = settings_of(overrides)
    return load_dataset(cfg.dataset, data_dir(cfg), LOGGER)


def measured(overrides: list[str], folders: list[Path], dims: list[int], users: int) -> dict[str, object]:
    dataset = chosen_dataset(overrides)
    shown = np.arange(min(users, len(dataset.test)))
    exports: dict[str, object] = {}
    for folder in folders:
        needed = DistillConfig(name="dllm2rec", top_k=1, kd_weight=0.0)
        embeddings = load_teacher_outputs(folder, dataset, needed, logger=LOGGER).embeddings
        assert embeddings is not None
        manifest = read_manifest(folder)
        about = [manifest.embedding_pooling, manifest.embedding_layer, manifest.embedding_text] if manifest else []
        values = table(embeddings, dims, lambda items: ndcg(dataset, shown, by_cosine(items)))
        exports[str(folder)] = {"embedding": about, "width": embeddings.shape[1], **values}
    chance = torch.randn(dataset.num_items, 64, generator=torch.Generator().manual_seed(0))
    return {
        "metric": f"{METRIC}, history removed",
        "users": len(shown),
        "items": dataset.num_items,
        "tf_idf": ndcg(dataset, shown, by_words(dataset.titles)),
        "random": ndcg(dataset, shown, by_cosine(chance)),
        "exports": exports,
    }


if __name__ == "__main__":
    main()
