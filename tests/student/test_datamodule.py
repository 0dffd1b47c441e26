"""Batches: every row once, the last one short, an order that repeats; packed windows lose and leak nothing."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from src.core.data_utils import Rows
from src.core.errors import UserError
from src.core.seed import generator
from src.student import datamodule
from src.student.config import ModelConfig
from src.student.datamodule import ShuffledBatches, build_train_loader, shapes_of
from src.student.models import build_model

CPU = torch.device("cpu")


def loader_of(dataset, batch_size: int, seed: int = 3):
    return build_train_loader(
        dataset, batching="rows", max_len=5, batch_size=batch_size, device=CPU, generator=generator(seed, "shuffle")
    )


def test_every_row_exactly_once_an_epoch(tiny_dataset):
    loader = loader_of(tiny_dataset, batch_size=10)

    for _ in range(2):
        batches = list(loader)
        assert [len(batch.row) for batch in batches] == [10, 10, 10, 2]
        assert sorted(torch.cat([batch.row for batch in batches]).tolist()) == list(range(32))
    assert len(loader) == 4
    assert loader.num_rows == 32


def test_length_of_full_batches():
    assert len(ShuffledBatches(6, 3, torch.Generator())) == 2
    assert len(ShuffledBatches(7, 3, torch.Generator())) == 3
    assert len(ShuffledBatches(2, 3, torch.Generator())) == 1


def test_a_batch_holds_the_rows_it_names(tiny_dataset):
    rows = tiny_dataset.train
    for batch in loader_of(tiny_dataset, batch_size=7):
        for i, row in enumerate(batch.row.tolist()):
            history = rows.history(row).tolist()[-5:]
            assert batch.windows[i].tolist() == history + [12] * (5 - len(history))
            assert batch.length[i] == len(history)
            assert batch.target[i] == rows.targets[row]
        assert {batch.row.dtype, batch.windows.dtype, batch.length.dtype, batch.target.dtype} == {torch.int64}


def test_order_repeats_for_a_seed_and_changes_with_it_and_with_the_epoch(tiny_dataset):
    def orders(seed: int) -> list[list[int]]:
        loader = loader_of(tiny_dataset, 10, seed)
        return [torch.cat([batch.row for batch in loader]).tolist() for _ in range(2)]

    first = orders(3)
    assert orders(3) == first
    assert orders(4)[0] != first[0]
    assert first[0] != first[1]


def test_shuffling_does_not_touch_the_global_stream(tiny_dataset):
    # The loader's own base seed comes from the global stream, once an epoch, whatever is shuffled.
    torch.manual_seed(0)
    list(loader_of(tiny_dataset, 10, seed=3))
    first = torch.rand(1)
    torch.manual_seed(0)
    list(loader_of(tiny_dataset, 4, seed=4))

    assert torch.equal(torch.rand(1), first)


def test_a_batch_larger_than_the_data_is_refused(tiny_dataset):
    with pytest.raises(
        UserError,
        match=r"student\.batch_size=33 \(distill\.batch_size when distilling\): a batch takes more",
    ):
        loader_of(tiny_dataset, batch_size=33)


# --- packed windows -----------------------------------------------------------------------------------------

PAD = 99


def packed(rows: Rows, max_len: int, batch_size: int, seed: int = 3):
    return build_train_loader(
        SimpleNamespace(train=rows, pad_id=PAD),
        batching="packed",
        max_len=max_len,
        batch_size=batch_size,
        device=CPU,
        generator=generator(seed, "shuffle"),
    )


@pytest.fixture
def long_rows() -> Rows:
    """Sequences of 4, 30 and 13 items; of the second every third row is missing, rows stand in no order of places."""
    items = np.arange(47, dtype=np.int32) * 7 % 90
    places = [(0, pos) for pos in range(1, 4)] + [(4, 4 + n) for n in range(1, 30) if n % 3] + [(34, 46), (34, 40)]
    order = np.random.default_rng(0).permutation(len(places))
    return Rows(items, np.array([0, 4, 34, 47]), np.array(places)[order, 1])


@pytest.mark.parametrize("max_len", [1, 4, 7, 10, 50])
def test_packed_rows_come_once_with_their_own_last_items(long_rows, max_len):
    loader = packed(long_rows, max_len, batch_size=6)
    for _ in range(3):
        batches = list(loader)
        assert sorted(torch.cat([batch.row for batch in batches]).tolist()) == list(range(len(long_rows)))
        for batch in batches:
            assert batch.windows.shape[1] == max_len
            for i, row in enumerate(batch.row.tolist()):
                whole, length = long_rows.history(row).tolist(), int(batch.length[i])
                assert batch.windows[batch.window[i], :length].tolist() == whole[-length:]
                assert batch.target[i] == long_rows.targets[row]
                # Whole where it fits, else at least half a window.
                fits = len(whole) if len(whole) <= max_len // 2 else max(max_len // 2, 1)
                assert length >= fits


def test_a_target_is_not_in_the_window_before_it(long_rows):
    # The item at place `length` is the target itself: a causal model must not, and does not, look there.
    for batch in packed(long_rows, 7, 6):
        for history, length in zip(batch.histories(PAD), batch.length, strict=True):
            assert (history[length:] == PAD).all() and (history[:length] != PAD).all()


def test_a_packed_batch_takes_windows_until_it_has_its_targets(long_rows):
    sizes = [len(batch.row) for batch in packed(long_rows, 7, batch_size=6)]

    # A window adds at most 7 targets to a batch that had fewer than 6.
    assert max(sizes) < 6 + 7 and len(sizes) <= -(-len(long_rows) // 6)


def test_cuts_and_order_change_with_the_epoch_and_repeat_for_a_seed(long_rows):
    def epochs(seed: int) -> list[list[tuple[int, int]]]:
        loader = packed(long_rows, 10, 8, seed)
        return [
            [pair for batch in loader for pair in zip(batch.row.tolist(), batch.length.tolist(), strict=True)]
            for _ in range(2)
        ]

    first = epochs(3)
    assert epochs(3) == first != epochs(4)
    assert sorted(first[0]) != sorted(first[1])  # other lengths, so other cuts


def test_windows_of_like_widths_are_read_together():
    widths = torch.tensor([1] * 70 + [3] * 60 + [6] + [9] * 40 + [20, 50])

    # Bounds 1, 3, 6, 12, 25, 50. 70 x (3 - 1) >= 128, 60 x (6 - 3) >= 128; 1 x 6 is too few, so the six join the nines:
    # 41 x (25 - 12) >= 128; a single 20 joins the 50.
    assert shapes_of(widths) == [(70, 1), (60, 3), (41, 9), (2, 50)]
    assert shapes_of(widths[:1]) == [(1, 1)]


@pytest.fixture
def every_width(monkeypatch):
    monkeypatch.setattr(datamodule, "_GROUP_COST", 1)


def test_a_batch_reads_all_that_precedes_its_targets(long_rows, every_width):
    for batch in packed(long_rows, 10, len(long_rows)):
        assert len(batch.shapes) > 1 and sum(number for number, _ in batch.shapes) == len(batch.windows)
        widths = torch.cat([torch.full((number,), width) for number, width in batch.shapes])
        behind = torch.arange(10) >= widths[:, None]
        assert (batch.windows[behind] == PAD).all()
        assert (batch.window.diff() >= 0).all()


@pytest.mark.parametrize(
    "norm, blocks, heads, tied",
    [("dllm2rec", 1, 1, False), ("pre", 2, 2, True), ("post", 2, 4, False), ("pre", 0, 1, True)],
)
def test_packed_sasrec_is_the_mean_of_the_row_wise_losses(
    fill_with_ramp, tiny_dataset, every_width, norm, blocks, heads, tied
):
    config = ModelConfig("sasrec", 12, 8, 8, 6, 0.0, (), (), blocks, heads, norm, tied)
    _check_packed(fill_with_ramp(build_model(config)), tiny_dataset)


@pytest.mark.parametrize("layers, tied", [(1, False), (2, True)])
def test_packed_gru_is_the_mean_of_the_row_wise_losses(fill_with_ramp, tiny_dataset, every_width, layers, tied):
    config = ModelConfig("gru4rec", 12, 8, 8, 6, 0.0, num_blocks=layers, tied_output=tied)
    _check_packed(fill_with_ramp(build_model(config)), tiny_dataset)


@pytest.mark.parametrize("num_blocks", [0, 2])
def test_widths_apart_are_the_padded_windows(fill_with_ramp, long_rows, every_width, num_blocks):
    """Representations and gradients of batches of several widths against the same windows at full width."""
    model = fill_with_ramp(build_model(ModelConfig("sasrec", PAD, 8, 8, 10, 0.0, num_blocks=num_blocks, norm="pre")))
    for batch in packed(long_rows, 10, len(long_rows)):
        results = []
        for shapes in (batch.shapes, [batch.windows.shape]):
            hidden = replace(batch, shapes=shapes).encode(model, None)
            model.zero_grad()
            hidden.square().sum().backward()
            results.append([hidden, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        assert len(batch.shapes) > 1
        for apart, padded in zip(*results, strict=True):
            torch.testing.assert_close(apart, padded, rtol=1e-4, atol=1e-5)


def _check_packed(model, dataset):
    """Loss and every gradient over all rows, one window per user against one window per row."""

    def loss_and_gradients(batching: str):
        loader = build_train_loader(
            dataset, batching=batching, max_len=6, batch_size=32, device=CPU, generator=generator(1, "shuffle")
        )
        (batch,) = loader
        table = model.shared_table()
        loss = F.cross_entropy(model.score(batch.encode(model, table), table), batch.target)
        model.zero_grad()
        loss.backward()
        return loss, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}, len(batch.windows)

    rows, row_gradients, row_windows = loss_and_gradients("rows")
    packed, packed_gradients, packed_windows = loss_and_gradients("packed")

    assert (row_windows, packed_windows) == (32, 8)
    torch.testing.assert_close(packed, rows, rtol=1e-6, atol=0)
    for name, gradient in row_gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
