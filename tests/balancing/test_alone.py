"""Modalities that are trained alone, and their ensemble."""

import pytest
import torch
from toy import make_context, make_items, make_method, make_pair, whole_batch

from raybal.errors import ConfigError
from raybal.training.step import train_step


@pytest.mark.parametrize("name", ["unimodal", "ensemble"])
def test_no_gradient_passes_from_one_modality_to_another(name):
    """Training both at once gives what training each with the other's inputs replaced gives."""
    items, other = make_items(24), make_items(24, seed=5)
    weights = []
    for video in (items.inputs["video"], other.inputs["video"]):
        classifier, method = make_pair(name)
        ctx = make_context(classifier)
        items.inputs["video"] = video
        for _ in range(3):
            train_step(ctx, method, [whole_batch(items)])
        weights.append({k: v for k, v in classifier.state_dict().items() if "video" not in k})
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key
    assert any(p.grad is not None for p in classifier.encoders["audio"].parameters())
    assert all(p.grad is None for p in classifier.fusion.parameters())


@pytest.mark.parametrize("fusion", ["concat", "transformer"])
def test_one_head_predicts_alone(fusion):
    classifier, method = make_pair("unimodal", fusion=fusion, modality="video")
    batch = whole_batch(make_items(12, missing=0.4))
    with torch.no_grad():
        output = classifier(batch.inputs, batch.present)
        predictor = method.predictor(classifier)
        everything = predictor.logits(output.fusion_inputs, batch.present)
        torch.testing.assert_close(everything, output.unimodal_logits["video"])
        without_audio = batch.present & torch.tensor([False, True])
        assert torch.equal(predictor.logits(output.fusion_inputs, without_audio), everything)
    assert make_method("unimodal").predictor(classifier).modality == "audio"
    with pytest.raises(ConfigError, match=r"balancing\.modality: 'vido' .*audio, video.*did you mean 'video'"):
        make_method("unimodal", modality="vido")


@pytest.mark.parametrize("fusion", ["concat", "transformer"])
def test_an_ensemble_averages_the_modalities_that_are_there(fusion):
    classifier, method = make_pair("ensemble", fusion=fusion)
    batch = whole_batch(make_items(20, missing=0.4))
    with torch.no_grad():
        output = classifier(batch.inputs, batch.present)
        logits = method.predictor(classifier).logits(output.fusion_inputs, batch.present)
        nothing = method.predictor(classifier).logits(output.fusion_inputs, torch.zeros_like(batch.present))
    audio, video = (z.softmax(1) for z in output.unimodal_logits.values())
    for row in range(20):
        expected = (audio[row] * video[row]).sqrt() if batch.present[row, 0] else video[row]
        torch.testing.assert_close(logits[row].softmax(0), expected / expected.sum())
    assert 0 < batch.present[:, 0].sum() < 20
    assert (nothing == 0).all()
