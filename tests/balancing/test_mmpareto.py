"""MMPareto's joined gradients against recorded ones, and its step against automatic differentiation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from toy import gradients, make_context, make_items, make_pair, whole_batch

from raybal.balancing.mmpareto import combine, fused_weight
from raybal.balancing.pace import PaceSettings


@pytest.mark.parametrize("case", range(8))
def test_weights_and_joined_gradients_equal_the_authors(vectors, case):
    data = vectors("mmpareto")
    fused, unimodal = (
        [torch.from_numpy(data[f"g_{kind}/{case}/{t}"]).double() for t in (0, 1)] for kind in ("mm", "uni")
    )
    weight = fused_weight(fused, unimodal)
    np.testing.assert_allclose([weight, 1 - weight], data["k_mm_uni"][case], atol=1e-6)
    for tensor, joined in enumerate(combine(fused, unimodal, float(data["gamma"]))):
        np.testing.assert_allclose(joined, data[f"g_final/{case}/{tensor}"], rtol=1e-5, atol=1e-6)


def test_opposed_gradients_get_their_combination_of_least_norm():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        f = torch.randn(7, dtype=torch.float64, generator=generator)
        u = -f * 0.5 + torch.randn(7, dtype=torch.float64, generator=generator)
        if f @ u >= 0:
            continue
        best = minimize_scalar(lambda w, f=f, u=u: float((w * f + (1 - w) * u).norm()), bounds=(0, 1), method="bounded")
        assert float(fused_weight([f], [u])) == pytest.approx(np.clip(best.x, 0.001, 0.999), abs=1e-4)


def test_nothing_to_join_is_not_a_division_by_zero():
    zero, some = torch.zeros(3), torch.ones(3)
    assert combine([some], [zero], 1.0)[0].tolist() == [1, 1, 1]
    assert combine([zero], [zero], 1.5)[0].tolist() == [0, 0, 0]
    assert torch.isfinite(combine([some], [-some], 1.0)[0]).all()


def test_a_step_joins_each_encoders_gradients_and_leaves_the_rest():
    items = make_items(24)
    batch = whole_batch(items)
    classifier, method = make_pair("mmpareto", gamma=1.5)
    method.step(make_context(classifier), [batch])
    found = gradients(classifier)
    output = classifier(batch.inputs, batch.present)
    names, parameters = zip(*classifier.named_parameters(), strict=True)
    each = {}
    losses = {"fused": output.logits, **output.unimodal_logits}
    for head, logits in losses.items():
        loss = F.cross_entropy(logits, batch.labels)
        each[head] = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    for m in ("audio", "video"):
        mine = [i for i, name in enumerate(names) if name.startswith(f"encoders.{m}.")]
        joined = combine([each["fused"][i] for i in mine], [each[m][i] for i in mine], 1.5)
        for i, gradient in zip(mine, joined, strict=True):
            torch.testing.assert_close(found[names[i]], gradient)
        index = names.index(f"unimodal_heads.{m}.weight")
        torch.testing.assert_close(found[names[index]], each[m][index])
    index = names.index("fusion.bias")
    torch.testing.assert_close(found["fusion.bias"], each["fused"][index])


def test_strength_zero_is_the_plain_sum():
    items, found = make_items(24), []
    for name, options in (("mmpareto", {"pace": PaceSettings(final=0.0)}), ("multi_loss", {})):
        classifier, method = make_pair(name, **options)
        method.step(make_context(classifier), [whole_batch(items)])
        found.append(gradients(classifier))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])


def test_a_modality_without_strength_gets_the_plain_sum_and_the_other_does_not():
    items, found = make_items(24), {}
    for key, (name, options) in {
        "baseline": ("multi_loss", {}),
        "both": ("mmpareto", {}),
        "audio": ("mmpareto", {"paces": {"video": PaceSettings(final=0.0)}}),
    }.items():
        classifier, method = make_pair(name, **options)
        method.step(make_context(classifier), [whole_batch(items)])
        found[key] = gradients(classifier)
    for name, gradient in found["audio"].items():
        acted = name.startswith("encoders.audio.")
        torch.testing.assert_close(gradient, found["both" if acted else "baseline"][name], msg=name)
        assert not acted or not torch.allclose(gradient, found["baseline"][name], rtol=0.1), name
