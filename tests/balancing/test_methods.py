"""What each method does to gradients and updates."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn
from toy import (
    AUDIO,
    OMICS,
    VIDEO,
    gradients,
    make_classifier,
    make_context,
    make_items,
    make_method,
    make_pair,
    whole_batch,
)

from raybal.balancing.base import METHODS, fused_loss, unimodal_loss
from raybal.balancing.pace import PaceSettings
from raybal.data.batches import Batch
from raybal.errors import ConfigError
from raybal.models.classifier import Classifier
from raybal.models.fusion import FUSIONS, Concat
from raybal.training.step import train_step

#: Methods that act more or less strongly as training goes on.
PACED = [name for name in METHODS.names() if "pace" in METHODS.get(name).Settings.__dataclass_fields__]

#: Fusions that a method cannot work with.
REFUSED = {("mmcosine", fusion) for fusion in ("mlp", "film", "gated", "transformer")}
TAKEN = sorted({(name, fusion) for name in METHODS.names() for fusion in FUSIONS} - REFUSED)


class ToyEncoder(nn.Module):
    """The recorded toy network's encoder: convolution, batch norm, ReLU, global average."""

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x))).mean((2, 3))[:, None]


@pytest.fixture
def toy_step(vectors, request):
    data = vectors(getattr(request, "param", "mlb_step_toy"))
    parameters = {k.removeprefix("param/"): torch.from_numpy(v) for k, v in data.items() if k.startswith("param/")}
    encoders, dims = {}, {}
    for i in "01":
        weight = parameters[f"enc_{i}.conv.weight"]
        encoders[i] = ToyEncoder(weight.shape[1], weight.shape[0], weight.shape[2])
        dims[i] = weight.shape[0]
    classes = len(parameters["fc_0_lin.bias"])
    classifier = Classifier(encoders, dims, Concat(dims, classes), classes).double()
    ours = {}
    for i in "01":
        for name in ("conv.weight", "bn.weight", "bn.bias"):
            ours[f"enc_{i}.{name}"] = classifier.encoders[i].get_parameter(name)
        for name in ("weight", "bias"):
            ours[f"enc_{i}.cls.{name}"] = classifier.unimodal_heads[i].get_parameter(name)
        ours[f"fc_{i}_lin.weight"] = classifier.fusion.parts[i].weight
    ours["fc_0_lin.bias"] = classifier.fusion.bias
    assert set(ours) == set(parameters)
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(parameters[name])
    labels = torch.from_numpy(data["label"])
    inputs = {i: torch.from_numpy(data[f"x{i}"]).double() for i in "01"}
    present = torch.ones(len(labels), 2, dtype=torch.bool)
    batch = Batch(inputs, present, labels, torch.ones(len(labels)), len(labels))
    return data, classifier, ours, batch


