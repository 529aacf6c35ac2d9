"""Diagnosing & Re-learning: encoders that learn a modality by heart are pulled back towards where they began.

Wei, Li, Feng and Hu, "Diagnosing and Re-learning for Balanced Multimodal Learning", ECCV 2024 (arXiv 2407.09705).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from raybal import hashing
from raybal.analysis.separability import purity as purity
from raybal.analysis.separability import separability
from raybal.balancing.base import Context
from raybal.balancing.looking import Seen, look, part_of
from raybal.balancing.paced import PacedMethod, PacedSettings
from raybal.data.batches import Items
from raybal.errors import ConfigError, DivergedError, RaybalError
from raybal.settings import setting

log = logging.getLogger(__name__)

INITIAL = "initial."
#: Held-out items a class below which chance moves purities by much.
ENOUGH = 10
PAPER: dict[str, Any] = {"match_sizes": False, "max_items": None, "buffers": "keep", "optimizer_state": "keep"}


@dataclass(frozen=True)
class DiagnosingRelearningSettings(PacedSettings):
    """Settings of Diagnosing & Re-learning. Published for CREMA-D: scale 3, every 20 of 90 epochs, three times; scale 5
    for UCF101. BalanceBenchmark: every 15 of 30 epochs, so once."""

    method: str = setting("diagnosing_relearning", help="balancing method")
    scale: float = setting(
        3.0,
        gt=0,
        help="lambda: how fast the pull grows with the purity gap, tanh(scale * gap)",
        search={"kind": "loguniform", "low": 0.5, "high": 10.0},
    )
    interval: int = setting(
        20,
        ge=1,
        help="epochs between diagnoses; leave as many after the last one",
        search={"kind": "choice", "values": [5, 10, 15, 20, 30]},
    )
    times: int = setting(3, ge=0, help="largest number of diagnoses", search={"kind": "int", "low": 1, "high": 5})
    holdout_share: float = setting(
        0.11, gt=0, lt=1, help="share of the labelled training items that separability is compared on, not trained on"
    )
    preset: Literal["none", "paper"] = setting(
        "none",
        help="paper: match_sizes false, max_items none, buffers and optimizer_state keep, as the authors released it",
    )
    match_sizes: bool = setting(
        True,
        help="whether both parts are clustered with equally many items: a smaller part looks purer by chance alone",
    )
    max_items: int | None = setting(
        100_000,
        ge=1,
        help="largest part that is clustered, drawn by class: 10,000 items give a standard error of purity of at most "
        "0.005; none: all",
    )
    restarts: int = setting(10, ge=1, help="starts of k-means; a single one moves purity by several points")
    buffers: Literal["keep", "interpolate", "reset"] = setting(
        "keep", help="running statistics of the encoder's batch norm: kept as published, mixed like weights, or initial"
    )
    optimizer_state: Literal["keep", "scale", "reset"] = setting(
        "keep",
        help="momentum of the pulled weights: kept as published (the next steps push back), scaled by 1 - strength, or "
        "forgotten",
    )

    published = ({"scale": 5.0},)

    @classmethod
    def complete(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        content = super().complete(content)
        if content.get("preset") == "paper":
            _check_preset({name: content[name] for name in PAPER if name in content})
        return content

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset == "paper":
            defaults = {f.name: f.default for f in dataclasses.fields(self)}
            _check_preset({name: own for name in PAPER if (own := getattr(self, name)) != defaults[name]})
            # What is kept and shown of a run is what holds.
            for name, value in PAPER.items():
                object.__setattr__(self, name, value)

    def begins(self, epochs: int) -> int:
        # The first diagnosis follows the epoch after the interval.
        return max(super().begins(epochs), min(self.interval + 1, epochs))

    @classmethod
    def search_space(cls, epochs: int, given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Intervals are those of the published 90 epochs, as shares of the run."""
        space = super().search_space(epochs, given)
        intervals = sorted({_share(n, epochs) for n in space["interval"]["values"]})
        return {**space, "interval": {"kind": "choice", "values": intervals}}

    def for_run(self, epochs: int) -> DiagnosingRelearningSettings:
        # An interval that was given is meant for this run.
        published = type(self)(method=self.method).interval
        return dataclasses.replace(self, interval=_share(published, epochs)) if self.interval == published else self


def _share(interval: int, epochs: int) -> int:
    """Returns an interval of the published 90 epochs as the same share of a run."""
    return max(1, round(interval * epochs / 90))


def _check_preset(given: Mapping[str, Any]) -> None:
    """Raises a ConfigError where preset paper would overrule what is given."""
    for name, value in given.items():
        if value != PAPER[name]:
            raise ConfigError(f"{name}: preset paper has {PAPER[name]!r}, and {value!r} is given; leave one out")


