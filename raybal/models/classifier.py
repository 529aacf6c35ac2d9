"""The multimodal classifier: encoders, a unimodal head a modality, and a fusion head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from raybal.data.schema import Modality
from raybal.errors import ConfigError, did_you_mean
from raybal.models.encoders import Encoder, EncoderSettings, build_encoder
from raybal.models.fusion import FUSIONS, Fusion
from raybal.settings import Settings, setting


@dataclass(frozen=True)
class ModelSettings(Settings):
    """The model."""

    fusion: Literal["concat", "sum", "mlp", "film", "gated", "transformer"] = setting(
        "concat", help="how the modalities are joined"
    )
    encoder: EncoderSettings = setting(factory=EncoderSettings, help="the encoder of every modality")
    encoders: dict[str, EncoderSettings] = setting(
        factory=dict, help="encoders of single modalities by name, in place of `encoder`"
    )


@dataclass
class Encoded:
    """What the encoders give.

    Attributes:
        embeddings: pooled, {m: [B, d_m]}; zeros where the modality is missing.
        fusion_inputs: what `fuse` consumes: the embeddings, or tokens {m: [B, L_m, d_m]} for a transformer.
        present: bool [B, M].
    """

    embeddings: dict[str, Tensor]
    fusion_inputs: dict[str, Tensor]
    present: Tensor


@dataclass
class Output(Encoded):
    """What one forward pass gives.

    Attributes:
        unimodal_logits: of each modality's own head, {m: [B, C]}.
        logits: fused, [B, C].
    """

    unimodal_logits: dict[str, Tensor]
    logits: Tensor


@dataclass(frozen=True)
class ParameterGroup:
    """The parameters that belong to one modality: its encoder, its unimodal head, its slice of the fusion."""

    encoder: tuple[nn.Parameter, ...]
    unimodal_head: tuple[nn.Parameter, ...]
    fusion_slice: tuple[nn.Parameter, ...]

    @property
    def all(self) -> tuple[nn.Parameter, ...]:
        """All three together."""
        return self.encoder + self.unimodal_head + self.fusion_slice


class Classifier(nn.Module):
    """Joins encoders, unimodal heads and a fusion head. Any number of modalities from one up.

    `extra` holds the modules that a balancing method owns, by the method's name: they are trained, reduced over
    workers and saved with the rest.

    Args:
        encoders: {m: module that maps [B, *shape] to tokens [B, L, d_m]}, in the order of the modalities.
        dims: {m: d_m}.
        fusion: a fusion head over the same modalities.
        classes: number of classes C.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], dims: Mapping[str, int], fusion: Fusion, classes: int):
        super().__init__()
        self.modalities = tuple(encoders)
        self.dims = dict(dims)
        self.classes = classes
        self.encoders = nn.ModuleDict(encoders)
        self.unimodal_heads = nn.ModuleDict({m: nn.Linear(d, classes) for m, d in dims.items()})
        self.fusion = fusion
        self.extra = nn.ModuleDict()

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor, *, detach_heads: bool = False) -> Output:
        """Classifies items.

        Args:
            inputs: {m: [B, *shape_m]}; zeros where missing.
            present: bool [B, M].
            detach_heads: whether the unimodal heads read detached embeddings, so that their loss trains only them.
        """
        encoded = self.encode(inputs, present)
        read = {m: z.detach() for m, z in encoded.embeddings.items()} if detach_heads else encoded.embeddings
        return Output(
            embeddings=encoded.embeddings,
            fusion_inputs=encoded.fusion_inputs,
            present=present,
            unimodal_logits=self.unimodal_logits(read),
            logits=self.fuse(encoded.fusion_inputs, present),
        )

    def encode(self, inputs: Mapping[str, Tensor], present: Tensor) -> Encoded:
        """Runs the encoders alone, on {m: [B, *shape_m]}, zeros where missing, and present bool [B, M]."""
        tokens = {m: self.encoders[m](inputs[m]) for m in self.modalities}
        embeddings = self._masked({m: x.mean(dim=1) for m, x in tokens.items()}, present)
        return Encoded(embeddings, tokens if self.fusion.takes_tokens else embeddings, present)

    def unimodal_logits(self, embeddings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns each modality's own logits {m: [B, C]} of embeddings {m: [B, d_m]}."""
        return {m: self.unimodal_heads[m](embeddings[m]) for m in self.modalities}

    def pooled(self, fusion_inputs: Mapping[str, Tensor], present: Tensor) -> dict[str, Tensor]:
        """Returns embeddings {m: [B, d_m]} of fusion inputs, zeros where masked (present bool [B, M])."""
        if self.fusion.takes_tokens:
            fusion_inputs = {m: tokens.mean(dim=1) for m, tokens in fusion_inputs.items()}
        return self._masked(fusion_inputs, present)

    def _masked(self, embeddings: Mapping[str, Tensor], present: Tensor) -> dict[str, Tensor]:
        return {m: torch.where(present[:, i, None], embeddings[m], 0.0) for i, m in enumerate(self.modalities)}

    def fuse(self, fusion_inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Returns fused logits [B, C] with some modalities masked (present bool [B, M]), running no encoder."""
        return self.fusion(fusion_inputs, present)

    def parameter_groups(self) -> dict[str, ParameterGroup]:
        """Returns each modality's own parameters; what is in no group is shared."""
        slices = self.fusion.slices()
        return {
            m: ParameterGroup(
                tuple(self.encoders[m].parameters()), tuple(self.unimodal_heads[m].parameters()), tuple(slices[m])
            )
            for m in self.modalities
        }


def build_classifier(modalities: Sequence[Modality], classes: int, settings: ModelSettings, seed: int) -> Classifier:
    """Returns a classifier with fresh weights that depend on the seed alone.

    Raises:
        ConfigError: settings that do not fit the pool's modalities.
    """
    names = [m.name for m in modalities]
    for name in settings.encoders:
        if name not in names:
            raise ConfigError(
                f"model.encoders.{name}: the pool has no such modality; it has {', '.join(names)}"
                f"{did_you_mean(name, names)}"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoders: dict[str, Encoder] = {
            m.name: build_encoder(m, settings.encoders.get(m.name, settings.encoder)) for m in modalities
        }
        dims = {name: encoder.dim for name, encoder in encoders.items()}
        fusion = FUSIONS[settings.fusion](dims, classes)
        return Classifier(encoders, dims, fusion, classes)
