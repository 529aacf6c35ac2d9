import itertools

import numpy as np
import pytest
import torch
from toy import make_items

from raybal.data.batches import epoch_batches, steps_per_epoch


def rows(items, **options):
    """The ids of each step, worker by worker, without filling rows."""
    by_row = {items.inputs["audio"][i].tobytes(): items.ids[i] for i in range(len(items))}
    return [
        [[by_row[x.numpy().tobytes()] for x, w in zip(b.inputs["audio"], b.weights, strict=True) if w] for b in batches]
        for batches in epoch_batches(items, seed=5, **options)
    ]


def joined(lists):
    return list(itertools.chain.from_iterable(lists))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_any_number_of_workers_sees_the_same_batches(world, accumulate):
    items = make_items(50)
    alone = [joined(step) for step in rows(items, batch_size=16, epoch=2)]
    together = [
        rows(items, batch_size=16, epoch=2, rank=rank, world=world, accumulate=accumulate) for rank in range(world)
    ]
    assert [len(t) for t in together] == [4] * world
    for t in range(4):
        micro = [joined(worker[t][i] for worker in together) for i in range(accumulate)]
        assert joined(micro) == alone[t]
        # Methods that compare items within a micro-batch compare the same ones on any number of workers.
        assert micro == rows(items, batch_size=16, epoch=2, accumulate=accumulate)[t]


def test_an_epoch_visits_every_row_once_in_an_order_of_its_own():
    items = make_items(50)
    epochs = [joined(joined(step) for step in rows(items, batch_size=16, epoch=e)) for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(items.ids)
    assert epochs[0] != epochs[1]
    assert steps_per_epoch(50, 16) == 4


def test_batches_do_not_depend_on_the_order_in_which_items_are_read():
    items = make_items(20)
    order = np.random.default_rng(0).permutation(20)
    shuffled = make_items(20)
    shuffled.ids = [items.ids[i] for i in order]
    shuffled.inputs = {m: a[order] for m, a in items.inputs.items()}
    shuffled.present, shuffled.labels = items.present[order], items.labels[order]
    assert rows(items, batch_size=6, epoch=0) == rows(shuffled, batch_size=6, epoch=0)


def test_a_worker_without_rows_still_takes_part():
    (step,) = epoch_batches(make_items(2), batch_size=4, seed=0, epoch=0, rank=3, world=4)
    (batch,) = step
    assert batch.weights.tolist() == [0.0]
    assert batch.total == 2
    assert torch.isfinite(batch.inputs["audio"]).all()