class DiagnosingRelearning(PacedMethod):
    """Compares how separable a modality's classes are on trained and on held-out items, and mixes its encoder with its
    initial weights by the gap.

    Separability is the purity of k-means clusters of the embeddings, k the number of classes. A large gap means an
    encoder that has learnt its items by heart: its weights become strength * initial + (1 - strength) * weights. A
    small gap, of a modality that is well learnt or has little to tell, changes little. Trained on the fused loss.

    It acts before an epoch, after the last one's model was validated and kept, so that weights that were just pulled
    are never the ones chosen; it never looks at validation items. All workers diagnose together, and their weights are
    compared afterwards. Departures from the released code: encoders are chosen as modules, not by parts of parameter
    names; parts have equal sizes and several starts (see `preset`); a diagnosis needs as many held-out items of a
    modality as there are classes, and is left out with a warning below that.
    """

    name = "diagnosing_relearning"
    Settings = DiagnosingRelearningSettings
    settings: DiagnosingRelearningSettings

    def __init__(self, settings: DiagnosingRelearningSettings, modalities: tuple[str, ...], classes: int) -> None:
        super().__init__(settings, modalities, classes)
        self._fired = 0
        self._initial: dict[str, Tensor] = {}

    @property
    def holdout_share(self) -> float:
        return self.settings.holdout_share

    def setup(self, ctx: Context) -> None:
        due = [e for e in range(ctx.epochs - 1) if is_due(e, self.settings.interval, self.settings.times, 0)]
        due = due[: self.settings.times]
        if ctx.workers.rank == 0 and ctx.held_out is not None and not due:
            log.warning(
                "diagnosing_relearning: no diagnosis in %d epochs with balancing.interval %d and balancing.times %d: "
                "this is joint training",
                ctx.epochs,
                self.settings.interval,
                self.settings.times,
            )
        if ctx.workers.rank == 0 and due and ctx.held_out is not None:
            self._warn_of_chance(ctx.held_out)
        if not self._initial:
            self._initial = {name: value.detach().cpu().clone() for name, value in _encoders(ctx).items()}

    def _warn_of_chance(self, held_out: Items) -> None:
        missing = self.classes - len(np.unique(held_out.labels))
        if missing:
            log.warning("diagnosing_relearning: %d classes have no held-out item; purities compare others", missing)
        if len(held_out) < ENOUGH * self.classes:
            gap = (0.25 / len(held_out)) ** 0.5
            log.warning(
                "diagnosing_relearning: %d held-out items for %d classes: by chance alone a gap of about %.2f, so a "
                "strength of about %.2f; more labelled items or a larger balancing.holdout_share help",
                len(held_out), self.classes, gap, reinit_strength(gap, self.settings.scale),
            )  # fmt: skip

    def before_epoch(self, ctx: Context) -> None:
        settings = self.settings
        paced = self.strengths(ctx).cpu()
        if not is_due(ctx.epoch - 1, settings.interval, settings.times, self._fired) or ctx.held_out is None:
            return
        self._fired += 1
        parts = self._parts(ctx)
        found = [self._diagnose(ctx, i, parts) for i in range(len(self.modalities))]
        for name in ("purity_train", "purity_held_out"):
            ctx.record(name, torch.tensor([f[name] for f in found], dtype=torch.float64))
        strengths = paced * torch.tensor([f["strength"] for f in found], dtype=torch.float64)
        ctx.record("reinit_strength", strengths)
        for m, strength in zip(self.modalities, strengths.tolist(), strict=True):
            self._relearn(ctx, m, strength)
        _check_equal(ctx)

    def _parts(self, ctx: Context) -> list[tuple[Seen, Tensor]]:
        """Returns the training part and the held-out one: what this worker's items look like, and which of them each
        modality is diagnosed on, bool [n, M]."""
        assert ctx.held_out is not None
        most, count = self.settings.max_items, len(self.modalities)
        parts = {"held out": ctx.held_out, "train": ctx.train}
        orders = {
            name: p.in_proportion(hashing.digest("diagnose", ctx.seed, ctx.epoch, name)) for name, p in parts.items()
        }
        # Of each modality the items that have it.
        chosen = {name: [o[parts[name].present[o, i]][:most] for i in range(count)] for name, o in orders.items()}
        if self.settings.match_sizes:
            chosen["train"] = [own[: len(out)] for own, out in zip(chosen["train"], chosen["held out"], strict=True)]
        found = []
        for name in ("train", "held out"):
            positions = np.unique(np.concatenate(chosen[name]))
            wanted = np.stack([np.isin(positions, own) for own in chosen[name]], 1)[part_of(ctx, len(positions))]
            found.append((look(ctx, parts[name], positions), torch.from_numpy(wanted).to(ctx.device)))
        return found

    def _diagnose(self, ctx: Context, i: int, parts: list[tuple[Seen, Tensor]]) -> dict[str, float]:
        m = self.modalities[i]
        seed = hashing.digest("k-means", ctx.seed, ctx.epoch, m)
        purities = []
        for part, wanted in parts:
            rows = wanted[:, i]
            try:
                z, labels = part.embeddings[m][rows], part.labels[rows]
                purities.append(separability(z, labels, self.classes, self.settings.restarts, seed, ctx.workers))
            except ArithmeticError as error:
                raise DivergedError(f"epoch {ctx.epoch}: embeddings of {m}: {error}; training has diverged") from error
            except ValueError as error:
                if ctx.workers.rank == 0:
                    log.warning("epoch %d: %s is not diagnosed, since %s", ctx.epoch, m, error)
                return {"purity_train": math.nan, "purity_held_out": math.nan, "strength": 0.0}
        strength = reinit_strength(abs(purities[0] - purities[1]), self.settings.scale)
        if ctx.workers.rank == 0:
            log.info(
                "epoch %d: %s has purity %.3f in training and %.3f held out: pulled back by %.2f",
                ctx.epoch,
                m,
                *purities,
                strength,
            )
        return {"purity_train": purities[0], "purity_held_out": purities[1], "strength": strength}

    @torch.no_grad()
    def _relearn(self, ctx: Context, m: str, strength: float) -> None:
        if strength == 0:
            return
        encoder = ctx.classifier.encoders[m]
        prefix = f"{m}."
        initial = {n.removeprefix(prefix): v for n, v in self._initial.items() if n.startswith(prefix)}
        parameters = dict(encoder.named_parameters())
        soft_reinitialise(parameters, initial, strength)
        if self.settings.buffers != "keep":
            share = strength if self.settings.buffers == "interpolate" else 1.0
            soft_reinitialise(dict(encoder.named_buffers()), initial, share)
        if self.settings.optimizer_state != "keep":
            for parameter in parameters.values():
                _calm(ctx.optimizer, parameter, 0.0 if self.settings.optimizer_state == "reset" else 1 - strength)

    def state_dict(self) -> dict[str, Any]:
        initial = {f"{INITIAL}{name}": value for name, value in self._initial.items()}
        return super().state_dict() | {"fired": self._fired} | initial

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._fired = state["fired"]
        self._initial = {k.removeprefix(INITIAL): v.cpu() for k, v in state.items() if k.startswith(INITIAL)}


