import torch
from toy import make_items, make_spec

from raybal.balancing.pace import PaceSettings
from raybal.predictor import load_predictor, save_predictor
from raybal.store import Store


def test_a_saved_predictor_predicts_the_same(tmp_path):
    store = Store(str(tmp_path))
    spec = make_spec("mlb", alpha=2.0, pace=PaceSettings(kind="linear"))
    classifier, method = spec.build()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(0.1)
    tensors = {f"model.{k}": v for k, v in classifier.state_dict().items()}
    save_predictor(store, "model.safetensors", spec, tensors, epoch=3)
    loaded, facts = load_predictor(store, "model.safetensors")
    items = make_items(5)
    inputs = {m: torch.from_numpy(a) for m, a in items.inputs.items()}

    def logits(predictor):
        encoded = predictor.encode(inputs, torch.from_numpy(items.present))
        return predictor.logits(encoded.fusion_inputs, encoded.present)

    assert torch.equal(logits(loaded), logits(method.predictor(classifier.eval())))
    assert facts == {"epoch": 3}


def test_a_predictor_needs_no_weights_file_again(tmp_path):
    import dataclasses

    from raybal.models.classifier import ModelSettings
    from raybal.models.encoders import EncoderSettings

    spec = make_spec("joint")
    gone = ModelSettings(encoder=EncoderSettings(dim=8, width=4, weights="gone.pt"))
    classifier, _ = spec.build()
    tensors = {f"model.{k}": v for k, v in classifier.state_dict().items()}
    save_predictor(Store(str(tmp_path)), "m.safetensors", dataclasses.replace(spec, model=gone), tensors)
    loaded, _ = load_predictor(Store(str(tmp_path)), "m.safetensors")
    assert torch.equal(loaded.classifier.fusion.bias, classifier.fusion.bias)
