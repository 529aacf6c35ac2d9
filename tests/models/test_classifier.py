"""Encoders, fusion heads and what masking means."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from toy import AUDIO, OMICS, VIDEO, make_classifier, make_items

from raybal.balancing.base import Predictor
from raybal.data.schema import Modality
from raybal.errors import ConfigError
from raybal.models.classifier import ModelSettings, build_classifier
from raybal.models.encoders import EncoderSettings, build_encoder
from raybal.models.fusion import FUSIONS

IMAGE = Modality("image", "image", (3, 40, 40), "uint8", (120.0,) * 3, (50.0,) * 3)
SEQUENCE = Modality("sequence", "sequence", (9, 5), "float32", (0.0,) * 5, (1.0,) * 5)
SOUND = Modality("audio", "audio", (1, 32, 48), "float16", (-3.0,), (2.0,))


def forward(classifier, items, present=None):
    inputs = {m: torch.from_numpy(a) for m, a in items.inputs.items()}
    return classifier(inputs, torch.from_numpy(items.present) if present is None else present)


@pytest.mark.parametrize(
    ("modality", "name"),
    [
        (AUDIO, "cnn"),
        (VIDEO, "cnn"),
        (IMAGE, "cnn"),
        (SOUND, "resnet18"),
        (VIDEO, "resnet18"),
        (IMAGE, "resnet18"),
        (SOUND, "conformer"),
        (SEQUENCE, "conformer"),
        (SEQUENCE, "mlp"),
        (OMICS[0], "mlp"),
    ],
)
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_every_encoder_gives_tokens_and_gradients(modality, name, norm):
    encoder = build_encoder(modality, EncoderSettings(name=name, dim=12, norm=norm))
    items = make_items(3, (modality,))
    tokens = encoder(torch.from_numpy(items.inputs[modality.name]))
    assert tokens.shape[0] == 3
    assert tokens.shape[2] == 12
    assert tokens.dtype == torch.float32
    if modality.kind == "video":
        assert tokens.shape[1] == modality.shape[0]
    tokens.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_an_encoder_that_does_not_take_a_kind_is_refused():
    with pytest.raises(
        ConfigError, match=r"model\.encoders\.a\.name: 'resnet18' does not take features; choose one of mlp"
    ):
        build_encoder(OMICS[0], EncoderSettings(name="resnet18"))


def test_weights_of_torchvision_are_loaded_from_a_local_file(tmp_path):
    theirs = torchvision.models.resnet18(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pt")
    save_file(theirs.state_dict(), tmp_path / "resnet18.safetensors")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = torch.nn.Sequential(*list(theirs.eval().children())[:-2])(x)
    for file in ("resnet18.pt", "resnet18.safetensors"):
        settings = EncoderSettings(name="resnet18", dim=512, norm="batch", weights=str(tmp_path / file))
        encoder = build_encoder(IMAGE, settings).eval()
        with torch.no_grad():
            torch.testing.assert_close(encoder.backbone.network(x), expected)
    # A spectrogram has one channel: the first convolution sees what it would of a grey picture.
    mono = build_encoder(
        SOUND, EncoderSettings(name="resnet18", norm="batch", weights=str(tmp_path / "resnet18.pt"))
    ).eval()
    with torch.no_grad():
        gray = torch.randn(2, 1, 64, 64)
        expected = torch.nn.Sequential(*list(theirs.children())[:-2])(gray.expand(-1, 3, -1, -1))
        torch.testing.assert_close(mono.backbone.network(gray), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("content", [None, b"not weights"])
def test_weights_that_cannot_be_read_name_the_key_and_the_file(tmp_path, content):
    file = tmp_path / "w.pt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.encoders\.image\.weights: .*w\.pt"):
        build_encoder(IMAGE, EncoderSettings(name="resnet18", weights=str(file)))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("modalities", [(AUDIO,), (AUDIO, VIDEO), OMICS])
def test_a_missing_modality_has_no_influence(fusion, modalities):
    """Whatever stands in the place of a missing modality, the prediction is that with it masked."""
    classifier = make_classifier(modalities, fusion=fusion).eval()
    items, other = make_items(5, modalities), make_items(5, modalities, seed=8)
    present = torch.ones(5, len(modalities), dtype=torch.bool)
    present[1:4, 0] = False
    with torch.no_grad():
        whole = forward(classifier, items)
        masked = classifier.fuse(whole.fusion_inputs, present)
        items.inputs[modalities[0].name][1:4] = other.inputs[modalities[0].name][1:4]
        missing = forward(classifier, items, present)
    torch.testing.assert_close(missing.logits, masked)
    torch.testing.assert_close(missing.logits[[0, 4]], whole.logits[[0, 4]])
    assert not missing.embeddings[modalities[0].name][1:4].any()
    if len(modalities) > 1:
        assert not torch.allclose(missing.logits[1:4], whole.logits[1:4])


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_partial_logits_sum_to_the_fused_logits(fusion):
    classifier = make_classifier(fusion=fusion)
    output = forward(classifier, make_items(4))
    parts = classifier.fusion.partial_logits(output.embeddings)
    torch.testing.assert_close(sum(parts.values()), output.logits)


def test_concat_is_one_linear_layer_on_the_concatenation():
    classifier = make_classifier()
    output = forward(classifier, make_items(4))
    weight = torch.cat([classifier.fusion.parts[m].weight for m in ("audio", "video")], 1)
    joined = torch.cat([output.embeddings[m] for m in ("audio", "video")], 1)
    torch.testing.assert_close(output.logits, joined @ weight.T + classifier.fusion.bias)


@pytest.mark.parametrize("sizes", [(4, 6), (4, 6, 5)])
def test_gated_and_film_take_the_modalities_in_their_sources_order(sizes):
    """The first gates, or scales and shifts, the second; of three, the first two act on the last in turn."""
    dims = dict(zip("abc", sizes, strict=False))
    z = {m: torch.randn(7, d) for m, d in dims.items()}
    *first, last = dims
    present = torch.ones(7, len(dims), dtype=torch.bool)
    film, gated = FUSIONS["film"](dims, 3), FUSIONS["gated"](dims, 3)
    modulated = z[last]
    for m in first:
        both = film.modulate[m](z[m])
        modulated = both[:, : dims[last]] * modulated + both[:, dims[last] :]
    torch.testing.assert_close(film(z, present), film.classify(modulated))
    hidden = gated.parts[last](z[last])
    for m in first:
        hidden = torch.sigmoid(gated.parts[m](z[m])) * hidden
    torch.testing.assert_close(gated(z, present), gated.classify(hidden))


@pytest.mark.parametrize("fusion", ["concat", "mlp"])
def test_slices_start_as_one_layer_on_the_concatenation(fusion):
    dims = {"a": 48, "b": 80}
    head = FUSIONS[fusion](dims, 50)
    layer = torch.nn.Linear(128, len(head.bias))
    bound = float(layer.weight.detach().abs().max())
    for part in head.parts.values():
        assert 0.95 * bound < float(part.weight.detach().abs().max()) < 1.05 * bound
        assert float(part.weight.detach().std()) == pytest.approx(float(layer.weight.detach().std()), rel=0.1)
    assert 0.5 * bound < float(head.bias.detach().abs().max()) < 1.05 * bound


@pytest.mark.parametrize("name", ["resnet18", "cnn"])
def test_batch_norm_trains_on_one_row_of_one_position(name):
    """A last batch, or a worker's part of one, may be a single small image."""
    tiny = Modality("image", "image", (3, 4, 4), "uint8", (120.0,) * 3, (50.0,) * 3)
    encoder = build_encoder(tiny, EncoderSettings(name=name, norm="batch")).train()
    encoder(torch.randint(0, 255, (8, 3, 4, 4)).float())
    *_, last = (layer for layer in encoder.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    before = last.running_mean.clone()
    one = torch.randint(0, 255, (1, 3, 4, 4)).float()
    tokens = encoder(one)
    tokens.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())
    assert torch.equal(last.running_mean, before)
    encoder(one.repeat(2, 1, 1, 1))
    assert not torch.equal(last.running_mean, before)


