"""G-Blending's weights against recorded ones, and how they are estimated."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toy import gradients, make_context, make_items, make_pair, whole_batch

from raybal.balancing.base import METHODS
from raybal.balancing.g_blending import weights
from raybal.balancing.pace import PaceSettings
from raybal.testing import SEED, Case, items_of, run_of, trained
from raybal.training.fit import fit
from raybal.training.holdout import hold_out


def test_weights_equal_the_recorded_ones(vectors):
    data = {k: torch.from_numpy(v) for k, v in vectors("gblending").items()}
    found = weights(data["train_loss_start"], data["train_loss_end"], data["val_loss_start"], data["val_loss_end"])
    np.testing.assert_allclose(found, data["weights"], rtol=1e-10)


def test_weights_stay_finite_where_nothing_changed_or_nothing_overfits():
    one = torch.ones(3, dtype=torch.float64)
    assert weights(one, one, one, one).tolist() == pytest.approx([1 / 3] * 3)
    found = weights(one, 0.5 * one, one, torch.tensor([0.5, 0.6, 0.7]).double())
    assert torch.isfinite(found).all()
    assert found.sum() == pytest.approx(1)
    assert found.argmax() == 0


def test_an_estimate_is_what_training_each_head_alone_shows(tmp_path):
    """Every head trained by an ordinary run of its own, from the same weights on the same batches."""
    case = Case("g_blending", {"super_epoch": 2, "holdout_share": 0.2})
    items = items_of(45)
    run = run_of(case, str(tmp_path / "g"), train=items, epochs=2)
    fit(run)
    train, held_out = hold_out(items, 0.2, run.seed)
    assert held_out is not None
    losses = {"start": [], "end": []}
    for head, method in (("audio", "unimodal"), ("video", "unimodal"), ("fused", "joint")):
        alone = run_of(Case(method), str(tmp_path / f"{method}-{head}"), train=train, epochs=2, clip_norm=None)
        losses["start"].append([_nll(alone, part)[head]["nll"] for part in (train, held_out)])
        fit(alone)
        losses["end"].append([_nll(alone, part)[head]["nll"] for part in (train, held_out)])
    start, end = (torch.tensor(losses[k], dtype=torch.float64) for k in ("start", "end"))
    wanted = weights(start[:, 0], end[:, 0], start[:, 1], end[:, 1])
    torch.testing.assert_close(run.method._estimate, wanted, rtol=1e-4, atol=0)


def _nll(run, items):
    from raybal.balancing.base import Predictor
    from raybal.training.evaluate import evaluate

    return evaluate(Predictor(run.classifier), items, run.device)


@pytest.mark.parametrize(("mode", "estimates"), [("online", 2), ("offline", 1)])
def test_weights_hold_for_a_super_epoch_or_for_good(mode, estimates):
    _, history = trained(Case("g_blending", {"super_epoch": 2, "mode": mode}))
    found = [tuple(r["loss_weight"]) for r in history]
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert len(set(found)) == estimates
    # Two copies of two epochs an estimate.
    assert [r["rehearsed"] for r in history] == ([4, 4, 8, 8] if mode == "online" else [4, 4, 4, 4])
    assert all(sum(w) == pytest.approx(1) for w in found)


def test_rehearsing_leaves_the_run_as_it_was():
    """At strength 0 the run is multi_loss's, whatever was rehearsed before."""
    found, _ = trained(Case("g_blending", {"super_epoch": 2, "pace": PaceSettings(final=0.0)}), train=items_of(45))
    left, _ = hold_out(items_of(45), METHODS.get("g_blending").Settings().holdout_share, SEED)
    plain, _ = trained(Case("multi_loss"), train=left)
    for name, value in found.items():
        torch.testing.assert_close(value, plain[name], rtol=0, atol=1e-6, msg=name)


def test_a_modality_without_strength_keeps_its_loss_as_it_is():
    options = {"super_epoch": 2, "paces": {"video": PaceSettings(final=0.0)}}
    _, history = trained(Case("g_blending", options), epochs=2)
    _, whole = trained(Case("g_blending", {"super_epoch": 2}), epochs=2)
    wanted = whole[0]["loss_weight"]
    assert history[0]["loss_weight"] == pytest.approx([wanted[0], 1.0, wanted[2]])
    assert wanted[1] != pytest.approx(1.0, abs=0.1)


def test_every_head_is_trained_with_its_own_weight():
    estimate = {"audio": 0.05, "video": 0.7, "fused": 0.25}
    classifier, method = make_pair("g_blending")
    method.load_state_dict({"estimate": torch.tensor(list(estimate.values()), dtype=torch.float64), "estimates": 1})
    batch = whole_batch(make_items(24))
    found = method.step(make_context(classifier), [batch])
    output = classifier(batch.inputs, batch.present)
    heads = {**output.unimodal_logits, "fused": output.logits}
    wanted = sum(weight * F.cross_entropy(heads[head], batch.labels) for head, weight in estimate.items())
    torch.testing.assert_close(found, wanted.detach())
    own = gradients(classifier)
    classifier.zero_grad()
    wanted.backward()
    for name, gradient in gradients(classifier).items():
        torch.testing.assert_close(own[name], gradient, msg=name)
