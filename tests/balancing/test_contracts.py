"""Every method against the contracts of `raybal.testing`, alone and data-parallel."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from raybal.balancing.base import METHODS, BalancingMethod, row_losses
from raybal.models.fusion import FUSIONS
from raybal.testing import CHECKS, CLASSES, Case, check_one, check_workers


class PlainSum(BalancingMethod):
    """The cross-entropy of the sum of the heads' probabilities: the MultiModal loss without its proxies."""

    name = "plain_sum"
    trains_unimodal = True

    def extend(self, classifier):
        classifier.fusion.requires_grad_(False)

    def loss(self, ctx, output, batch):
        scores = [z.softmax(1) * output.present[:, i, None] for i, z in enumerate(output.unimodal_logits.values())]
        return row_losses(torch.stack(scores).sum(0), batch).sum() / batch.total


def _turned_proxies(weights):
    """Rows of proxies are blocks of classes, one a modality."""
    key = "extra.multimodal_loss.proxies"
    return weights | {key: torch.cat([weights[key][CLASSES:], weights[key][:CLASSES]])}


def _turned_gates(weights):
    turned = {}
    for name in ("held", "steps", "means"):
        value = weights[f"fusion.{name}"]
        turned[f"fusion.{name}"] = torch.cat(value.chunk(2)[::-1])
    return weights | turned


def _turned_bottleneck(weights):
    key = "extra.mcr.2.weight"
    return weights | {key: torch.cat(weights[key].chunk(2)[::-1])}


CASES = {
    case.cls.name: case
    for case in (
        Case("joint"),
        Case("multi_loss"),
        Case("unimodal", {"modality": "audio"}),
        Case("ensemble"),
        Case("ogm", {"alpha": 1.0}, baseline="joint"),
        Case("ogm_ge", {"alpha": 1.0}, baseline="joint"),
        Case("agm", {"alpha": 1.0}, baseline="joint"),
        Case("pmr", {"alpha": 1.0, "share": 0.5}, baseline="joint"),
        Case("mslr", {"window": 1}, baseline="joint"),
        Case("mmcosine", {"scale": 5.0}),
        Case("mmpareto", baseline="multi_loss"),
        Case("g_blending", {"super_epoch": 3, "holdout_share": 0.2}, baseline="multi_loss"),
        Case(
            "greedy",
            {"starting_epoch": 0, "epsilon": 0.01, "window": 2},
            baseline="greedy",
            baseline_options={"epsilon": 1e9},
            permuted=_turned_gates,
        ),
        Case("mlb", {"alpha": 2.0, "beta_max": 5.0}, baseline="multi_loss"),
        Case("diagnosing_relearning", {"interval": 1, "times": 1, "holdout_share": 0.3}, baseline="joint"),
        Case("multimodal_loss", {"proxies": 4}, baseline=PlainSum, permuted=_turned_proxies),
        Case(
            "mcr",
            {"permutations": 4, "bottleneck_weight": 1.0, "unimodal_weight": 1.0},
            baseline="multi_loss",
            permuted=_turned_bottleneck,
        ),
    )
}


def _changes(history, key):
    """Whether a recorded quantity differs between epochs."""
    return len({str(record[key]) for record in history if key in record}) > 1


def _changes_sides(history):
    """Whether each modality was ahead in some steps: what is accelerated and what is slowed down has changed."""
    return all(sum(record["ahead"][i] for record in history) > 0 for i in range(2))


#: That every mechanism of a method acted in a run of four epochs.
ACTED = {
    "ogm": lambda h: any(min(r["coefficient"]) < 1 for r in h) and _changes_sides(h),
    "ogm_ge": lambda h: any(min(r["coefficient"]) < 1 for r in h) and _changes_sides(h),
    "mlb": lambda h: any(min(r["coefficient"]) < 1 < max(r["coefficient"]) for r in h) and _changes_sides(h),
    "agm": lambda h: any(min(r["coefficient"]) < 1 < max(r["coefficient"]) for r in h) and _changes_sides(h),
    # Means over an epoch's steps: the weaker modality was not always the same.
    "pmr": lambda h: any(0 < w < 1 for r in h for w in r["prototype_weight"]),
    "mslr": lambda h: _changes(h, "coefficient"),
    "mmpareto": lambda h: any(w != 0.5 for r in h for w in r["fused_weight"]),
    "g_blending": lambda h: len({str(r["loss_weight"]) for r in h}) == 2,
    "greedy": lambda h: any(w > 0 for r in h for w in r["held_back"]),
    "diagnosing_relearning": lambda h: (
        [max(r.get("reinit_strength", [0])) > 0 for r in h] == [False, False, True, False]
    ),
    "mcr": lambda h: all(w > 0 for r in h for w in r["influence"]),
}


