"""Fusion heads: what the encoders found -> fused logits.

A missing or masked modality enters as zeros in place of its embedding (Shen et al., ACM MM 2023, do the same), so
one rule gives both missing data and the masked predictions that contributions are made of. The transformer leaves
masked tokens out of its attention instead.

`slices` names, for each modality, the parameters that belong to it alone ("the modality's slice of the fusion
layer"): methods that scale a modality's gradients scale these too, and never the shared rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn


class Fusion(nn.Module, ABC):
    """Base of the fusion heads.

    Args:
        dims: embedding size of each modality, in order.
        classes: number of classes.
    """

    name: ClassVar[str]
    takes_tokens: ClassVar[bool] = False
    #: Whether modalities in another order give the same predictions.
    symmetric: ClassVar[bool] = True

    def __init__(self, dims: Mapping[str, int], classes: int) -> None:
        super().__init__()
        self.modalities = tuple(dims)

    @abstractmethod
    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Maps fusion inputs ({m: [B, d_m]}, or {m: [B, L_m, d_m]} where `takes_tokens`) and a mask bool [B, M] to
        logits [B, C]."""

    def slices(self) -> dict[str, list[nn.Parameter]]:
        """Returns the parameters that belong to one modality alone."""
        return {m: [] for m in self.modalities}

    def partial_logits(self, embeddings: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Returns each modality's share of the logits {m: [B, C]} (their sum is the fused logits), or None if the
        fusion is not additive."""
        return None

    def linear_weights(self) -> dict[str, Tensor] | None:
        """Returns weights {m: [C, d_m]} such that the logits are sum_m W_m z_m and a constant, or None if the fusion
        is not linear."""
        return None


class EmbeddingFusion(Fusion):
    """Base of the fusion heads that see one embedding a modality."""

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        embeddings = [torch.where(present[:, i, None], inputs[m], 0.0) for i, m in enumerate(self.modalities)]
        return self.combine(embeddings)

    @abstractmethod
    def combine(self, embeddings: list[Tensor]) -> Tensor:
        """Maps masked embeddings [B, d_m], one a modality, to logits [B, C]."""


def _linears(dims: Mapping[str, int], size: int, bias: bool) -> nn.ModuleDict:
    return nn.ModuleDict({m: nn.Linear(d, size, bias=bias) for m, d in dims.items()})


def one_linear(dims: Mapping[str, int], size: int) -> tuple[nn.ModuleDict, nn.Parameter]:
    """Returns one linear layer on the concatenated embeddings as one bias-free layer a modality and a shared bias.

    Their initial bounds follow the total size, not each part's: what one layer on the concatenation starts from.
    """
    parts = _linears(dims, size, bias=False)
    bound = sum(dims.values()) ** -0.5
    for part in parts.values():
        nn.init.uniform_(part.weight, -bound, bound)  # type: ignore[arg-type]
    return parts, nn.Parameter(torch.empty(size).uniform_(-bound, bound))


def _parameters(layers: nn.ModuleDict) -> dict[str, list[nn.Parameter]]:
    return {m: list(layer.parameters()) for m, layer in layers.items()}


class Concat(EmbeddingFusion):
    """One linear layer on the concatenated embeddings, kept as one bias-free layer a modality and a shared bias."""

    name = "concat"

    def __init__(self, dims: Mapping[str, int], classes: int) -> None:
        super().__init__(dims, classes)
        self.parts, self.bias = one_linear(dims, classes)

    def combine(self, embeddings: list[Tensor]) -> Tensor:
        return sum((self.parts[m](z) for m, z in zip(self.modalities, embeddings, strict=True)), self.bias)

    def slices(self) -> dict[str, list[nn.Parameter]]:
        return _parameters(self.parts)

    def partial_logits(self, embeddings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        share = self.bias / len(self.modalities)
        return {m: self.parts[m](embeddings[m]) + share for m in self.modalities}

    def linear_weights(self) -> dict[str, Tensor]:
        return {m: weight for m, (weight, *_) in _parameters(self.parts).items()}


class Sum(EmbeddingFusion):
    """The sum of one linear classifier a modality, each with its own bias (the OGM-GE repository's sum fusion)."""

    name = "sum"

    def __init__(self, dims: Mapping[str, int], classes: int) -> None:
        super().__init__(dims, classes)
        self.parts = _linears(dims, classes, bias=True)

    def combine(self, embeddings: list[Tensor]) -> Tensor:
        first, *others = (self.parts[m](z) for m, z in zip(self.modalities, embeddings, strict=True))
        return sum(others, first)

    def slices(self) -> dict[str, list[nn.Parameter]]:
        return _parameters(self.parts)

    def partial_logits(self, embeddings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: self.parts[m](embeddings[m]) for m in self.modalities}

    def linear_weights(self) -> dict[str, Tensor]:
        return {m: weight for m, (weight, *_) in _parameters(self.parts).items()}


class MLP(EmbeddingFusion):
    """A hidden layer on the concatenation (kept as one slice a modality), ReLU, and a linear classifier."""

    name = "mlp"

    def __init__(self, dims: Mapping[str, int], classes: int) -> None:
        super().__init__(dims, classes)
        hidden = max(dims.values())
        self.parts, self.bias = one_linear(dims, hidden)
        self.classify = nn.Linear(hidden, classes)

    def combine(self, embeddings: list[Tensor]) -> Tensor:
        hidden = sum((self.parts[m](z) for m, z in zip(self.modalities, embeddings, strict=True)), self.bias)
        return self.classify(torch.relu(hidden))

    def slices(self) -> dict[str, list[nn.Parameter]]:
        return _parameters(self.parts)


class FiLM(EmbeddingFusion):
    """Feature-wise linear modulation (Perez et al., AAAI 2018): the first modality gives scale and shift of the
    second, as in the OGM-GE repository. Of more than two, every modality but the last scales and shifts the last
    one's embedding, in order. No parameter belongs to one modality alone."""

    name = "film"
    symmetric = False

    def __init__(self, dims: Mapping[str, int], classes: int) -> None:
        super().__init__(dims, classes)
        *conditions, last = dims
        self.modulate = nn.ModuleDict({m: nn.Linear(dims[m], 2 * dims[last]) for m in conditions})
        self.classify = nn.Linear(dims[last], classes)

    def combine(self, embeddings: list[Tensor]) -> Tensor:
        *conditions, result = embeddings
        for m, z in zip(self.modalities[:-1], conditions, strict=True):
            scale, shift = self.modulate[m](z).chunk(2, dim=1)
            result = scale * result + shift
        return self.classify(result)


class Gated(EmbeddingFusion):
    """The last modality's projection, gated by the sigmoid of each other's: of two, the first gates the second, as in
    the OGM-GE repository (Kiela et al., AAAI 2018); the gates of more than two are multiplied."""

    name = "gated"
    symmetric = False

    def __init__(self, dims: Mapping[str, int], classes: int) -> None:
        super().__init__(dims, classes)
        self.parts = _linears(dims, max(dims.values()), bias=True)
        self.classify = nn.Linear(max(dims.values()), classes)

    def combine(self, embeddings: list[Tensor]) -> Tensor:
        *gates, result = (self.parts[m](z) for m, z in zip(self.modalities, embeddings, strict=True))
        for gate in gates:
            result = torch.sigmoid(gate) * result
        return self.classify(result)

    def slices(self) -> dict[str, list[nn.Parameter]]:
        return _parameters(self.parts)


class Transformer(Fusion):
    """Two transformer layers over a class token and all modalities' tokens, with a learned mark a modality. No
    parameter belongs to one modality alone."""

    name = "transformer"
    takes_tokens = True

    def __init__(self, dims: Mapping[str, int], classes: int) -> None:
        super().__init__(dims, classes)
        size = max(dims.values())
        size += -size % 4
        self.project = nn.ModuleDict({m: nn.Linear(d, size) for m, d in dims.items()})
        self.marks = nn.ParameterDict({m: nn.Parameter(0.02 * torch.randn(size)) for m in dims})
        self.class_token = nn.Parameter(0.02 * torch.randn(size))
        layer = nn.TransformerEncoderLayer(size, 4, 2 * size, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(size)
        self.classify = nn.Linear(size, classes)

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        batch = len(present)
        tokens = [self.class_token.expand(batch, 1, -1)]
        ignored = [torch.zeros(batch, 1, dtype=torch.bool, device=present.device)]
        for i, m in enumerate(self.modalities):
            projected = self.project[m](inputs[m]) + self.marks[m]
            tokens.append(projected)
            ignored.append(~present[:, i, None].expand(-1, projected.shape[1]))
        hidden = self.layers(torch.cat(tokens, 1), src_key_padding_mask=torch.cat(ignored, 1))
        return self.classify(self.norm(hidden[:, 0]))


FUSIONS: dict[str, type[Fusion]] = {f.name: f for f in (Concat, Sum, MLP, FiLM, Gated, Transformer)}
