"""The MultiModal loss against the authors' recorded outputs, and the method around it."""

import itertools
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy import make_context, make_items, make_pair, make_spec, whole_batch

from raybal.balancing.multimodal_loss import MultiModalLoss, is_switched, multimodal_logits
from raybal.balancing.pace import PaceSettings
from raybal.predictor import load_predictor, save_predictor
from raybal.store import Store
from raybal.training.step import train_step

CASES = ["basic", "paper_k20", "dead_column", "raw_logits_input", "large_inputs", "zero_and_onehot", "missing_modality"]


def loss_of(data, dtype, weights="W"):
    loss = MultiModalLoss(int(data["C"]), int(data["M"]), int(data["K"]), float(data["gamma"])).to(dtype)
    with torch.no_grad():
        loss.proxies.copy_(torch.from_numpy(data[weights]))
    return loss


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("dtype", "suffix", "tolerance"), [(torch.float64, "f64", 1e-10), (torch.float32, "f32", 1e-5)]
)
def test_logits_loss_and_gradients_equal_the_authors(vectors, case, dtype, suffix, tolerance):
    data = vectors(f"mmloss_{case}")
    loss = loss_of(data, dtype)
    scores = torch.from_numpy(data["e"]).to(dtype).requires_grad_()
    labels = torch.from_numpy(data["y"])
    value = loss(scores, labels)
    value.backward()
    for ours, theirs in (
        (loss.logits(scores), f"logits_{suffix}"),
        (value, f"loss_{suffix}"),
        (loss.proxies.grad, f"grad_W_{suffix}"),
        (scores.grad, f"grad_e_{suffix}"),
    ):
        np.testing.assert_allclose(ours.detach(), data[theirs], rtol=tolerance, atol=tolerance, err_msg=theirs)


def test_invariances(vectors):
    data = vectors("mmloss_invariances")
    scores, labels = torch.from_numpy(data["e"]).double(), torch.from_numpy(data["y"])

    def value(weights):
        return loss_of({**data, "W": weights}, torch.float64)(scores, labels).item()

    scale = np.random.default_rng(0).uniform(0.5, 3, data["W"].shape[1])
    for weights, expected in (
        (data["W"], "loss_base"),
        (data["W_perm_one_class"], "loss_perm_one_class"),
        (data["W_perm_all"], "loss_perm_all_classes"),
        (data["W"] * scale, "loss_col_scaled"),
        (0 * data["W"], "loss_zero_W"),
        (-np.abs(data["W"]), "loss_neg_W"),
    ):
        assert value(weights) == pytest.approx(float(data[expected]), rel=1e-10), expected
    silent = loss_of(data, torch.float64)
    silent.strength.zero_()
    assert F.cross_entropy(silent.logits(scores), labels).item() == pytest.approx(float(data["loss_sum_ce"]), rel=1e-10)


def test_shards_weighted_by_their_rows_give_the_whole_gradient(vectors):
    data = vectors("mmloss_data_parallel")
    scores, labels = torch.from_numpy(data["e"]).double(), torch.from_numpy(data["y"])
    for rows, expected in (
        (slice(0, 8), "grad_W_full"),
        (slice(0, 3), "grad_W_uneven3"),
        (slice(3, 8), "grad_W_uneven5"),
    ):
        loss = loss_of(data, torch.float64)
        loss(scores[rows], labels[rows]).backward()
        np.testing.assert_allclose(loss.proxies.grad, data[expected], rtol=1e-10, atol=1e-12)


def test_four_hundred_steps_of_the_proxies_alone(vectors):
    data = vectors("mmloss_traj_adam")
    loss = loss_of(data, torch.float64, "W0")
    scores, labels = torch.from_numpy(data["e"]).double(), torch.from_numpy(data["y"])
    optimizer = torch.optim.Adam(loss.parameters(), lr=float(data["lr"]), weight_decay=float(data["weight_decay"]))
    for step in range(400):
        optimizer.zero_grad()
        value = loss(scores, labels)
        assert value.item() == pytest.approx(data["losses"][step], abs=1e-8)
        value.backward()
        optimizer.step()
        if step + 1 in (1, 5, 20, 400):
            np.testing.assert_allclose(loss.proxies.detach(), data[f"W_after_{step + 1}"], atol=1e-8)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    loss = MultiModalLoss(3, 2, 2).double()
    scores = torch.rand(4, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 1])
    assert torch.autograd.gradcheck(lambda e: loss(e, labels), (scores,))
    assert torch.autograd.gradcheck(
        lambda w: torch.func.functional_call(loss, {"proxies": w}, (scores, labels)), (loss.proxies,)
    )