def test_mlb_scales_the_gradients_as_the_authors_do(toy_step):
    data, classifier, ours, batch = toy_step
    method = make_method("mlb", ("0", "1"), classifier.classes, alpha=float(data["alpha"]), beta_max=10.0)
    ctx = make_context(classifier)
    ctx.optimizer.zero_grad()
    loss = method.step(ctx, [batch])
    np.testing.assert_allclose(loss, data["loss"], rtol=1e-10)
    for name, parameter in ours.items():
        np.testing.assert_allclose(parameter.grad, data[f"grad_before/{name}"], rtol=1e-8, atol=1e-12, err_msg=name)
    method.after_backward(ctx)
    for name, parameter in ours.items():
        np.testing.assert_allclose(parameter.grad, data[f"grad_after/{name}"], rtol=1e-8, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("toy_step", ["ogm_step_toy_kontras"], indirect=True)
def test_ogm_scales_the_gradients_as_the_authors_port_does(toy_step):
    """Whole encoders (heads and fusion untouched), by the partial logits W_i z_i + b / 2."""
    data, classifier, ours, batch = toy_step
    method = make_method("ogm", ("0", "1"), classifier.classes, alpha=float(data["alpha"]))
    ctx = make_context(classifier)
    ctx.optimizer.zero_grad()
    method.step(ctx, [batch])
    recorded = {n.removeprefix("grad_before/") for n in data if n.startswith("grad_before/")}
    assert {n for n in ours if ".cls." not in n} == recorded
    for name in recorded:
        np.testing.assert_allclose(ours[name].grad, data[f"grad_before/{name}"], rtol=1e-8, atol=1e-12, err_msg=name)
    method.after_backward(ctx)
    for name in recorded:
        np.testing.assert_allclose(ours[name].grad, data[f"grad_after/{name}"], rtol=1e-8, atol=1e-12, err_msg=name)


def _step(method, classifier, items, optimizer=None):
    ctx = make_context(classifier, optimizer, train=items)
    method.before_epoch(ctx)
    train_step(ctx, method, [whole_batch(items)])
    return ctx


def test_ogm_scales_the_encoder_of_the_modality_ahead_and_nothing_else():
    items = make_items(24)
    plain, modulated = make_classifier(), make_classifier()
    joint, ogm = make_method("joint"), make_method("ogm", alpha=0.8)
    for classifier, method in ((plain, joint), (modulated, ogm)):
        ctx = make_context(classifier)
        method.step(ctx, [whole_batch(items)])
        method.after_backward(ctx)
    (k,) = ctx.log["coefficient"]
    assert k.max() == 1.0
    assert k.min() < 1.0
    before, after = gradients(plain), gradients(modulated)
    for name, value in before.items():
        scale = 1.0
        for i, m in enumerate(("audio", "video")):
            if name.startswith(f"encoders.{m}."):
                scale = float(k[i])
        torch.testing.assert_close(after[name], scale * value, rtol=1e-6, atol=1e-8, msg=name)


def test_ge_noise_has_the_gradients_spread_and_depends_on_the_step_alone():
    items = make_items(24)

    def noise(step):
        found = []
        for name in ("ogm", "ogm_ge"):
            classifier = make_classifier(width=16, dim=16)
            ctx = make_context(classifier)
            ctx.step = step
            method = make_method(name)
            method.step(ctx, [whole_batch(items)])
            unscaled = gradients(classifier)
            method.after_backward(ctx)
            found.append((unscaled, gradients(classifier)))
        (spread, plain), (_, noisy) = found
        return {n: (noisy[n] - plain[n], spread[n].std()) for n in plain}

    first, again, later = noise(0), noise(0), noise(1)
    for name, (difference, spread) in first.items():
        if not name.startswith("encoders"):
            assert not difference.any(), name
            continue
        assert torch.equal(difference, again[name][0])
        assert not torch.equal(difference, later[name][0])
        if difference.numel() >= 500:
            assert float(difference.std() / spread) == pytest.approx(1.0, rel=0.15), name


@pytest.mark.parametrize("name", ["mlb", "ogm"])
def test_applied_to_updates_adam_moves_each_modality_by_k(name):
    """Under Adam a factor on the first step's gradient changes nothing; on the update it is a factor."""
    items = make_items(24)
    start = {n: p.detach().clone() for n, p in make_classifier().named_parameters()}
    moves, coefficients = {}, None
    base = {"mlb": "multi_loss", "ogm": "joint"}[name]
    for key, method in {
        "base": make_method(base),
        "gradient": make_method(name, apply_to="gradient"),
        "update": make_method(name, apply_to="update"),
    }.items():
        classifier = make_classifier()
        optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3, eps=1e-12)
        ctx = _step(method, classifier, items, optimizer)
        coefficients = ctx.log.get("coefficient", coefficients)
        moves[key] = {n: p.detach() - start[n] for n, p in classifier.named_parameters()}
    (k,) = coefficients
    for parameter, move in moves["base"].items():
        scale = 1.0
        for i, m in enumerate(("audio", "video")):
            own = [f"encoders.{m}."] + ([f"unimodal_heads.{m}.", f"fusion.parts.{m}."] if name == "mlb" else [])
            if parameter.startswith(tuple(own)):
                scale = float(k[i])
        torch.testing.assert_close(moves["update"][parameter], scale * move, rtol=1e-3, atol=2e-7, msg=parameter)
        torch.testing.assert_close(moves["gradient"][parameter], move, rtol=1e-3, atol=2e-7, msg=parameter)


