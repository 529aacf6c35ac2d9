"""Diagnosing & Re-learning against recorded outputs of the authors' code."""

from __future__ import annotations

import contextlib
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix
from torch import nn
from toy import OMICS, Threads, make_classifier, make_context, make_items, make_method, make_pair, whole_batch

from raybal.balancing.base import BalancingSettings
from raybal.balancing.diagnosing_relearning import (
    is_due,
    purity,
    reinit_strength,
    separability,
    soft_reinitialise,
)
from raybal.balancing.pace import PaceSettings
from raybal.errors import ConfigError, RaybalError
from raybal.settings import from_plain
from raybal.training.step import train_step

PARTS = ("train_audio", "val_audio", "train_visual", "val_visual")


def test_purity_equals_the_authors(vectors):
    data = vectors("dr_purity")
    cases = [k.removesuffix("_labels") for k in data if k.endswith("_labels")]
    assert len(cases) == 8
    for case in cases:
        found = purity(torch.from_numpy(data[f"{case}_clusters"]), torch.from_numpy(data[f"{case}_labels"]))
        assert found == pytest.approx(float(data[f"{case}_purity"]), abs=1e-12), case


def test_purity_of_a_contingency_table():
    generator = np.random.default_rng(0)
    clusters, labels = generator.integers(0, 4, 100), generator.integers(0, 4, 100)
    wanted = confusion_matrix(clusters, labels).max(1).sum() / 100
    assert purity(torch.from_numpy(clusters), torch.from_numpy(labels)) == pytest.approx(wanted, abs=1e-12)


def test_strength_equals_the_authors(vectors):
    data = vectors("dr_strength")
    for scale, row in zip(data["lambdas"], data["alpha"], strict=True):
        found = [reinit_strength(float(gap), float(scale)) for gap in data["gaps"]]
        np.testing.assert_allclose(found, row, rtol=0, atol=1e-12)


def test_diagnoses_follow_the_authors_epochs(vectors):
    data = vectors("dr_schedule")
    for (epochs, interval, times), wanted in zip(data["epochs_interval_num"].tolist(), data["triggers"], strict=True):
        fired: list[int] = []
        for epoch in range(epochs):
            if is_due(epoch, interval, times, len(fired)):
                fired.append(epoch)
        assert fired == wanted[wanted >= 0].tolist()


def test_a_diagnosis_from_the_recorded_clusters_is_the_authors(vectors):
    data = vectors("dr_diagnose_separable")
    assert data["purity_order"].tolist() == list(PARTS)
    found = [
        purity(torch.from_numpy(data[f"clusters_{part}"]), torch.from_numpy(data[f"{part.split('_')[0]}_labels"]))
        for part in PARTS
    ]
    np.testing.assert_allclose(found, data["purity"], rtol=0, atol=1e-12)
    gaps = [abs(found[0] - found[1]), abs(found[2] - found[3])]
    np.testing.assert_allclose(gaps, data["gap"], rtol=0, atol=1e-12)
    alphas = [reinit_strength(gap, float(data["move_lambda"])) for gap in gaps]
    np.testing.assert_allclose(alphas, data["alpha"], rtol=0, atol=1e-12)


def test_our_own_clusters_are_as_pure_as_the_authors(vectors):
    """With the best of ten starts inside the range of ten single starts."""
    data = vectors("dr_diagnose_separable")
    for part, seen in zip(PARTS, data["purity_10_seeds"], strict=True):
        features = torch.from_numpy(data[part])
        labels = torch.from_numpy(data[f"{part.split('_')[0]}_labels"])
        found = separability(features, labels, int(data["n_classes"]), restarts=10, seed=3)
        assert seen.min() - 1e-12 <= found <= seen.max() + 1e-12, part


def test_a_column_of_large_numbers_does_not_decide_the_clusters():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.randn(3, 8, generator=generator)[labels] + 0.05 * torch.randn(60, 8, generator=generator)
    large = 1e4 * torch.rand(60, 1, generator=generator)
    assert separability(torch.cat([features, large], 1), labels, 3, restarts=10, seed=3) == 1.0


