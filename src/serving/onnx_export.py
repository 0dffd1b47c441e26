"""A student as ONNX: one graph from histories to scores, compared with PyTorch before it is written."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.core.errors import UserError
from src.core.files import write_atomic
from src.student.models import Student

HISTORY, SCORES = "history", "scores"  # names of the graph's input and output
TOLERANCE: Final = 1e-5  # of the scores, absolute or relative, whichever is more
_OPSET: Final = 17
_MOST_BYTES: Final = 2**31 - 2**20  # of one protobuf file
_TRIED: Final = 64  # histories that are compared


class _FromHistory(nn.Module):
    """The student on histories of any length: int64 [B, L], right-padded with `num_items` -> float32 [B, num_items].

    The last `max_seq_len` items of each count, as in training; a history of nothing but padding has no meaning.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student, self.width, self.pad = student, student.config.max_seq_len, student.config.num_items
        self.register_buffer("places", torch.arange(self.width), persistent=False)

    def forward(self, history: Tensor) -> Tensor:
        length = (history != self.pad).sum(1)
        begin = (length - self.width).clamp(min=0)
        padded = F.pad(history, (0, self.width), value=self.pad)  # [B, L + width]
        window = padded.gather(1, begin[:, None] + self.places)  # [B, width]
        return self.student(window, length.clamp(max=self.width))


def export_onnx(student: Student, path: Path, metadata: dict[str, str]) -> float:
    """Write a student as ONNX, whole or not at all.

    The graph takes `history` int64 [batch, length], item numbers in the order of `items.json`, oldest first, padded at
    the right with num_items, and gives `scores` float32 [batch, num_items]; batch and length are open.

    Args:
        student: on the CPU.
        metadata: what the file says of itself.

    Returns:
        The largest difference to PyTorch's scores that was found.

    Raises:
        UserError: the extra `onnx` is not installed, the student is too large for one file, or the two differ.
    """
    _require_extra()
    size = sum(tensor.numel() * tensor.element_size() for tensor in student.state_dict().values())
    if size > _MOST_BYTES:
        raise UserError(
            f"{path}: the student's weights are {size} bytes, one ONNX file holds {_MOST_BYTES}; serve it with PyTorch"
        )
    wrapped = _FromHistory(student).eval()
    content = _with_metadata(_traced(wrapped), metadata)
    difference = _largest_difference(wrapped, content)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{path}: not written: its scores differ from PyTorch's by {difference:.1g} of their size, at most "
            f"{TOLERANCE:g} is allowed; report this with the student's config.json"
        )
    write_atomic(path, lambda temporary: temporary.write_bytes(content))
    return difference


def _require_extra() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"writing ONNX needs onnx and onnxruntime, which cannot be imported ({error}); install them by poetry "
            "install --extras onnx"
        ) from None


def _traced(model: _FromHistory) -> bytes:
    """The graph, traced on two histories of three items."""
    stream = io.BytesIO()
    example = torch.full((2, 3), model.pad)
    example[:, 0] = 0
    with warnings.catch_warnings(), _attention_translated(model.width):
        warnings.simplefilter("ignore")  # of what is constant in the graph, and meant to be
        torch.onnx.export(
            model,
            (example,),
            stream,
            input_names=[HISTORY],
            output_names=[SCORES],
            dynamic_axes={HISTORY: {0: "batch", 1: "length"}, SCORES: {0: "batch"}},
            opset_version=_OPSET,
        )
    return stream.getvalue()


@contextmanager
def _attention_translated(width: int) -> Iterator[None]:
    """Causal attention over windows as the graph's own operations.

    PyTorch 2.3 writes the scale of `scaled_dot_product_attention` as a number where a tensor has to be, and fails. This
    can go once the version allowed here translates it: the tests of students with several blocks tell.
    """
    name = "aten::scaled_dot_product_attention"
    future = torch.full((width, width), float("-inf")).triu(1)

    def translate(g: Any, query: Any, key: Any, value: Any, mask: Any, dropout: Any, causal: Any, scale: Any) -> Any:
        scale = g.op("Constant", value_t=torch.tensor(scale.node().t("value"), dtype=torch.float32))
        products = g.op("MatMul", query, g.op("Transpose", key, perm_i=[0, 1, 3, 2]))
        scores = g.op("Add", g.op("Mul", products, scale), g.op("Constant", value_t=future))
        return g.op("MatMul", g.op("Softmax", scores, axis_i=-1), value)

    torch.onnx.register_custom_op_symbolic(name, translate, _OPSET)
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic(name, _OPSET)


def _with_metadata(content: bytes, metadata: dict[str, str]) -> bytes:
    import onnx

    graph: onnx.ModelProto = onnx.load_from_string(content)
    onnx.helper.set_model_props(graph, metadata)
    onnx.checker.check_model(graph)
    return graph.SerializeToString()


@torch.no_grad()
def _largest_difference(model: _FromHistory, content: bytes) -> float:
    """Between the graph and PyTorch, as a share of the scores' size: histories of 1 item to more than the window."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(0)
    worst = 0.0
    for longest, count in ((1, 1), (model.width, _TRIED), (model.width + 3, 2)):
        length = draw.integers(1, longest + 1, size=count)
        history = draw.integers(0, model.pad, size=(count, longest))
        history[np.arange(longest) >= length[:, None]] = model.pad
        (found,) = session.run([SCORES], {HISTORY: history})
        wanted = model(torch.from_numpy(history)).numpy()
        worst = max(worst, float((np.abs(found - wanted) / np.maximum(1.0, np.abs(wanted))).max()))
    return worst
