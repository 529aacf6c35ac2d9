"""Encoders: one modality's tensor -> tokens and a pooled embedding.

Every encoder standardises its input with the pool's statistics and returns tokens [B, L, d]: time steps, frames or
positions, which a transformer fusion attends to. Their mean is the pooled embedding [B, d] that all else uses.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybal.data.schema import Modality
from raybal.errors import ConfigError
from raybal.settings import Settings, setting


@dataclass(frozen=True)
class EncoderSettings(Settings):
    """One modality's encoder."""

    name: Literal["auto", "cnn", "resnet18", "conformer", "mlp"] = setting(
        "auto",
        help="auto takes cnn for audio, video and image, conformer for sequence, mlp for features",
    )
    dim: int = setting(64, ge=1, help="size of the embedding (resnet18 without projection has 512)")
    width: int = setting(16, ge=1, help="channels of the first cnn layer, or hidden size of mlp and conformer / 4")
    layers: int = setting(2, ge=1, help="conformer blocks or hidden mlp layers")
    norm: Literal["group", "batch"] = setting(
        "group", help="normalisation of cnn and resnet18; batch statistics differ between workers, group does not"
    )
    dropout: float = setting(0.0, ge=0, lt=1, help="dropout before the embedding")
    weights: str | None = setting(None, help="local file of torch or safetensors weights for the backbone")


class Standardise(nn.Module):
    """Subtracts the pool's mean and divides by its standard deviation, in float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        shape = modality.statistics_shape()
        self.register_buffer("mean", torch.tensor(modality.mean, dtype=torch.float32).reshape(shape))
        self.register_buffer("std", torch.tensor(modality.std, dtype=torch.float32).reshape(shape).clamp(min=1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) / self.std


class Encoder(nn.Module):
    """Standardise -> backbone (images to token maps) -> linear projection to the embedding size.

    Args:
        modality: what comes in.
        backbone: maps [B, ...] to tokens [B, L, features].
        features: size of the backbone's tokens.
        dim: size of the embedding; equal to `features`, the projection is left out.
    """

    def __init__(self, modality: Modality, backbone: nn.Module, features: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.standardise = Standardise(modality)
        self.backbone = backbone
        self.project = nn.Identity() if features == dim else nn.Linear(features, dim)
        self.dropout = nn.Dropout(dropout)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Maps items [B, *shape] to tokens [B, L, dim]."""
        return self.dropout(self.project(self.backbone(self.standardise(x))))


class FrameWise(nn.Module):
    """Runs a 2-D network on each frame of a video [B, T, C, H, W], or on an image or spectrogram [B, C, H, W].

    A video's tokens are its frames, an audio clip's its time steps, an image's its columns.

    Args:
        network: maps images to feature maps.
        flatten: whether the positions that are not tokens (rows and columns of a frame, bands of a spectrogram) keep
            features of their own, as a small network needs, or are averaged.
    """

    def __init__(self, network: nn.Module, *, flatten: bool) -> None:
        super().__init__()
        self.network = network
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 5:
            batch, frames = x.shape[:2]
            maps = self.network(x.flatten(0, 1))
            features = maps.flatten(1) if self.flatten else maps.mean(dim=(2, 3))
            return features.unflatten(0, (batch, frames))
        maps = self.network(x)
        return (maps.flatten(1, 2) if self.flatten else maps.mean(dim=2)).transpose(1, 2)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that can train on one row.

    A batch, or a worker's part of it, may be one row, and a deep network may leave one position of a small image:
    one value a channel has no spread to normalise by. The running statistics then stand in, and are left as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def _norm(kind: str, channels: int) -> nn.Module:
    return BatchNorm(channels) if kind == "batch" else nn.GroupNorm(min(8, channels), channels)


def small_cnn(channels: int, width: int, norm: str) -> tuple[nn.Module, int]:
    """Returns four strided 3x3 convolutions and the number of channels that come out."""
    widths = [channels, width, 2 * width, 4 * width, 4 * width]
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        stride = 1 if i == 3 else 2
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), _norm(norm, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers), widths[-1]