def test_encoding_leaves_the_heads_out(monkeypatch):
    classifier = make_classifier().eval()
    items = make_items(4)
    whole = forward(classifier, items)
    monkeypatch.setattr(classifier, "fuse", None)
    monkeypatch.setattr(classifier, "unimodal_logits", None)
    inputs = {m: torch.from_numpy(a) for m, a in items.inputs.items()}
    encoded = Predictor(classifier).encode(inputs, torch.from_numpy(items.present))
    assert all(torch.equal(encoded.embeddings[m], whole.embeddings[m]) for m in ("audio", "video"))


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(0)
    first = make_classifier().state_dict()
    state = torch.get_rng_state()
    again = make_classifier().state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[k], again[k]) for k in first)
    other = build_classifier((AUDIO, VIDEO), 3, ModelSettings(encoder=EncoderSettings(dim=8, width=4)), seed=2)
    assert not torch.equal(first["fusion.bias"], other.state_dict()["fusion.bias"])


def test_an_encoder_for_a_modality_that_is_not_there_is_refused():
    settings = ModelSettings(encoders={"adio": EncoderSettings()})
    with pytest.raises(ConfigError, match=r"model\.encoders\.adio: the pool has no such modality.*'audio'"):
        build_classifier((AUDIO, VIDEO), 3, settings, seed=0)