def test_there_is_a_case_of_every_method():
    assert sorted(CASES) == METHODS.names()


@pytest.mark.parametrize("name", METHODS.names())
@pytest.mark.parametrize("contract", CHECKS)
def test_contract(name, contract):
    check_one(CASES[name], contract)


@pytest.mark.parametrize("world", [2, 4])
def test_workers_equal_one_process_while_every_mechanism_acts(world):
    histories = dict(zip(CASES, check_workers(list(CASES.values()), world), strict=True))
    for name, acted in ACTED.items():
        assert acted(histories[name]), f"{name} did not act: {histories[name]}"


def test_a_wrong_declaration_is_found():
    class Careless(METHODS.get("joint")):
        name = "careless"
        exceptions = {"resume": "it was not thought through"}  # noqa: RUF012

    with pytest.raises(AssertionError, match="careless says of resume that it does not hold"):
        check_one(Case(Careless), "resume")
    Careless.exceptions = {"acumulation": "a slip of the pen"}
    with pytest.raises(AssertionError, match=r"checks that there are not: \['acumulation'\]"):
        check_one(Case(Careless), "resume")


@pytest.mark.parametrize("name", ["g_blending", "diagnosing_relearning", "mlb"])
def test_state_that_is_not_saved_is_missed(name):
    class Forgetful(METHODS.get(name)):
        name = "forgetful"

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    with pytest.raises(AssertionError, match="resumed after epoch"):
        check_one(dataclasses.replace(CASES[name], method=Forgetful), "resume")


@pytest.mark.parametrize(
    ("contract", "broken"),
    [
        ("finite", {"loss": lambda self, ctx, output, batch: output.logits.sum() * math.nan}),
        (
            "resume",
            {"after_backward": lambda self, ctx: [p.grad.mul_(np.random.rand()) for p in ctx.groups["audio"].encoder]},
        ),
        ("accumulation", {"loss": lambda self, ctx, output, batch: output.logits.std() + 0 * _heads(output)}),
        (
            "permutation",
            {"after_backward": lambda self, ctx: [p.grad.mul_(2) for p in ctx.groups[self.modalities[0]].encoder]},
        ),
        (
            "state round trip",
            {
                "state_dict": lambda self: {"a": 1.0},
                "load_state_dict": lambda self, state: setattr(self, "state_dict", dict),
            },
        ),
    ],
)
def test_a_method_that_breaks_a_contract_is_found(contract, broken):
    method = type("Broken", (METHODS.get("joint"),), {"name": "broken", **broken})
    with pytest.raises(AssertionError, match=f"broken: {contract}"):
        check_one(Case(method), contract)


def _heads(output):
    return sum(z.sum() for z in output.unimodal_logits.values())


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_is_symmetric_if_it_says_so(name):
    torch.manual_seed(0)
    one, other = (FUSIONS[name](dict.fromkeys(order, 4), 3).eval() for order in ("ab", "ba"))
    state = one.state_dict()
    # The same weights by name; of FiLM, whose last modality has none, those of the condition.
    renamed = {k: state.get(k, state.get(k.replace("modulate.b", "modulate.a"))) for k in other.state_dict()}
    other.load_state_dict(renamed)
    inputs = {"a": torch.randn(2, 4), "b": torch.randn(2, 4)}
    if one.takes_tokens:
        inputs = {m: x[:, None] for m, x in inputs.items()}
    present = torch.ones(2, 2, dtype=torch.bool)
    with torch.no_grad():
        same = torch.allclose(one(inputs, present), other(inputs, present), atol=1e-6)
    assert same == FUSIONS[name].symmetric