def test_a_modality_is_pulled_by_the_gap_between_both_parts_whichever_is_purer():
    train, held_out = make_items(60, OMICS[:2]), make_items(30, OMICS[:2], seed=4)
    for part in (train, held_out):
        for m, noise in part.inputs.items():
            part.inputs[m] = np.float32(np.eye(3, 6)[part.labels] + 0.05 * noise)
    # What one modality shows of held-out items, and the other of trained ones, says nothing of their classes.
    held_out.inputs["a"] = np.roll(held_out.inputs["a"], 1, 0)
    train.inputs["b"] = np.roll(train.inputs["b"], 1, 0)
    classifier, method = make_pair("diagnosing_relearning", OMICS[:2], interval=1, match_sizes=False)
    ctx = make_context(classifier, train=train, held_out=held_out)
    method.setup(ctx)
    wanted = []
    for part in (train, held_out):
        batch = whole_batch(part)
        with torch.no_grad():
            embeddings = classifier.encode(batch.inputs, batch.present).embeddings
        wanted.append([separability(z, batch.labels, 3, restarts=10, seed=5) for z in embeddings.values()])
    (a, b), (a_held_out, b_held_out) = wanted
    assert a > a_held_out + 0.1
    assert b < b_held_out - 0.1
    ctx.epoch = 2
    method.before_epoch(ctx)
    strengths = [reinit_strength(a - a_held_out), reinit_strength(b_held_out - b)]
    for name, values in zip(("purity_train", "purity_held_out", "reinit_strength"), (*wanted, strengths), strict=True):
        assert ctx.log[name][0].tolist() == pytest.approx(values), name


class _Encoder(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(F.relu(self.bn1(self.conv1(x))).mean((2, 3)))


def test_weights_after_a_pull_and_the_step_that_follows_are_the_authors(vectors):
    """Momentum of before pushes on after the pull; buffers and the head stay."""
    data = {k: torch.from_numpy(np.asarray(v)) for k, v in vectors("dr_reinit").items() if v.dtype.kind != "U"}

    def part(name):
        return {k.removeprefix(f"{name}/"): v.clone() for k, v in data.items() if k.startswith(f"{name}/")}

    net = nn.ModuleDict({"audio_net": _Encoder(1), "visual_net": _Encoder(3), "head": nn.Linear(6, 2)})
    net.load_state_dict(part("current"))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for name, value in part("momentum_unchanged").items():
        optimizer.state[net.get_parameter(name)]["momentum_buffer"] = value
    method = make_method("diagnosing_relearning", ("audio_net", "visual_net"), preset="paper")
    method._initial = part("init")
    ctx = SimpleNamespace(classifier=SimpleNamespace(encoders=net), optimizer=optimizer)
    for m in ("audio", "visual"):
        method._relearn(ctx, f"{m}_net", float(data[f"alpha_{m}"]))
    wanted, found = part("after"), net.state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if name.startswith("head") or "running" in name or "num_batches" in name:
            assert torch.equal(found[name], value), name
        else:
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)
    for name, value in part("momentum_unchanged").items():
        assert torch.equal(optimizer.state[net.get_parameter(name)]["momentum_buffer"], value), name
    embeddings = [net[f"{m}_net"](data[f"next_batch/{m}"]) for m in ("audio", "visual")]
    F.cross_entropy(net["head"](torch.cat(embeddings, 1)), data["next_batch/labels"]).backward()
    optimizer.step()
    for name, value in part("after_next_step").items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=0, atol=1e-5, msg=name)


def test_whole_numbers_are_only_taken_back_altogether():
    counts = {"n": torch.tensor(5)}
    assert soft_reinitialise(counts, {"n": torch.tensor(1)}, 0.7)["n"] == 5
    assert soft_reinitialise(counts, {"n": torch.tensor(1)}, 1.0)["n"] == 1