def test_half_precision_scores_leave_the_proxies_in_full_precision():
    torch.manual_seed(0)
    loss, scores = MultiModalLoss(3, 2), torch.rand(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = loss.logits(scores.bfloat16())
    assert (logits.dtype, loss.proxies.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(logits, loss.logits(scores.bfloat16().float()))


def test_strength_zero_is_the_plain_sum_of_the_scores():
    items = make_items(24)
    classifier, method = make_pair("multimodal_loss", pace=PaceSettings(final=0.0))
    before = classifier.extra["multimodal_loss"].proxies.detach().clone()
    batch = whole_batch(items)
    output = classifier(batch.inputs, batch.present)
    summed = sum(z.softmax(1) for z in output.unimodal_logits.values())
    loss = method.step(make_context(classifier), [batch])
    torch.testing.assert_close(loss, F.cross_entropy(summed, batch.labels).detach())
    assert torch.equal(classifier.extra["multimodal_loss"].proxies, before)


def test_each_heads_own_loss_is_added_with_its_weight():
    classifier, method = make_pair("multimodal_loss", unimodal_weight=0.25)
    batch = whole_batch(make_items(24))
    output = classifier(batch.inputs, batch.present)
    wanted = F.cross_entropy(multimodal_logits(classifier, output.unimodal_logits, batch.present), batch.labels)
    wanted = wanted + 0.25 * sum(F.cross_entropy(z, batch.labels) for z in output.unimodal_logits.values())
    torch.testing.assert_close(method.step(make_context(classifier), [batch]), wanted.detach())


def test_what_is_saved_predicts_as_it_was_trained(tmp_path):
    spec = make_spec("multimodal_loss", pace=PaceSettings(final=0.5))
    classifier, method = spec.build()
    batch = whole_batch(make_items(24, missing=0.3))
    ctx = make_context(classifier)
    for _ in range(3):
        train_step(ctx, method, [batch])
    tensors = {f"model.{k}": v for k, v in classifier.state_dict().items()}
    save_predictor(Store(tmp_path), "model.safetensors", spec, tensors)
    classifier.eval()
    with torch.no_grad():
        output = classifier(batch.inputs, batch.present)
        trained_on = multimodal_logits(classifier, output.unimodal_logits, batch.present)
        predictor, _ = load_predictor(Store(tmp_path), "model.safetensors")
        assert float(predictor.classifier.extra["multimodal_loss"].strength) == 0.5
        encoded = predictor.encode(batch.inputs, batch.present)
        torch.testing.assert_close(predictor.logits(encoded.fusion_inputs, batch.present), trained_on)
        only = batch.present.clone()
        only[:, 1] = False
        assert not torch.equal(predictor.logits(encoded.fusion_inputs, only), trained_on)


def test_heads_that_stand_for_other_classes_are_reported(caplog):
    assert [is_switched(right, 1000.0, 3) for right in (250.0, 300.0, 340.0)] == [True, False, False]
    assert not is_switched(0.0, 0.0, 3)

    items = make_items(60)
    classifier, method = make_pair("multimodal_loss")
    ctx = make_context(classifier)
    with torch.no_grad():
        for m in ("audio", "video"):
            output = classifier(whole_batch(items).inputs, whole_batch(items).present)
            # A head that always names the class after the right one.
            classifier.unimodal_heads[m].weight.zero_()
            classifier.unimodal_heads[m].bias.zero_()
        batch = whole_batch(items)
        output.unimodal_logits["audio"] = F.one_hot((batch.labels + 1) % 3, 3).float()
        output.unimodal_logits["video"] = F.one_hot(batch.labels, 3).float()
    method.after_forward(ctx, output, batch, last=True)
    with caplog.at_level(logging.WARNING, "raybal"):
        method.after_epoch(ctx)
    assert [r.args[0] for r in caplog.records] == ["audio"]
    assert "unimodal_weight 0.1" in caplog.text


def test_positive_proxies_start_alive():
    signed, positive = (
        make_pair("multimodal_loss", initial=i)[0].extra["multimodal_loss"].proxies for i in ("signed", "positive")
    )
    assert (signed < 0).any()
    torch.testing.assert_close(positive, signed.abs())


def _easy_and_noise(generator, count=2500, size=500, modalities=3, delta=3.0):
    """One modality whose classes lie delta apart, the others pure noise: ([N, d] a modality, labels), of which half
    train."""
    labels = torch.arange(2 * count) % 2
    inputs = []
    for m in range(modalities):
        direction = F.normalize(torch.randn(size, generator=generator), dim=0)
        apart = (labels - 0.5)[:, None] * direction * (delta if m == 0 else 0.0)
        inputs.append(torch.randn(2 * count, size, generator=generator) + apart)
    return inputs, labels


def _accuracy_of(seed, with_proxies, epochs=60, count=2500):
    """Trains linear networks as in the authors' notebooks, scaled down by four; returns the fused test accuracy."""
    inputs, labels = _easy_and_noise(torch.Generator().manual_seed(seed), count)
    torch.manual_seed(seed)
    sizes = (500, 125, 25, 20, 2)
    networks = [nn.Sequential(*[nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]) for _ in inputs]
    loss = MultiModalLoss(2, 3, 20, 0.1)
    loss.strength.fill_(float(with_proxies))
    parameters = [p for module in (*networks, loss) for p in module.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=5e-4, weight_decay=1e-4)

    def scores(rows):
        return torch.cat([net(x[rows]).softmax(1) for net, x in zip(networks, inputs, strict=True)], 1)

    for _ in range(epochs):
        optimizer.zero_grad()
        loss(scores(slice(0, count)), labels[:count]).backward()
        optimizer.step()
    with torch.no_grad():
        guess = loss.logits(scores(slice(count, None))).argmax(1)
    return float((guess == labels[count:]).double().mean())


def test_proxies_keep_noise_from_being_learnt_by_heart():
    """One informative modality of three: at least 12 points above the plain sum, over three seeds."""
    gaps = [_accuracy_of(seed, True) - _accuracy_of(seed, False) for seed in range(3)]
    assert sum(gaps) / 3 >= 0.12, gaps