@pytest.mark.parametrize("fusion", sorted(set(FUSIONS) - {"concat", "sum"}))
def test_where_no_share_of_the_fused_logits_exists_ogm_scores_those_of_one_modality_alone(fusion):
    classifier, method = make_pair("ogm", fusion=fusion)
    batch = whole_batch(make_items(24, missing=0.3))
    ctx = make_context(classifier)
    method.step(ctx, [batch])
    method.after_backward(ctx)
    (found,) = ctx.log["score"]
    with torch.no_grad():
        inputs = classifier.encode(batch.inputs, batch.present).fusion_inputs
        for i in range(2):
            only = batch.present & (torch.arange(2) == i)
            right = classifier.fuse(inputs, only).softmax(1)[torch.arange(24), batch.labels]
            torch.testing.assert_close(found[i], right[batch.present[:, i]].mean())


@pytest.mark.parametrize("name", ["joint", "ogm"])
def test_unimodal_heads_learn_but_leave_the_encoders_alone(name):
    """Where the heads are not part of the objective, their loss must not reach the encoders."""
    items = make_items(24)
    classifier = make_classifier()
    method = make_method(name)
    method.step(make_context(classifier), [whole_batch(items)])
    with_heads = gradients(classifier)
    assert all(with_heads[f"unimodal_heads.{m}.weight"].abs().sum() > 0 for m in ("audio", "video"))
    classifier.zero_grad()
    batch = whole_batch(items)
    output = classifier(batch.inputs, batch.present)
    nn.functional.cross_entropy(output.logits, batch.labels).backward()
    for key, value in gradients(classifier).items():
        if not key.startswith("unimodal_heads"):
            torch.testing.assert_close(with_heads[key], value, msg=key)


@pytest.mark.parametrize(("name", "fusion"), sorted(REFUSED))
def test_a_fusion_that_a_method_cannot_work_with_is_refused(name, fusion):
    with pytest.raises(ConfigError, match=rf"balancing\.method: {name} .*{fusion} fusion"):
        make_pair(name, fusion=fusion)