def test_parts_are_equally_large_in_every_modality_and_have_the_classes_in_proportion():
    train, held_out = make_items(60), make_items(30, seed=4)
    train.labels, held_out.labels = np.repeat([0, 1, 2], 20), np.repeat([0, 1, 2], 10)
    held_out.present[:20, 0] = False
    for options, wanted in (({}, ([10, 30], [10, 30])), ({"max_items": 12}, ([10, 12], [10, 12])),
                            ({"match_sizes": False}, ([60, 60], [10, 30]))):  # fmt: skip
        classifier, method = make_pair("diagnosing_relearning", **options)
        ctx = make_context(classifier, train=train, held_out=held_out)
        parts = method._parts(ctx)
        assert tuple(rows.sum(0).tolist() for _, rows in parts) == wanted
        for seen, rows in parts:
            assert not (rows & ~seen.present).any()
        (seen, rows), _ = parts
        assert np.ptp(np.bincount(seen.labels[rows[:, 1]])) <= 1


def _relearn(strengths, optimizer="sgd", norm="group", **options):
    """Trains three steps, then pulls the encoders with given strengths; returns what was before and after."""
    items = make_items(24)
    _, method = make_pair("diagnosing_relearning", interval=1, times=1, **options)
    classifier = make_classifier(norm=norm)
    kind = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    }[optimizer]
    ctx = make_context(classifier, kind(list(classifier.parameters())), train=items, held_out=make_items(12, seed=4))
    initial = {k: v.clone() for k, v in classifier.state_dict().items()}
    method.setup(ctx)
    for _ in range(3):
        train_step(ctx, method, [whole_batch(items)])
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    momenta = {
        n: {k: v.clone() for k, v in ctx.optimizer.state[p].items() if isinstance(v, torch.Tensor)}
        for n, p in classifier.named_parameters()
    }
    found = iter(strengths)
    method._diagnose = lambda *a: {"purity_train": 1.0, "purity_held_out": 0.5, "strength": next(found)}
    ctx.epoch = 2
    method.before_epoch(ctx)
    return ctx, initial, before, momenta


@pytest.mark.parametrize("buffers", ["keep", "interpolate", "reset"])
def test_only_encoders_are_pulled_each_by_its_own_strength(buffers):
    ctx, initial, before, _ = _relearn((0.25, 0.5), norm="batch", buffers=buffers)
    after = ctx.classifier.state_dict()
    for name, value in before.items():
        share = {"encoders.audio": 0.25, "encoders.video": 0.5}.get(".".join(name.split(".")[:2]), 0.0)
        if "running" in name or "num_batches" in name:
            share = {"keep": 0.0, "interpolate": share if "running" in name else 0.0, "reset": 1.0}[buffers]
        wanted = share * initial[name] + (1 - share) * value
        torch.testing.assert_close(after[name], wanted.to(value.dtype), rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("choice", ["keep", "scale", "reset"])
def test_momentum_is_kept_scaled_or_forgotten(optimizer, choice):
    ctx, _, _, before = _relearn((0.25, 0.5), optimizer, optimizer_state=choice)
    for name, parameter in ctx.classifier.named_parameters():
        strength = {"encoders.audio": 0.25, "encoders.video": 0.5}.get(".".join(name.split(".")[:2]))
        state = ctx.optimizer.state.get(parameter, {})
        if strength is not None and choice == "reset":
            assert not state, name
            continue
        for key, value in before[name].items():
            power = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2}.get(key, 0)
            share = (1 - strength) ** power if strength is not None and choice == "scale" else 1.0
            torch.testing.assert_close(state[key], share * value, msg=f"{name} {key}")


def test_the_paper_preset_is_the_released_code():
    ctx, _, before, momenta = _relearn((0.25, 0.5), norm="batch", preset="paper")
    for name, value in ctx.classifier.state_dict().items():
        if "running" in name:
            assert torch.equal(value, before[name])
    for name, parameter in ctx.classifier.named_parameters():
        assert torch.equal(ctx.optimizer.state[parameter]["momentum_buffer"], momenta[name]["momentum_buffer"])
    _, method = make_pair("diagnosing_relearning", preset="paper")
    assert [len(seen.labels) for seen, _ in method._parts(ctx)] == [24, 12]
    # What is kept and shown of a run is what holds.
    assert (method.settings.match_sizes, method.settings.max_items) == (False, None)


