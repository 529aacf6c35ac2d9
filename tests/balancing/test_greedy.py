"""Conditional utilisation: gates, learning speeds, and when a modality is held back."""

import itertools
import math

import pytest
import torch
from toy import make_context, make_items, make_pair, whole_batch

from raybal.testing import MODALITIES, THIRD, Case, items_of, trained
from raybal.training.step import train_step

NAMES = ("audio", "video")


def _steps(method, ctx, items, count, before=lambda: None):
    for _ in range(count):
        before()
        train_step(ctx, method, [whole_batch(items)])


def test_gates_are_those_of_all_modalities_and_multiply_channels():
    items = make_items(6)
    classifier, _ = make_pair("greedy")
    classifier.eval()
    batch, gates = whole_batch(items), classifier.fusion
    with torch.no_grad():
        embeddings = classifier.encode(batch.inputs, batch.present).embeddings
        squeezed = gates.squeeze_bias + sum(gates.squeeze[m](embeddings[m]) for m in NAMES)
        gated = {m: z * torch.sigmoid(gates.excite[m](squeezed.relu())) for m, z in embeddings.items()}
        torch.testing.assert_close(classifier(batch.inputs, batch.present).logits, gates.inner(gated, batch.present))


def test_a_masked_modality_gates_nobody():
    items = make_items(6)
    classifier, _ = make_pair("greedy")
    batch = whole_batch(items)
    only = torch.tensor([True, False]).expand(6, 2)
    with torch.no_grad():
        encoded = classifier.eval().encode(batch.inputs, batch.present)
        other = {"audio": encoded.fusion_inputs["audio"], "video": torch.randn_like(encoded.fusion_inputs["video"])}
        assert torch.equal(classifier.fuse(encoded.fusion_inputs, only), classifier.fuse(other, only))


def test_mean_gates_are_over_steps_and_rows_that_have_the_modality():
    items = make_items(10, missing=0.4)
    classifier, method = make_pair("greedy", starting_epoch=9)
    ctx = make_context(classifier, train=items)
    seen = []

    def look():
        batch = whole_batch(items)
        with torch.no_grad():
            classifier(batch.inputs, batch.present)
        seen.append([g[batch.present[:, i]].mean(0) for i, g in enumerate(classifier.fusion.last)])

    _steps(method, ctx, items, 3, look)
    wanted = torch.cat([torch.stack([s[i] for s in seen]).mean(0) for i in (0, 1)])
    torch.testing.assert_close(classifier.fusion.means, wanted)


def test_speeds_are_sums_of_squared_gradients_over_squared_weights():
    items = make_items(12)
    classifier, method = make_pair("greedy", starting_epoch=9)
    ctx = make_context(classifier, train=items)
    wanted = torch.zeros(2, 2, dtype=torch.float64)

    def ratio(modules):
        parameters = [p for m in modules for p in ([m] if isinstance(m, torch.nn.Parameter) else m.parameters())]
        gradients = sum(float(p.grad.double().square().sum()) for p in parameters)
        return gradients / sum(float(p.detach().double().square().sum()) for p in parameters)

    for _ in range(2):
        ctx.optimizer.zero_grad()
        method.step(ctx, [whole_batch(items)])
        gates = classifier.fusion
        for i, m in enumerate(NAMES):
            wanted[0, i] += ratio([gates.squeeze, gates.squeeze_bias, gates.excite[m]])
            wanted[1, i] += ratio([classifier.encoders[m], gates.inner.parts[m]])
        method.after_backward(ctx)
    torch.testing.assert_close(method._speeds, wanted)
    torch.testing.assert_close(ctx.log["conditional_speed"][-1], torch.log10(wanted[0] / wanted[1]))


@pytest.mark.parametrize("window", [1, 3])
def test_the_fastest_is_held_back_for_a_window_and_speeds_rest_meanwhile(window):
    items = make_items(12)
    classifier, method = make_pair("greedy", starting_epoch=1, epsilon=0.5, window=window)
    ctx = make_context(classifier, train=items)
    gates = itertools.chain([[1.0, 100.0]], itertools.repeat([1.0, 1.0]))
    method._learning = lambda ctx: torch.tensor([next(gates), [1.0, 1.0]], dtype=torch.float64)
    _steps(method, ctx, items, 1)  # in the first epoch, too early to act
    ctx.epoch = 1
    _steps(method, ctx, items, window + 2)
    held = torch.stack(ctx.log["held_back"])
    assert held[:, 1].tolist() == [0.0, 0.0] + [1.0] * window + [0.0]
    assert not held[:, 0].any()
    # Two steps before, one after; none while it was held back.
    assert method._speeds[0].tolist() == [3.0, 102.0]


def test_a_modality_held_back_has_the_same_gates_for_every_item_in_training_alone():
    items = make_items(8)
    classifier, method = make_pair("greedy")
    ctx = make_context(classifier, train=items)
    _steps(method, ctx, items, 2)
    gates, batch = classifier.fusion, whole_batch(items)
    gates.held.copy_(torch.tensor([0.0, 1.0]))
    found = {}
    gates.inner.forward = lambda inputs, present: found.update(inputs) or torch.zeros(8, 3)
    encoded = classifier.encode(batch.inputs, batch.present)
    classifier.fuse(encoded.fusion_inputs, batch.present)
    mean = gates.means.split([8, 8])[1]
    torch.testing.assert_close(found["video"], encoded.fusion_inputs["video"] * mean)
    classifier.eval()
    classifier.fuse(encoded.fusion_inputs, batch.present)
    assert not torch.allclose(found["video"], encoded.fusion_inputs["video"] * mean)


def test_a_speed_of_nothing_is_no_reason_to_act():
    items = make_items(8)
    classifier, method = make_pair("greedy", starting_epoch=0)
    ctx = make_context(classifier, train=items)
    method._learning = lambda ctx: torch.zeros(2, 2, dtype=torch.float64)
    _steps(method, ctx, items, 2)
    assert all(not v.any() for v in ctx.log["held_back"])
    assert all(math.isfinite(v) for v in ctx.log["conditional_speed"][-1].tolist())


def test_a_modality_that_never_comes_is_never_held_back():
    items = items_of(45, (*MODALITIES, THIRD))
    items.present[:, 2] = False
    case = Case("greedy", {"starting_epoch": 0, "epsilon": 1e-6, "window": 1})
    _, history = trained(case, modalities=(*MODALITIES, THIRD), train=items)
    assert all(record["held_back"][2] == 0 for record in history)
    assert any(max(record["held_back"]) > 0 for record in history)