@pytest.mark.parametrize(("name", "fusion"), TAKEN)
def test_every_method_takes_every_fusion_in_half_precision(name, fusion):
    """As on every GPU by default: forward passes, and the scores that come with them, in bfloat16."""
    items, found = make_items(12), []
    for autocast in (contextlib.nullcontext, lambda: torch.autocast("cpu", dtype=torch.bfloat16)):
        classifier, method = make_pair(name, fusion=fusion)
        ctx = make_context(classifier, train=items)
        ctx.autocast = autocast
        method.before_epoch(ctx)
        train_step(ctx, method, [whole_batch(items)])
        assert all(torch.isfinite(p).all() for p in classifier.parameters())
        found.append(torch.stack(ctx.log["score"]) if "score" in ctx.log else torch.zeros(0))
    torch.testing.assert_close(*found, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("name", ["mlb", "ogm"])
@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_a_modality_that_a_batch_lacks_leaves_the_other_alone(name, alpha):
    items = make_items(12)
    items.present[:, 0] = False
    items.inputs["audio"][:] = 0
    ctx = _step(make_method(name, alpha=alpha), make_classifier(), items)
    (k,) = ctx.log["coefficient"]
    assert k.tolist() == [1.0, 1.0]


def test_of_three_modalities_those_that_a_batch_has_are_balanced():
    names = tuple(m.name for m in OMICS)
    items, two = make_items(12, OMICS), make_items(12, OMICS[:2])
    two.inputs = {m: items.inputs[m] for m in names[:2]}
    items.present[:, 2] = False
    items.inputs["c"][:] = 0
    coefficients, start = [], make_classifier(OMICS).state_dict()
    for modalities, data in ((OMICS, items), (OMICS[:2], two)):
        classifier = make_classifier(modalities)
        classifier.load_state_dict({k: start[k] for k in classifier.state_dict()})
        method = make_method("mlb", tuple(m.name for m in modalities), alpha=2.0, beta_max=10.0)
        coefficients.append(_step(method, classifier, data).log["coefficient"][0])
    torch.testing.assert_close(coefficients[0][:2], coefficients[1])
    assert coefficients[0][2] == 1.0
    assert (coefficients[0][:2] != 1).all()


@pytest.mark.parametrize("name", [name for name in PACED if name != "diagnosing_relearning"])
def test_a_step_records_the_pace_in_force(name):
    pace = PaceSettings(kind="linear", initial=0.2)
    classifier, method = make_pair(name, pace=pace)
    items = make_items(6)
    ctx = make_context(classifier, train=items)
    method.before_epoch(ctx)
    for _ in range(3):
        train_step(ctx, method, [whole_batch(items)])
    assert [float(v) for v in ctx.log["pace"]] == pytest.approx([0.2, 0.28, 0.36])


def test_a_method_that_acts_between_epochs_records_the_pace_of_each():
    classifier, method = make_pair("diagnosing_relearning", pace=PaceSettings(kind="linear", initial=0.2))
    ctx = make_context(classifier, train=make_items(6))
    for ctx.step in (0, 5):
        method.before_epoch(ctx)
    assert [float(v) for v in ctx.log["pace"]] == pytest.approx([0.2, 0.6])


@pytest.mark.parametrize("name", ["joint", "ogm"])
def test_heads_that_are_no_part_of_the_objective_change_nothing_when_clipped(name):
    items, weights = make_items(24), []
    for scale in (0.0, 100.0):
        classifier = make_classifier()
        method = make_method(name)
        method.loss = lambda ctx, output, batch, s=scale: fused_loss(output, batch) + s * unimodal_loss(output, batch)
        train_step(make_context(classifier), method, [whole_batch(items)], clip_norm=0.05)
        weights.append(classifier.state_dict())
    for key, value in weights[0].items():
        if not key.startswith("unimodal_heads"):
            assert torch.equal(value, weights[1][key]), key
        else:
            moved = weights[1][key] - value
            assert 0 < float(moved.norm()) <= 0.05 * 0.1 + 1e-6


def test_heads_of_the_objective_are_clipped_with_it():
    classifier = make_classifier()
    ctx = make_context(classifier)
    train_step(ctx, make_method("multi_loss"), [whole_batch(make_items(24))], clip_norm=0.05)
    norm = torch.stack([p.grad.norm() for p in classifier.parameters()]).norm()
    assert float(norm) == pytest.approx(0.05, rel=1e-4)


def test_mlb_takes_three_modalities_and_ogm_says_that_it_does_not():
    names = tuple(m.name for m in OMICS)
    items = make_items(12, OMICS)
    ctx = _step(make_method("mlb", names), make_classifier(OMICS), items)
    assert ctx.log["coefficient"][0].shape == (3,)
    with pytest.raises(ConfigError, match=r"ogm takes exactly two modalities.*3 \(a, b, c\)"):
        make_method("ogm", names)


def test_a_methods_own_parameters_are_those_of_the_modality():
    classifier = make_classifier((AUDIO, VIDEO), fusion="mlp")
    groups = classifier.parameter_groups()
    everything = {id(p) for p in classifier.parameters()}
    owned = [{id(p) for p in g.all} for g in groups.values()]
    assert not owned[0] & owned[1]
    shared = everything - owned[0] - owned[1]
    names = {n for n, p in classifier.named_parameters() if id(p) in shared}
    assert names == {"fusion.bias", "fusion.classify.weight", "fusion.classify.bias"}
