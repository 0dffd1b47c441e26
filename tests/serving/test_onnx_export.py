"""A student as ONNX gives the scores that PyTorch gives, for any number of histories of any length."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.onnx._internal.registration import registry

from src.core.errors import UserError
from src.serving import onnx_export
from src.serving.onnx_export import export_onnx
from src.student.config import ModelConfig
from src.student.models import build_model

WINDOW, PAD = 5, 12
ATTENTION = "aten::scaled_dot_product_attention"
MODELS = {
    "sasrec": {},
    "sasrec, 2 blocks and heads": {"num_blocks": 2, "num_heads": 2},
    "sasrec, pre": {"num_blocks": 2, "norm": "pre", "tied_output": True},
    "sasrec, post": {"num_blocks": 3, "norm": "post", "emb_size": 4},
    "sasrec without blocks": {"num_blocks": 0, "scores": "cosine", "temperature": 0.5, "tied_output": True},
    "sasrec_plus": {"name": "sasrec_plus", "num_blocks": 2, "num_heads": 2, "norm": "pre"},
    "gru4rec": {"name": "gru4rec", "num_blocks": 2},
    "caser": {"name": "caser", "filter_sizes": [2, 3]},
}


def student(**changes):
    options = {
        "name": "sasrec",
        "num_items": PAD,
        "emb_size": 8,
        "hidden_size": 8,
        "max_seq_len": WINDOW,
        "dropout": 0.1,
    }
    torch.manual_seed(0)
    return build_model(ModelConfig(**(options | changes))).eval()


def scores(path, histories: list[list[int]]) -> np.ndarray:
    longest = max(map(len, histories))
    padded = np.array([items + [PAD] * (longest - len(items)) for items in histories])
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return session.run(["scores"], {"history": padded})[0]


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_every_student_scores_as_in_pytorch(tmp_path, changes):
    model, path = student(**changes), tmp_path / "model.onnx"
    assert export_onnx(model, path, {}) <= 1e-5

    for histories in ([[3]], [[1, 2, 3, 4, 5], [7, 8]], [[0, 1, 2, 3, 4, 5, 6], [9], [11, 0, 11]]):
        for items, found in zip(histories, scores(path, histories), strict=True):
            last = items[-WINDOW:]
            window = torch.tensor([last + [PAD] * (WINDOW - len(last))])
            wanted = model(window, torch.tensor([len(last)]))[0].detach().numpy()
            assert found == pytest.approx(wanted, abs=1e-5)


def test_the_file_says_what_it_is_and_leaves_the_exporter_as_it_was(tmp_path):
    before = registry.get_function_group(ATTENTION).get(17)
    export_onnx(student(num_blocks=2), tmp_path / "model.onnx", {"student": "sasrec", "data": "shop"})

    graph = onnx.load(tmp_path / "model.onnx")
    assert {entry.key: entry.value for entry in graph.metadata_props} == {"student": "sasrec", "data": "shop"}
    (history,), (found,) = graph.graph.input, graph.graph.output
    dimensions = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in (history, found)]
    assert dimensions == [["batch", "length"], ["batch", PAD]]
    assert registry.get_function_group(ATTENTION).get(17) is before


def test_nothing_is_written_where_the_scores_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "_largest_difference", lambda model, content: float("nan"))
    with pytest.raises(
        UserError, match=r"model.onnx: not written: its scores differ from PyTorch's by nan of their size"
    ):
        export_onnx(student(), tmp_path / "model.onnx", {})
    assert list(tmp_path.iterdir()) == []


def test_a_student_too_large_for_one_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "_MOST_BYTES", 1000)
    with pytest.raises(
        UserError, match=r"the student's weights are \d+ bytes, one ONNX file holds 1000; serve it with"
    ):
        export_onnx(student(), tmp_path / "model.onnx", {})


def test_without_the_extra_it_is_said_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"writing ONNX needs onnx and onnxruntime.* poetry install --extras onnx"):
        export_onnx(student(), tmp_path / "model.onnx", {})
