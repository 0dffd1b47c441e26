"""The committed sample: its sizes, the structure that can be learnt from it, and its generator."""

import logging

import numpy as np
import pytest
from raw_examples import ROOT

from src.core.data_utils import SequenceDataset, load_dataset
from src.core.datasets import make_sample
from src.core.datasets.sample import SampleConfig

LOGGER = logging.getLogger("test_sample")
FOLDER = ROOT / "data" / "raw" / "sample"


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> SequenceDataset:
    return load_dataset(SampleConfig(raw_dir=str(FOLDER)), tmp_path_factory.mktemp("sample"), LOGGER)


def test_sample_sizes_and_titles(sample):
    assert (sample.num_users, sample.num_items) == (300, 200)
    assert len(sample.train) + 2 * 300 + 300 == 8377  # a row for each interaction but the first of each user
    assert len(set(sample.titles)) == 200 and "The Silver Harbor" in sample.titles


def test_sample_has_sequential_structure(sample):
    """What follows the last item says far more than what is popular."""
    transitions = np.zeros((sample.num_items, sample.num_items))
    np.add.at(transitions, (sample.train.items[sample.train.pos - 1], sample.train.targets), 1)
    popularity = np.bincount(sample.train.targets, minlength=sample.num_items) / 1e6
    last = sample.test.items[sample.test.pos - 1]

    def hit_ratio(scores: np.ndarray) -> float:
        target = scores[np.arange(len(scores)), sample.test.targets]
        return float(((scores > target[:, None]).sum(axis=1) < 10).mean())

    assert hit_ratio(np.tile(popularity, (300, 1))) < 0.15
    assert hit_ratio(transitions[last] + popularity) > 0.45


def test_sample_files_are_what_the_generator_writes(tmp_path):
    make_sample.write_sample(tmp_path)
    for name in ("interactions.csv", "items.csv"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
