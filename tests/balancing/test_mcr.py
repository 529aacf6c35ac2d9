"""MCR's terms beside plain loops, and which encoder feels what."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon
from toy import AUDIO, VIDEO, make_classifier, make_context, make_items, make_method, make_pair, whole_batch

from raybal.balancing.mcr import Rows, _exchanges, contrastive, influence
from raybal.balancing.pace import PaceSettings
from raybal.errors import ConfigError


def _rows(items, classifier):
    batch = whole_batch(items)
    encoded = classifier.encode(batch.inputs, batch.present)
    return Rows({m: x.detach().requires_grad_() for m, x in encoded.fusion_inputs.items()}, batch.present, batch.labels)


def test_influence_is_the_mean_divergence_of_scipy():
    classifier = make_classifier()
    rows = _rows(make_items(7, missing=0.3), classifier)
    own, other = influence(classifier, rows, 3, seed=5)
    wanted = []
    before = classifier.fuse(rows.fusion_inputs, rows.present).softmax(1).detach().numpy()
    from raybal import hashing

    for i, m in enumerate(("audio", "video")):
        found = []
        for exchange in _exchanges(rows.present[:, i], 3, hashing.digest("exchange", 5, m)):
            inputs = rows.fusion_inputs | {m: rows.fusion_inputs[m][exchange]}
            after = classifier.fuse(inputs, rows.present).softmax(1).detach().numpy()
            found += [jensenshannon(p, q) ** 2 for p, q in zip(before, after, strict=True)]
        wanted.append(sum(found) / len(found))
    assert own.tolist() == pytest.approx(wanted, rel=1e-4)
    assert other.tolist() == pytest.approx(wanted[::-1], rel=1e-4)


def test_each_part_of_the_game_reaches_one_encoder():
    classifier = make_classifier()
    rows = _rows(make_items(9), classifier)
    own, other = influence(classifier, rows, 4, seed=5)
    for part in (own, other):
        for j, m in enumerate(("audio", "video")):
            grads = torch.autograd.grad(
                part[j], list(rows.fusion_inputs.values()), retain_graph=True, allow_unused=True
            )
            reached = {n for n, g in zip(rows.fusion_inputs, grads, strict=True) if g is not None and g.abs().sum() > 0}
            assert reached == {m}
    # In the greedy game of two the fusion head itself is left alone.
    fusion = list(classifier.fusion.parameters())
    for gradient in torch.autograd.grad(own.sum() - other.sum(), fusion):
        assert float(gradient.abs().max()) < 1e-6


def test_exchanges_are_permutations_of_the_rows_that_have_the_modality():
    there = torch.tensor([True, False, True, True, False])
    exchanges = _exchanges(there, 20, seed=1)
    assert (exchanges[:, ~there] == torch.tensor([1, 4])).all()
    assert {tuple(sorted(e.tolist())) for e in exchanges} == {(0, 1, 2, 3, 4)}
    assert len({tuple(e.tolist()) for e in exchanges}) > 3


def test_the_contrastive_term_is_the_sum_over_pairs():
    views, labels = (
        torch.randn(8, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 0, 1, 1, 1, 2, 0, 3]),
    )
    z = F.normalize(views, dim=1)
    losses = []
    for a, p in itertools.permutations(range(8), 2):
        if labels[a] == labels[p]:
            negatives = [math.exp(float(z[a] @ z[n]) / 0.5) for n in range(8) if labels[n] != labels[a]]
            positive = math.exp(float(z[a] @ z[p]) / 0.5)
            losses.append(-math.log(positive / (positive + sum(negatives))))
    assert float(contrastive(views, labels, 0.5)) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_the_contrastive_term_of_one_class_or_of_no_pair_is_nothing():
    views = torch.randn(4, 3, requires_grad=True)
    for labels in (torch.zeros(4, dtype=torch.int64), torch.arange(4)):
        loss = contrastive(views, labels, 0.5)
        (gradient,) = torch.autograd.grad(loss, views)
        assert loss.item() == 0
        assert torch.isfinite(gradient).all()


def test_the_bottleneck_predicts_the_embeddings_that_are_there():
    items = make_items(6, missing=0.5)
    classifier, method = make_pair("mcr", bottleneck_weight=1.0)
    ctx, batch = make_context(classifier), whole_batch(items)
    output = classifier(batch.inputs, batch.present)
    guess = classifier.extra["mcr"](output.logits)
    z = torch.cat(list(output.embeddings.values()), 1)
    strengths = torch.tensor([1.0, 0.25])
    there = (batch.present * strengths).repeat_interleave(8, 1)
    wanted = ((guess - z).square() * there).mean()
    torch.testing.assert_close(method._bottleneck(ctx, output, batch, strengths), wanted)


@pytest.mark.parametrize(("game", "sign"), [("greedy", -1), ("independent", 0), ("collaborative", 1)])
@pytest.mark.parametrize("video", [1.0, 0.5, 0.0])
def test_the_loss_is_the_sum_of_its_terms(game, sign, video):
    """With a pace of its own for video."""
    items = make_items(10)
    classifier, method = make_pair(
        "mcr",
        game=game,
        permutations=2,
        mipd_weight=0.3,
        contrastive_weight=0.7,
        unimodal_weight=0.2,
        paces={"video": PaceSettings(final=video)},
    )
    ctx, batch = make_context(classifier), whole_batch(items)
    loss = method.step(ctx, [batch])
    output = classifier(batch.inputs, batch.present)
    from raybal import hashing

    own, other = influence(
        classifier,
        Rows(output.fusion_inputs, batch.present, batch.labels),
        2,
        hashing.digest("permutations", ctx.seed, 0, 0),
    )
    heads = sum(F.cross_entropy(z, batch.labels) for z in output.unimodal_logits.values())
    game_of = own + sign * other
    wanted = F.cross_entropy(output.logits, batch.labels) + 0.2 * heads - 0.3 * (game_of[0] + video * game_of[1])
    views, labels = torch.cat(list(output.embeddings.values())), batch.labels.repeat(2)
    of_audio, whole = (contrastive(views, labels, 0.5, w.repeat_interleave(10)) for w in torch.tensor([[1, 0], [1, 1]]))
    wanted = wanted + 0.7 * (of_audio + video * (whole - of_audio))
    torch.testing.assert_close(loss, wanted.detach())


def test_embeddings_of_different_sizes_are_refused_only_where_they_are_compared():
    classifier = make_classifier()
    classifier.dims = {"audio": 8, "video": 16}
    with pytest.raises(ConfigError, match=r"mcr compares embeddings .*audio 8, video 16"):
        make_method("mcr", (AUDIO.name, VIDEO.name)).extend(classifier)
    make_method("mcr", (AUDIO.name, VIDEO.name), contrastive_weight=0.0).extend(classifier)
