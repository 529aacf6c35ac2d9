"""Greedy: conditional utilisation rates rebalanced while training.

Wu, Jastrzebski, Cho and Geras, "Characterizing and Overcoming the Greedy Nature of Learning in Multi-modal Deep
Neural Networks", ICML 2022; its gates are those of Vaezi Joze et al., "MMTM: Multimodal Transfer Module for CNN
Fusion", CVPR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raybal.balancing.base import Context
from raybal.balancing.paced import PacedMethod, PacedSettings
from raybal.data.batches import Batch
from raybal.models.classifier import Classifier, Output
from raybal.models.fusion import Fusion, one_linear
from raybal.settings import setting

TINY = 1e-30


@dataclass(frozen=True)
class GreedySettings(PacedSettings):
    """Settings of conditional-utilisation rebalancing. Published: epsilon 0.01, window 5, from the second epoch."""

    method: str = setting("greedy", help="balancing method")
    epsilon: float = setting(
        0.01,
        ge=0,
        help="difference of conditional learning speeds (in powers of ten) above which a modality is held back",
        search={"kind": "loguniform", "low": 0.001, "high": 0.1},
    )
    window: int = setting(
        5,
        ge=1,
        help="steps for which a modality is held back each time",
        search={"kind": "choice", "values": [2, 5, 10]},
    )
    starting_epoch: int = setting(1, ge=0, help="epochs before the first rebalancing; speeds are summed up meanwhile")


class Greedy(PacedMethod):
    """Lets modalities gate each other's channels, and takes a modality's gates away while it leans on them too fast.

    A modality's embedding is multiplied by gates in (0, 1) that all modalities' embeddings decide. Its conditional
    learning speed is log10 of how fast its gates learn over how fast its encoder does, each the sum over steps of
    |gradient|^2 / |weights|^2. When the speeds differ by more than epsilon, the modality with the highest gets its mean
    gates so far, the same for every item, for a window of steps: it then has to learn from its own input. Trained on
    the fused loss.

    Departures from the released code: one gate, on the embeddings (or tokens) that enter the fusion, instead of one
    after each of three stages of a ResNet pair, so that every encoder, fusion and number of modalities can have it and
    a masked modality gates nobody; a modality's mean gates are its own, of the steps before and of training alone,
    where the released code keeps the first modality's for both and goes on in evaluation; of more than two modalities
    the fastest is held back if it differs from the slowest. Under the pace a held-back modality's gates lie between its
    own and the mean ones. A modality that many items lack looks fast, since the part of the gates that all share learns
    without it; a step without it does not count.
    """

    name = "greedy"
    Settings = GreedySettings
    settings: GreedySettings

    def __init__(self, settings: GreedySettings, modalities: tuple[str, ...], classes: int) -> None:
        super().__init__(settings, modalities, classes)
        # |gradient|^2 / |weights|^2 summed over steps: row 0 of the gates, row 1 of the encoders.
        self._speeds = torch.zeros(2, len(modalities), dtype=torch.float64)
        self._held = torch.tensor(-1)
        self._left = torch.tensor(0)
        self._sums: Tensor | None = None
        self._reduced: Callable[[], Tensor] | None = None

    def extend(self, classifier: Classifier) -> None:
        classifier.fusion = Gates(classifier.fusion, classifier.dims)

    def step(self, ctx: Context, batches: list[Batch]) -> Tensor:
        held = torch.arange(len(self.modalities), device=ctx.device) == self._held.to(ctx.device)
        _gates(ctx).held.copy_(held * self.strengths(ctx))
        ctx.record("held_back", held.double())
        return super().step(ctx, batches)

    def after_forward(self, ctx: Context, output: Output, batch: Batch, last: bool) -> None:
        super().after_forward(ctx, output, batch, last)
        rows = batch.weights[:, None] * output.present
        sums = [torch.cat([rows[:, i] @ g.to(rows), rows[:, i].sum()[None]]) for i, g in enumerate(_gates(ctx).last)]
        flat = torch.cat(sums)
        self._sums = flat if self._sums is None else self._sums + flat
        if last:
            self._reduced = ctx.workers.all_reduce(self._sums)

    def after_backward(self, ctx: Context) -> None:
        super().after_backward(ctx)
        assert self._reduced is not None
        seen = _gates(ctx).remember(self._reduced())
        self._sums = self._reduced = None
        # Nothing here waits for the device: all decisions are tensors.
        self._speeds, self._held, self._left = (x.to(ctx.device) for x in (self._speeds, self._held, self._left))
        speeds = self._speeds + self._learning(ctx) * seen
        holding = self._left > 0
        # While a modality is held back its gates say nothing about speed.
        self._speeds = torch.where(holding, self._speeds, speeds)
        relative = torch.log10(self._speeds[0].clamp(min=TINY) / self._speeds[1].clamp(min=TINY))
        ctx.record("conditional_speed", relative)
        started = ctx.epoch >= self.settings.starting_epoch
        # One that no batch has had yet has no speed, and no mean gates to be held with.
        known = _gates(ctx).steps > 0
        highest = torch.where(known, relative, -math.inf)
        lowest = torch.where(known, relative, math.inf).amin()
        biased = (highest.amax() - lowest > self.settings.epsilon) & (known.sum() > 1) & started
        fresh = torch.where(biased, self.settings.window, 0)
        self._left = torch.where(holding, self._left - 1, fresh)
        fastest = torch.where(holding, self._held, highest.argmax())
        self._held = torch.where(self._left > 0, fastest, -1)

    def _learning(self, ctx: Context) -> Tensor:
        """Returns |gradient|^2 / |weights|^2 of each modality's gates and of its own path, [2, M]."""
        module = _gates(ctx)
        rows = [
            [
                _speed([*module.squeeze.parameters(), module.squeeze_bias, *module.excite[m].parameters()])
                for m in self.modalities
            ],
            [_speed([*ctx.groups[m].encoder, *ctx.groups[m].fusion_slice]) for m in self.modalities],
        ]
        return torch.stack([torch.stack(row) for row in rows])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"speeds": self._speeds, "held": self._held, "left": self._left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._speeds, self._held, self._left = state["speeds"], state["held"], state["left"]


