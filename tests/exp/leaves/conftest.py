"""The bench on which leaves are tried; what is trained on it is shared by all of them."""

import pytest
from harness import answer_in_short
from leaves_bench import Bench, Shared


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Shared:
    return Shared(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def bench(tmp_path, monkeypatch, request, shared) -> Bench:
    answer_in_short(monkeypatch)
    return Bench(tmp_path, monkeypatch, request, shared)