def is_due(epoch: int, interval: int, times: int, fired: int) -> bool:
    """Returns whether a diagnosis follows an epoch (counted from 0), of those every `interval` epochs, after `fired`
    of at most `times`."""
    return epoch > 0 and epoch % interval == 0 and fired < times


def reinit_strength(gap: float, scale: float = 3.0) -> float:
    """Returns tanh(scale * gap), in [0, 1) for a purity gap in [0, 1]."""
    return math.tanh(scale * gap)


@torch.no_grad()
def soft_reinitialise(
    current: Mapping[str, Tensor], initial: Mapping[str, Tensor], strength: float
) -> Mapping[str, Tensor]:
    """Mixes tensors with their initial values, in place: strength * initial + (1 - strength) * current.

    Args:
        current: tensors by name; they are changed and returned. Those of whole numbers become initial at strength 1
            and stay as they are below.
        initial: by the same names.
        strength: in [0, 1].
    """
    for name, value in current.items():
        start = initial[name].to(value.device)
        if value.is_floating_point():
            value.mul_(1 - strength).add_(start, alpha=strength)
        elif strength == 1:
            value.copy_(start)
    return current


def _encoders(ctx: Context) -> dict[str, Tensor]:
    named = ctx.classifier.encoders
    return {**dict(named.named_parameters()), **dict(named.named_buffers())}


def _calm(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, share: float) -> None:
    """Keeps a share of an optimizer's momentum of one parameter; at 0 its state starts anew."""
    if share == 0:
        optimizer.state.pop(parameter, None)
        return
    state = optimizer.state.get(parameter, {})
    for key, power in (("momentum_buffer", 1), ("exp_avg", 1), ("exp_avg_sq", 2)):
        if state.get(key) is not None:
            state[key].mul_(share**power)


def _check_equal(ctx: Context) -> None:
    """Compares the workers' encoders, their weights and their buffers.

    Raises:
        RaybalError: they differ.
    """
    # Whole numbers, whose sum does not depend on the order; weighted by position, so that an exchange shows.
    bits = [v.detach().float().flatten().view(torch.int32).long() for v in _encoders(ctx).values()]
    sums = torch.stack([(v * torch.arange(1, len(v) + 1, device=v.device)).sum() for v in bits])
    everyone = ctx.workers.gather(sums)
    if bool((everyone != everyone[0]).any()):
        raise RaybalError("the workers' encoders differ after re-learning: they were not the same before")