class Gates(Fusion):
    """A fusion whose inputs are gated channel by channel, as all modalities together decide.

    Attributes:
        held: [M], how far each modality's gates are replaced by their mean so far, in [0, 1]; in training only.
        means, steps: mean gates over all training steps so far, all modalities' channels one after the other, and the
            number of steps of each modality.
        last: of the last training batch, gates [B, d_m] of each modality, detached.
    """

    held: Tensor
    means: Tensor
    steps: Tensor

    def __init__(self, inner: Fusion, dims: Mapping[str, int]) -> None:
        super().__init__(dims, 1)
        self.inner = inner
        self.takes_tokens = inner.takes_tokens  # type: ignore[misc]
        self.dims = dict(dims)
        total = sum(dims.values())
        size = max(total // 2, 1)
        self.squeeze, self.squeeze_bias = one_linear(dims, size)
        self.excite = nn.ModuleDict({m: nn.Linear(size, d) for m, d in dims.items()})
        self.register_buffer("held", torch.zeros(len(dims)))
        self.register_buffer("means", torch.zeros(total))
        self.register_buffer("steps", torch.zeros(len(dims)))
        self.last: list[Tensor] = []

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        pooled = {m: x.mean(dim=1) if self.takes_tokens else x for m, x in inputs.items()}
        seen = {m: torch.where(present[:, i, None], pooled[m], 0.0) for i, m in enumerate(self.modalities)}
        squeezed = torch.relu(sum((self.squeeze[m](z) for m, z in seen.items()), self.squeeze_bias))
        gates = {m: torch.sigmoid(self.excite[m](squeezed)) for m in self.modalities}
        if self.training:
            self.last = [gate.detach() for gate in gates.values()]
            means = self.means.split(list(self.dims.values()))
            for held, mean, (m, gate) in zip(self.held, means, list(gates.items()), strict=True):
                gates[m] = torch.lerp(gate, mean.to(gate).expand_as(gate), held.to(gate))
        gated = {m: inputs[m] * (gate[:, None] if self.takes_tokens else gate) for m, gate in gates.items()}
        return self.inner(gated, present)

    @torch.no_grad()
    def remember(self, sums: Tensor) -> Tensor:
        """Takes a step into the means: the sums of each modality's gates over the rows that have it, each followed by
        the number of these rows. Returns which modalities the batch has, bool [M]."""
        means, had = [], []
        parts = sums.split([d + 1 for d in self.dims.values()])
        for i, (old, part) in enumerate(zip(self.means.split(list(self.dims.values())), parts, strict=True)):
            seen = (part[-1] > 0).to(old)
            self.steps[i] += seen
            had.append(part[-1] > 0)
            means.append(old + seen * (part[:-1] / part[-1].clamp(min=1) - old) / self.steps[i].clamp(min=1))
        self.means.copy_(torch.cat(means))
        return torch.stack(had)

    def slices(self) -> dict[str, list[nn.Parameter]]:
        return self.inner.slices()


def _gates(ctx: Context) -> Gates:
    fusion = ctx.classifier.fusion
    assert isinstance(fusion, Gates)
    return fusion


@torch.no_grad()
def _speed(parameters: Sequence[nn.Parameter]) -> Tensor:
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), dtype=torch.float64, device=parameters[0].device)
    squares = [torch.stack(torch._foreach_norm(list(part))).double().square().sum() for part in (gradients, parameters)]
    return squares[0] / squares[1].clamp(min=TINY)
