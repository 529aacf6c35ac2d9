"""MMCosine against the recorded logits of its formula."""

import numpy as np
import torch
import torch.nn.functional as F
from toy import gradients, make_context, make_items, make_pair, whole_batch

from raybal.balancing.mmcosine import cosine_logits


def test_logits_and_loss_equal_the_recorded_ones(vectors):
    data = vectors("mmcosine")
    scale = float(data["scaling"])
    features = {m: torch.from_numpy(data[f"feat_{m}"]) for m in ("a", "v")}
    weights = dict(zip(("a", "v"), torch.from_numpy(data["W_concat"]).chunk(2, dim=1), strict=True))
    for m in ("a", "v"):
        alone = cosine_logits({m: weights[m]}, {m: features[m]}, scale)
        np.testing.assert_allclose(alone, data[f"logits_{m}"], rtol=1e-10)
    logits = cosine_logits(weights, features, scale)
    np.testing.assert_allclose(logits, data["logits"], rtol=1e-10)
    loss = F.cross_entropy(logits, torch.from_numpy(data["label"]))
    np.testing.assert_allclose(loss, data["loss"], rtol=1e-10)


def test_norms_change_nothing_and_a_missing_modality_adds_nothing():
    classifier, method = make_pair("mmcosine")
    batch = whole_batch(make_items(12, missing=0.5))
    with torch.no_grad():
        encoded = classifier.encode(batch.inputs, batch.present)
        predictor = method.predictor(classifier)
        logits = predictor.logits(encoded.fusion_inputs, batch.present)
        larger = {m: 7 * z for m, z in encoded.fusion_inputs.items()}
        torch.testing.assert_close(predictor.logits(larger, batch.present), logits)
        only_video = predictor.logits(encoded.fusion_inputs, batch.present & torch.tensor([False, True]))
        missing = ~batch.present[:, 0]
        assert torch.equal(only_video[missing], logits[missing])
        assert not torch.equal(only_video, logits)


def test_what_is_trained_is_what_predicts():
    classifier, method = make_pair("mmcosine", scale=5.0)
    batch = whole_batch(make_items(24))
    loss = method.step(make_context(classifier), [batch])
    output = classifier(batch.inputs, batch.present)
    logits = method.predictor(classifier).logits(output.fusion_inputs, batch.present)
    heads = sum(F.cross_entropy(z, batch.labels) for z in output.unimodal_logits.values())
    torch.testing.assert_close(loss, (F.cross_entropy(logits, batch.labels) + heads).detach())
    assert "fusion.bias" not in gradients(classifier)