def resnet18(channels: int, norm: str) -> tuple[nn.Module, int]:
    """Returns torchvision's ResNet-18 without its head, its first convolution fitted to the number of channels."""
    # Here and below: importing torchvision or torchaudio takes seconds, which every worker of every round would pay.
    import torchvision

    layer: Callable[..., nn.Module] = BatchNorm if norm == "batch" else (lambda c: nn.GroupNorm(32, c))
    network = torchvision.models.resnet18(weights=None, norm_layer=layer)
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    stages = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return nn.Sequential(OrderedDict((name, getattr(network, name)) for name in stages)), 512


class Conformer(nn.Module):
    """torchaudio's Conformer over time: audio [B, 1, mels, T] or sequences [B, T, d]."""

    def __init__(self, features: int, width: int, layers: int) -> None:
        import torchaudio

        super().__init__()
        self.embed = nn.Linear(features, width)
        self.conformer = torchaudio.models.Conformer(
            input_dim=width,
            num_heads=4,
            ffn_dim=4 * width,
            num_layers=layers,
            depthwise_conv_kernel_size=15,
            use_group_norm=True,
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            x = x.squeeze(1).transpose(1, 2)
        lengths = torch.full((len(x),), x.shape[1], device=x.device)
        return self.conformer(self.embed(x), lengths)[0]


class MLP(nn.Module):
    """Hidden layers on a feature vector [B, d] or on each step of a sequence [B, T, d]."""

    def __init__(self, features: int, width: int, layers: int) -> None:
        super().__init__()
        sizes = [features] + [width] * layers
        blocks: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            blocks += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU(inplace=True)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x if x.dim() == 3 else x.unsqueeze(1))


_AUTO = {"audio": "cnn", "video": "cnn", "image": "cnn", "sequence": "conformer", "features": "mlp"}
_TAKES = {
    "cnn": ("audio", "video", "image"),
    "resnet18": ("audio", "video", "image"),
    "conformer": ("audio", "sequence"),
    "mlp": ("sequence", "features"),
}


def build_encoder(modality: Modality, settings: EncoderSettings) -> Encoder:
    """Returns the encoder that the settings name for a modality.

    Raises:
        ConfigError: the encoder does not take this kind of modality, or its weights do not fit.
    """
    name = _AUTO[modality.kind] if settings.name == "auto" else settings.name
    if modality.kind not in _TAKES[name]:
        takes = ", ".join(k for k, kinds in _TAKES.items() if modality.kind in kinds)
        raise ConfigError(
            f"model.encoders.{modality.name}.name: {name!r} does not take {modality.kind}; choose one of {takes}"
        )
    network: nn.Module
    if name == "cnn":
        network, features = small_cnn(modality.shape[-3], settings.width, settings.norm)
    elif name == "resnet18":
        network, features = resnet18(modality.shape[-3], settings.norm)
    elif name == "conformer":
        features = 4 * settings.width
        size = modality.shape[-2] if modality.kind == "audio" else modality.shape[-1]
        network = Conformer(size, features, settings.layers)
    else:
        features = 4 * settings.width
        network = MLP(modality.shape[-1], features, settings.layers)
    if settings.weights is not None:
        _load_weights(network, settings.weights, f"model.encoders.{modality.name}.weights")
    backbone = network
    if name in ("cnn", "resnet18"):
        backbone = FrameWise(network, flatten=name == "cnn")
        # In eval mode: looking must not touch batch statistics.
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(1, *modality.shape)).shape[-1]
        backbone.train()
    return Encoder(modality, backbone, features, settings.dim, settings.dropout)


def _load_weights(network: nn.Module, file: str, key: str) -> None:
    """Loads a local state dict. A classifier head (`fc.*`) in the file is left out; a first convolution made for
    colour is summed over its channels where the modality has one."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise ConfigError(f"{key}: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(f"{key}: {path} is not a readable torch or safetensors file: {error}") from error
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    own = network.state_dict()
    first = state.get("conv1.weight")
    if first is not None and "conv1.weight" in own and own["conv1.weight"].shape[1] == 1 < first.shape[1]:
        state["conv1.weight"] = first.sum(dim=1, keepdim=True)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(f"{key}: the weights in {path} do not fit: {error}") from error