@pytest.mark.parametrize(("key", "value"), [("buffers", "reset"), ("match_sizes", True), ("max_items", 100_000)])
def test_the_paper_preset_overrules_nothing_in_silence(key, value):
    content = {"method": "diagnosing_relearning", "preset": "paper", key: value}
    with pytest.raises(ConfigError, match=rf"^balancing\.{key}: preset paper has .*, and {value!r} is given"):
        from_plain(BalancingSettings, content, "balancing")


@pytest.mark.parametrize(("epochs", "said"), [(21, "no diagnosis in 21 epochs with balancing.interval 20"), (22, "")])
def test_a_run_without_a_diagnosis_says_so(epochs, said, caplog):
    classifier, method = make_pair("diagnosing_relearning")
    ctx = make_context(classifier, train=make_items(60), held_out=make_items(30), epochs=epochs)
    with caplog.at_level(logging.WARNING):
        method.setup(ctx)
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)


def test_a_held_out_part_that_chance_decides_says_so(caplog):
    classifier, method = make_pair("diagnosing_relearning")
    held_out = make_items(29)
    held_out.labels[held_out.labels == 2] = 0
    with caplog.at_level(logging.WARNING):
        method.setup(make_context(classifier, train=make_items(60), held_out=held_out, epochs=22))
    assert "1 classes have no held-out item" in caplog.text
    assert "29 held-out items for 3 classes" in caplog.text


def test_a_modality_that_is_not_pulled_keeps_its_momentum_and_statistics():
    ctx, _, before, momenta = _relearn((0.0, 0.5), norm="batch", buffers="reset", optimizer_state="reset")
    for name, value in ctx.classifier.state_dict().items():
        if name.startswith("encoders.audio"):
            assert torch.equal(value, before[name]), name
    for name, parameter in ctx.classifier.named_parameters():
        if name.startswith("encoders.audio"):
            assert torch.equal(ctx.optimizer.state[parameter]["momentum_buffer"], momenta[name]["momentum_buffer"])


def test_embeddings_that_are_not_finite_end_the_run():
    classifier, method = make_pair("diagnosing_relearning", interval=1)
    ctx = make_context(classifier, train=make_items(12), held_out=make_items(12))
    method.setup(ctx)
    with torch.no_grad():
        next(classifier.encoders["video"].parameters()).fill_(float("nan"))
    ctx.epoch = 2
    with pytest.raises(RaybalError, match=r"epoch 2: embeddings of video: .* not finite; training has diverged"):
        method.before_epoch(ctx)


def test_a_diagnosis_with_too_few_items_is_left_out_with_a_warning(caplog):
    classifier, method = make_pair("diagnosing_relearning", interval=1)
    ctx = make_context(classifier, train=make_items(12), held_out=make_items(2))
    method.setup(ctx)
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    ctx.epoch = 2
    with caplog.at_level(logging.WARNING):
        method.before_epoch(ctx)
    assert "audio is not diagnosed, since 2 rows cannot make 3 clusters" in caplog.text
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())


def _next_number(encoder):
    weight = next(encoder.parameters()).view(-1)
    weight[3] = weight[3].nextafter(torch.tensor(1.0))


def _exchange(encoder):
    weight = next(encoder.parameters()).view(-1)
    weight[:2] = weight[:2].flip(0)


def _running_mean(encoder):
    (mean, *_) = (value for name, value in encoder.named_buffers() if "running_mean" in name)
    mean[0] += 1e-3


@pytest.mark.parametrize("change", [None, _next_number, _exchange, _running_mean])
def test_workers_whose_encoders_differ_in_anything_say_so(change):
    classifiers = [make_classifier(norm="batch") for _ in range(2)]
    if change is not None:
        with torch.no_grad():
            change(classifiers[1].encoders["video"])

    def diagnose(workers):
        method = make_method("diagnosing_relearning", interval=1, restarts=1, pace=PaceSettings(final=0.0))
        ctx = make_context(classifiers[workers.rank], train=make_items(24), held_out=make_items(12, seed=4))
        ctx.workers, ctx.epoch = workers, 2
        method.setup(ctx)
        with contextlib.nullcontext() if change is None else pytest.raises(RaybalError, match="encoders differ"):
            method.before_epoch(ctx)
        return ctx.log["reinit_strength"][0].tolist()

    assert Threads(2).run(diagnose) == [[0.0, 0.0]] * 2
