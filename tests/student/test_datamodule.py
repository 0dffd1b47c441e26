"""Batches: every row once, the last one short, an order that repeats."""

import torch

from src.core.seed import generator
from src.student.datamodule import ShuffledBatches, build_train_loader

CPU = torch.device("cpu")


def loader_of(dataset, batch_size: int, seed: int = 3):
    return build_train_loader(dataset.train, 5, dataset.pad_id, batch_size, CPU, generator(seed, "shuffle"))


def test_every_row_exactly_once_an_epoch(tiny_dataset):
    loader = loader_of(tiny_dataset, batch_size=10)

    for _ in range(2):
        batches = list(loader)
        assert [len(batch.row) for batch in batches] == [10, 10, 10, 2]
        assert sorted(torch.cat([batch.row for batch in batches]).tolist()) == list(range(32))
    assert len(loader) == 4
    assert len(loader.dataset) == 32


def test_length_of_full_batches():
    assert len(ShuffledBatches(6, 3, torch.Generator())) == 2
    assert len(ShuffledBatches(7, 3, torch.Generator())) == 3
    assert len(ShuffledBatches(2, 3, torch.Generator())) == 1


def test_a_batch_holds_the_rows_it_names(tiny_dataset):
    rows = tiny_dataset.train
    for batch in loader_of(tiny_dataset, batch_size=7):
        for i, row in enumerate(batch.row.tolist()):
            history = rows.history(row).tolist()[-5:]
            assert batch.history[i].tolist() == history + [12] * (5 - len(history))
            assert batch.length[i] == len(history)
            assert batch.target[i] == rows.targets[row]
        assert {batch.row.dtype, batch.history.dtype, batch.length.dtype, batch.target.dtype} == {torch.int64}


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
