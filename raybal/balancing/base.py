"""What a balancing method is.

A method is one class in one file. It says which loss is trained and what is done to gradients or updates, and it
owns the predictor that scoring and evaluation use. The default training step is enough for most methods.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybal.data.batches import Batch, Items
from raybal.models.classifier import Classifier, Encoded, Output, ParameterGroup
from raybal.registry import Registry
from raybal.settings import Settings, setting
from raybal.workers import Workers


@dataclass(frozen=True)
class BalancingSettings(Settings):
    """What keeps the modalities balanced while training."""

    method: str = setting(help="balancing method")

    #: What published runs set otherwise than the defaults do: the first trials of a tuner, after the defaults.
    published: ClassVar[tuple[dict[str, Any], ...]] = ()

    @classmethod
    def resolve(cls, content: Mapping[str, Any]) -> type[BalancingSettings]:
        return METHODS.settings(content, "method", cls)

    @classmethod
    def search_space(cls, epochs: int, given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Returns what a tuner may search, by key: the ranges that fields declare. A method whose fields trade off
        declares other keys in their place, which `from_search` makes fields of.

        Args:
            epochs: of a training run.
            given: the user's own ranges by key, plain, which stand in place of those returned.
        """
        return {f.name: f.metadata["search"] for f in dataclasses.fields(cls) if f.metadata.get("search")}

    def begins(self, epochs: int) -> int:
        """Returns after how many epochs of a run the method has begun to act."""
        return 0

    def for_run(self, epochs: int) -> BalancingSettings:
        """Returns the settings as a run of so many epochs can have them: what is as published, for a run of another
        length, as the same share of this one."""
        return self

    @classmethod
    def from_search(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns values of searched keys as values of fields."""
        return dict(values)

    @classmethod
    def to_search(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns values of fields together with those of searched keys that they amount to."""
        return dict(values)


@dataclass
class Context:
    """What a method may use during training.

    Attributes:
        classifier: the bare model.
        module: the model as it is to be called (wrapped for data-parallel training).
        optimizer: over all parameters.
        groups: each modality's own parameters.
        train: the items that gradients come from, as `batches` gives them; all of them, on every worker.
        held_out: the training items that the method keeps gradients away from (`holdout_share`); None if it wants none.
        device: where the model runs.
        seed: of this training run.
        workers: this worker's number, how many there are, and sums over them.
        autocast: makes the context in which forward passes run.
        evaluate: measures a model's fused logits and unimodal heads on items, as `raybal.training.evaluate` does; all
            workers take part.
        rehearse: trains a copy of the model, from where it stands, with another method for a number of epochs on the
            batches that come next, and returns the copy; all workers take part, and the run itself does not notice.
        epoch, epochs: epochs done, and those of the whole run.
        rehearsed: epochs that copies were trained for since this run was started or resumed.
        step, steps: steps done in all, and those of the whole run.
    """

    classifier: Classifier
    module: nn.Module
    optimizer: torch.optim.Optimizer
    groups: Mapping[str, ParameterGroup]
    train: Items
    held_out: Items | None
    device: torch.device
    seed: int
    workers: Workers
    autocast: Callable[[], AbstractContextManager[Any]]
    evaluate: Callable[[Classifier, Items], dict[str, Any]]
    rehearse: Callable[[BalancingMethod, int], Classifier]
    steps: int
    epochs: int
    epoch: int = 0
    step: int = 0
    rehearsed: int = 0
    log: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def progress(self) -> float:
        """How much of the training run is done, in [0, 1)."""
        return self.step / max(self.steps, 1)

    def record(self, name: str, value: Tensor) -> None:
        """Keeps a tensor for the epoch's log without waiting for the device."""
        self.log.setdefault(name, []).append(value.detach())


class Predictor:
    """What a trained method predicts with: fused logits of encoded items, with any modalities masked.

    Methods that predict through something else than the classifier's fusion head override `logits`.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier

    def logits(self, fusion_inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Maps fusion inputs and a mask bool [B, M] to logits [B, C]."""
        return self.classifier.fuse(fusion_inputs, present)

    def linear_weights(self) -> dict[str, Tensor] | None:
        """Returns weights {m: [C, d_m]} such that the logits are sum_m W_m z_m and a constant, or None if they are not
        linear in the embeddings."""
        own = type(self).logits is Predictor.logits
        return self.classifier.fusion.linear_weights() if own else None

    @torch.no_grad()
    def encode(self, inputs: Mapping[str, Tensor], present: Tensor) -> Encoded:
        """Runs the encoders once, and nothing else: what `logits` takes, whatever is masked."""
        return self.classifier.encode(inputs, present)


class BalancingMethod:
    """Base of all methods. A subclass sets `name` and `Settings` and overrides what it changes.

    Args:
        settings: of the subclass's own `Settings`.
        modalities: names, in order.
        classes: number of classes.

    Raises:
        ConfigError: the method cannot work with these modalities.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[BalancingSettings]] = BalancingSettings
    #: Whether the unimodal heads are part of the objective. Where they are not, they are trained on detached
    #: embeddings in the same step, so that unimodal accuracy means something for every method.
    trains_unimodal: ClassVar[bool] = False
    #: Checks of `raybal.testing` that do not hold for the method, by name, with the mathematical reason.
    exceptions: ClassVar[Mapping[str, str]] = {}

    @property
    def holdout_share(self) -> float:
        """The share of the training items that gradients must not come from, because the method measures on them.
        Validation items are not for methods: what they have influenced, they cannot judge."""
        return 0.0

    def __init__(self, settings: BalancingSettings, modalities: tuple[str, ...], classes: int) -> None:
        self.settings = settings
        self.modalities = modalities
        self.classes = classes

    def extend(self, classifier: Classifier) -> None:
        """Called once, when the model is built: adds the method's own modules to `classifier.extra`, and freezes what
        it does not train."""

    def setup(self, ctx: Context) -> None:
        """Called once, before the first step of a run or of its resumption; at the start of a run the model still has
        its initial weights, also where the run goes on from another's."""

    def before_epoch(self, ctx: Context) -> None:
        """Called before the first batch of every epoch."""

    def step(self, ctx: Context, batches: list[Batch]) -> Tensor:
        """Runs forward and backward on this worker's micro-batches, leaving reduced gradients in `.grad`.

        Returns:
            The objective's mean over the whole batch on this worker's rows, detached (a scalar; the sum over
            workers is the batch's mean).
        """
        losses = []
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            with no_sync(ctx.module, last):
                with ctx.autocast():
                    output = ctx.module(batch.inputs, batch.present, detach_heads=not self.trains_unimodal)
                    self.after_forward(ctx, output, batch, last)
                loss = self.loss(ctx, output, batch)
                # Data-parallel training averages gradients over workers; the loss is a sum over rows divided by the
                # whole batch's size, so the factor makes the average the whole batch's gradient.
                (loss * ctx.workers.world).backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def loss(self, ctx: Context, output: Output, batch: Batch) -> Tensor:
        """Returns the objective's share of these rows: a sum over rows divided by `batch.total`.

        By default the fused cross-entropy plus one cross-entropy a modality.
        """
        return multi_loss(output, batch)

    def after_forward(self, ctx: Context, output: Output, batch: Batch, last: bool) -> None:
        """Called after each micro-batch's forward pass, in its precision; `last` is true for the last of the step."""

    def after_backward(self, ctx: Context) -> None:
        """Called when the step's gradients are complete, before clipping and the optimizer."""

    def after_optimizer(self, ctx: Context) -> None:
        """Called when the optimizer has stepped."""

    def after_epoch(self, ctx: Context) -> None:
        """Called when an epoch is trained and validated, before it is checkpointed: the weights must stay as they are.
        What changes them between epochs belongs in `before_epoch`."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the tensors and numbers that a resumed run needs; whatever is not here is lost. What predictions
        need belongs in `classifier.extra`."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""

    def predictor(self, classifier: Classifier) -> Predictor:
        """Returns what this method predicts with."""
        return Predictor(classifier)


def no_sync(module: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Returns a context that leaves gradients unreduced until the last micro-batch."""
    if last or not isinstance(module, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return module.no_sync()


def row_losses(logits: Tensor, batch: Batch) -> Tensor:
    """Returns the cross-entropy of each row [B]; 0 for filling rows."""
    return F.cross_entropy(in_full_precision(logits), batch.labels, reduction="none") * batch.weights


def in_full_precision(values: Tensor) -> Tensor:
    """Returns values at least in float32, whatever the precision of the forward pass."""
    return values if values.dtype == torch.float64 else values.float()


def with_gradient(values: Tensor, factor: Tensor | float) -> Tensor:
    """Returns the same values, whose gradient is multiplied by a factor."""
    factor = factor.to(values.dtype) if isinstance(factor, Tensor) else factor
    return values.detach() + factor * (values - values.detach())


def fused_loss(output: Output, batch: Batch) -> Tensor:
    """Returns the fused cross-entropy, summed over rows and divided by the whole batch's size."""
    return row_losses(output.logits, batch).sum() / batch.total


def unimodal_losses(output: Output, batch: Batch) -> dict[str, Tensor]:
    """Returns each head's cross-entropy {m: scalar} on the rows where its modality is present, divided by the whole
    batch's size."""
    return {
        m: (row_losses(logits, batch) * output.present[:, i]).sum() / batch.total
        for i, (m, logits) in enumerate(output.unimodal_logits.items())
    }


def unimodal_loss(output: Output, batch: Batch) -> Tensor:
    """Returns the sum of `unimodal_losses`."""
    return torch.stack(list(unimodal_losses(output, batch).values())).sum()


def multi_loss(output: Output, batch: Batch, weight: float = 1.0) -> Tensor:
    """Returns CE_fused + weight sum_m CE_m."""
    return fused_loss(output, batch) + weight * unimodal_loss(output, batch)


def unimodal_weight() -> Any:
    """Returns the field of settings for the weight of `multi_loss`, which as published is 1."""
    return setting(
        1.0,
        gt=0,
        help="weight of each modality's own loss beside the fused one",
        search={"kind": "loguniform", "low": 0.01, "high": 1.0},
    )


METHODS: Registry[BalancingMethod] = Registry("balancing method", "raybal.balancing", BalancingMethod)
