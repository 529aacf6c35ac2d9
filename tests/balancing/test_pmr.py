"""PMR's prototypes and weights against recorded ones."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toy import gradients, make_context, make_items, make_pair, whole_batch

from raybal.balancing.pace import PaceSettings
from raybal.balancing.paced import true_class_probability
from raybal.balancing.pmr import prototypical_weights, similarities, some_of_each_class, update_prototypes
from raybal.training.step import train_step


def test_prototypes_distances_and_the_switch_equal_the_authors(vectors):
    data = {k: torch.from_numpy(v) for k, v in vectors("pmr").items()}
    data = {k: v.double() if v.is_floating_point() else v for k, v in data.items()}
    labels, scores, losses = data["label"], [], []
    for m in ("a", "v"):
        sums = torch.zeros_like(data[f"proto_{m}"]).index_add_(0, labels, data[f"feat_{m}_for_proto"])
        prototypes = update_prototypes(None, sums, data["class_counts"], 0.0)
        torch.testing.assert_close(prototypes, data[f"proto_{m}"], rtol=1e-10, atol=1e-10)
        similarity = similarities(data[f"feat_{m}"], data[f"proto_{m}"])
        # Recorded in float32, and with it what follows.
        torch.testing.assert_close(similarity, data[f"neg_dist_{m}"], rtol=1e-6, atol=0)
        scores.append(true_class_probability(similarity, labels).sum())
        losses.append(F.cross_entropy(similarity, labels))
        torch.testing.assert_close(losses[-1], data[f"loss_proto_{m}"], rtol=1e-6, atol=0)
    torch.testing.assert_close(scores[0] / scores[1], data["ratio_a"], rtol=1e-7, atol=0)
    weights = prototypical_weights(torch.stack(scores))
    assert weights.tolist() == [float(data["beta_on_audio"]), float(data["lam_on_visual"])]
    sums = data["proto_a"] * data["class_counts"][:, None]
    moved = update_prototypes(data["proto_prev"], sums, data["class_counts"], float(data["momentum"]))
    torch.testing.assert_close(moved, data["proto_a_ema"], rtol=1e-10, atol=1e-10)


def test_only_the_weakest_that_was_seen_and_only_if_it_is_behind():
    assert prototypical_weights(torch.tensor([0.3, 0.1, 0.2])).tolist() == [0, 1, 0]
    seen = torch.tensor([True, False, True])
    assert prototypical_weights(torch.tensor([0.3, 0.0, 0.2]), seen).tolist() == [0, 0, 1]
    assert prototypical_weights(torch.tensor([0.3, 0.3])).tolist() == [0, 0]
    assert prototypical_weights(torch.tensor([0.3, 0.0]), torch.tensor([True, False])).tolist() == [0, 0]


def test_a_class_without_items_keeps_its_prototype_or_has_none():
    sums, counts = torch.tensor([[2.0, 4.0], [0.0, 0.0]]), torch.tensor([2.0, 0.0])
    first = update_prototypes(None, sums, counts, 0.5)
    assert first[0].tolist() == [1.0, 2.0]
    assert similarities(torch.zeros(1, 2), first)[0, 1] == -torch.inf
    second = update_prototypes(first, torch.tensor([[0.0, 0.0], [3.0, 3.0]]), torch.tensor([0.0, 1.0]), 0.5)
    assert second.tolist() == [[1.0, 2.0], [3.0, 3.0]]


def test_items_of_prototypes_are_drawn_from_every_class_of_every_modality():
    items = make_items(36)
    items.labels = np.array([0] * 30 + [1] * 5 + [2])
    items.present[:20, 0] = False
    chosen = some_of_each_class(items, 0.1, seed=1)
    assert [np.bincount(items.labels[chosen[:, i]]).tolist() for i in (0, 1)] == [[1, 1, 1], [3, 1, 1]]
    assert not (chosen & ~items.present).any()
    assert chosen.tolist() != some_of_each_class(items, 0.1, seed=2).tolist()
    assert (some_of_each_class(items, 1.0, seed=1) == items.present).all()


def test_a_class_that_a_modality_never_shows_leaves_the_loss_finite():
    items = make_items(24, missing=0.3)
    items.present[items.labels == 1, 0] = False
    classifier, method = make_pair("pmr")
    ctx = make_context(classifier, train=items)
    method.before_epoch(ctx)
    assert method._prototypes["audio"][1].isnan().all()
    assert torch.isfinite(method.step(ctx, [whole_batch(items)]))
    assert all(torch.isfinite(p.grad).all() for p in classifier.parameters() if p.grad is not None)


def test_an_epochs_prototypes_are_the_class_means_of_what_is_there():
    items = make_items(30, missing=0.4)
    classifier, method = make_pair("pmr", share=1.0)
    ctx = make_context(classifier, train=items)
    method.before_epoch(ctx)
    batch = whole_batch(items)
    with torch.no_grad():
        embeddings = classifier.eval().encode(batch.inputs, batch.present).embeddings
    for i, m in enumerate(("audio", "video")):
        for c in range(3):
            rows = (batch.labels == c) & batch.present[:, i]
            torch.testing.assert_close(method._prototypes[m][c].float(), embeddings[m][rows].mean(0))


def test_an_epoch_keeps_the_momentums_share_of_the_old_prototypes():
    items = make_items(24)
    batch = whole_batch(items)
    classifier, method = make_pair("pmr", share=1.0, momentum=0.7)
    ctx = make_context(classifier, train=items)
    means = []
    for ctx.epoch in range(2):
        with torch.no_grad():
            embeddings = classifier.encode(batch.inputs, batch.present).embeddings
        means.append({m: torch.stack([z[batch.labels == c].mean(0) for c in range(3)]) for m, z in embeddings.items()})
        method.before_epoch(ctx)
        train_step(ctx, method, [batch])
    for m in ("audio", "video"):
        old, new = means[0][m], means[1][m]
        assert not torch.allclose(old, new, rtol=1e-2)
        torch.testing.assert_close(method._prototypes[m].float(), 0.7 * old + 0.3 * new, msg=m)


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_the_weaker_modalitys_prototype_loss_is_added(alpha):
    items = make_items(24)
    batch = whole_batch(items)
    classifier, method = make_pair("pmr", alpha=alpha)
    ctx = make_context(classifier, train=items)
    method.before_epoch(ctx)
    loss = method.step(ctx, [batch])
    (weights,) = ctx.log["prototype_weight"]
    assert sorted(weights.tolist()) == [0.0, alpha]
    output = classifier(batch.inputs, batch.present)
    expected = sum(F.cross_entropy(z, batch.labels) for z in (output.logits, *output.unimodal_logits.values()))
    weak = ("audio", "video")[int(weights.argmax())]
    expected = expected + alpha * F.cross_entropy(
        -torch.cdist(output.embeddings[weak], method._prototypes[weak].float()), batch.labels
    )
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-4)


def test_a_modality_without_strength_gets_no_prototype_loss():
    items, found = make_items(24), {}
    for key, (name, options) in {
        "baseline": ("joint", {}),
        "both": ("pmr", {}),
        "without audio": ("pmr", {"paces": {"audio": PaceSettings(final=0.0)}}),
        "without video": ("pmr", {"paces": {"video": PaceSettings(final=0.0)}}),
    }.items():
        classifier, method = make_pair(name, **options)
        ctx = make_context(classifier, train=items)
        method.before_epoch(ctx)
        method.step(ctx, [whole_batch(items)])
        found[key] = gradients(classifier)
        if key == "both":
            behind = int(ctx.log["prototype_weight"][0].argmax())
    weak, strong = ("audio", "video") if behind == 0 else ("video", "audio")
    assert any(not torch.allclose(g, found["baseline"][n], rtol=0.1) for n, g in found["both"].items())
    for name, gradient in found["baseline"].items():
        torch.testing.assert_close(found[f"without {weak}"][name], gradient, msg=name)
        torch.testing.assert_close(found[f"without {strong}"][name], found["both"][name], msg=name)


def test_prototypes_of_a_checkpoint_go_to_where_the_model_is():
    """A checkpoint is read to the CPU; the meta device stands for any other."""
    there = {"device": "meta"}
    moved = update_prototypes(torch.zeros(2, 3), torch.zeros(2, 3, **there), torch.ones(2, **there), 0.5)
    assert moved.device.type == "meta"
