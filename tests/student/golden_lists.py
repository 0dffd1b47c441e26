"""Writes golden_lists.json: what RecTools 0.19.0 and RecBole 1.2.1 say of some drawn lists.

    python tests/student/golden_lists.py    # in an environment that has both
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import torch

NUM_ITEMS, NUM_USERS, K = 30, 12, 4


def main() -> None:
    # Here, because the suite imports this file to look for examples in it.
    from recbole.evaluator.collector import DataStruct
    from recbole.evaluator.metrics import AveragePopularity, GiniIndex, ItemCoverage
    from rectools.metrics.distances import PairwiseDistanceCalculator
    from rectools.metrics.diversity import IntraListDiversity
    from rectools.metrics.novelty import MeanInvUserFreq

    draw = np.random.default_rng(7)
    drawn = zip(draw.integers(0, NUM_USERS, 90), draw.zipf(1.6, 90) % (NUM_ITEMS - 3), strict=True)
    interactions = pd.DataFrame(sorted({(int(u), int(i)) for u, i in drawn}), columns=["user_id", "item_id"])
    lists = np.stack([draw.choice(NUM_ITEMS, K, replace=False) for _ in range(NUM_USERS)])
    vectors = draw.normal(size=(NUM_ITEMS, 5))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).round(12)

    class Cosine(PairwiseDistanceCalculator):
        def _get_distances_for_item_pairs(self, one, other):
            return np.array([1 - vectors[i] @ vectors[j] for i, j in zip(one, other, strict=True)])

    ranked = [(user, int(item), rank) for user in range(NUM_USERS) for rank, item in enumerate(lists[user], 1)]
    reco = pd.DataFrame(ranked, columns=["user_id", "item_id", "rank"])
    data = DataStruct()
    data.set("rec.items", torch.from_numpy(lists))
    data.set("data.num_items", NUM_ITEMS)
    data.set("data.count_items", Counter(interactions["item_id"].tolist()))
    metrics = {
        "novelty": MeanInvUserFreq(k=K).calc(reco, interactions),
        "intra_list_diversity": IntraListDiversity(k=K, distance_calculator=Cosine()).calc(reco),
    }
    for name, kind in (
        ("item_coverage", ItemCoverage),
        ("average_popularity", AveragePopularity),
        ("gini_index", GiniIndex),
    ):
        (metrics[name],) = kind({"topk": [K], "metric_decimal_place": 10}).calculate_metric(data).values()
    content = {
        "num_items": NUM_ITEMS,
        "interactions": interactions.to_numpy().tolist(),
        "lists": lists.tolist(),
        "vectors": vectors.tolist(),
        "metrics": {name: float(value) for name, value in metrics.items()},
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
