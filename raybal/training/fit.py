"""A training run from its first or last checkpointed epoch to its end. No Ray here."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raybal import hashing
from raybal.balancing.base import BalancingMethod, Context, Predictor
from raybal.data.batches import Items, epoch_batches, steps_per_epoch
from raybal.errors import DivergedError
from raybal.models.classifier import Classifier
from raybal.training.checkpoint import Checkpoints, pack, unpack
from raybal.training.evaluate import evaluate
from raybal.training.holdout import hold_out
from raybal.training.settings import TrainSettings, build_optimizer
from raybal.training.step import train_step
from raybal.workers import Workers

log = logging.getLogger(__name__)


@dataclass
class Run:
    """Everything that one training run needs.

    Attributes:
        classifier: with its initial weights.
        method: the balancing method.
        train, validation: labelled items; without validation items the last epoch is the best.
        settings: of the training.
        seed: what batches and dropout depend on.
        checkpoints: where the run's state is kept.
        device: where it runs.
        workers: the process group, or `Workers()` for one process.
        warm: the classifier's state to begin with in place of the initial weights, which methods still see in `setup`.
    """

    classifier: Classifier
    method: BalancingMethod
    train: Items
    validation: Items | None
    settings: TrainSettings
    seed: int
    checkpoints: Checkpoints
    device: torch.device
    workers: Workers = field(default_factory=Workers)
    warm: Mapping[str, Tensor] | None = None


def fit(run: Run, on_epoch: Callable[[dict[str, Any]], None] = lambda record: None) -> dict[str, Any]:
    """Trains until the last epoch or until validation has not improved for `patience` epochs.

    A run that was interrupted continues after its last checkpointed epoch and ends with the same weights.

    Args:
        run: the run; its classifier holds the last epoch's weights afterwards.
        on_epoch: called on every worker with each new epoch's record.

    Returns:
        {"history": one record an epoch, "epoch": the epoch whose model is used}. A record has `epoch`, `loss`,
        `validation`, `seconds`, and the mean over the epoch's steps of all that the method recorded: for a method
        with coefficients `coefficient` and `score` of each modality, and `pace`, the strength in force. Where copies
        were trained too, `rehearsed` is the number of their epochs so far.
    """
    settings, workers = run.settings, run.workers
    ctx = begin(run)
    progress = _resume(run, ctx.optimizer)
    ctx.epoch = len(progress["history"])
    ctx.step = ctx.epoch * steps_per_epoch(len(ctx.train), settings.batch_size)
    run.method.setup(ctx)
    if run.warm is not None and not progress["history"]:
        ctx.classifier.load_state_dict(run.warm)
    earlier = progress["history"][-1].get("rehearsed", 0) if progress["history"] else 0
    while ctx.epoch < settings.epochs and not _stalled(progress, settings.patience):
        record = _epoch(run, ctx)
        if earlier + ctx.rehearsed:
            record["rehearsed"] = earlier + ctx.rehearsed
        progress["history"].append(record)
        score = _score(record)
        if score > tuple(progress["best_score"]):
            progress |= {"best": ctx.epoch, "best_score": list(score)}
        if workers.rank == 0:
            _save(run, ctx, progress)
        workers.barrier()
        on_epoch(record)
    keep_last = settings.keep == "last" or run.validation is None
    return {"history": progress["history"], "epoch": ctx.epoch if keep_last else progress["best"]}


def begin(run: Run) -> Context:
    """Returns what a run's method may use, before its first step."""
    settings, workers = run.settings, run.workers
    classifier = run.classifier.to(run.device)
    optimizer = build_optimizer(list(classifier.parameters()), settings)
    train, held_out = hold_out(run.train, run.method.holdout_share, run.seed)
    if held_out is None and run.method.holdout_share > 0 and workers.rank == 0:
        log.warning("%s: too few labelled items to hold some out, so it measures nothing", run.method.name)
    steps = steps_per_epoch(len(train), settings.batch_size)
    ctx = Context(
        classifier=classifier,
        module=_for_workers(classifier, run),
        optimizer=optimizer,
        groups=classifier.parameter_groups(),
        train=train,
        held_out=held_out,
        device=run.device,
        seed=run.seed,
        workers=workers,
        autocast=_autocast(settings, run.device),
        evaluate=lambda model, items: evaluate(Predictor(model), items, run.device, workers=workers),
        rehearse=lambda method, epochs: _rehearse(run, ctx, method, epochs),
        steps=steps * settings.epochs,
        epochs=settings.epochs,
    )
    return ctx


def _for_workers(classifier: Classifier, run: Run) -> nn.Module:
    if run.workers.world == 1:
        return classifier
    return nn.parallel.DistributedDataParallel(
        classifier,
        device_ids=[run.device] if run.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        # Training reads no running statistics; they are made equal once an epoch.
        broadcast_buffers=False,
    )


def _epoch(run: Run, ctx: Context) -> dict[str, Any]:
    started = time.perf_counter()
    ctx.log = {}
    loss = _train_epoch(run, ctx, run.method)
    validation: dict[str, Any] = {}
    if run.validation is not None:
        predictor = run.method.predictor(ctx.classifier)
        validation = evaluate(predictor, run.validation, run.device, workers=run.workers)
    run.method.after_epoch(ctx)
    return {
        "epoch": ctx.epoch,
        "loss": loss,
        "validation": validation,
        **{name: torch.stack(values).mean(0).tolist() for name, values in ctx.log.items()},
        "seconds": round(time.perf_counter() - started, 3),
    }


def _train_epoch(run: Run, ctx: Context, method: BalancingMethod) -> float:
    """Trains one epoch; returns its mean loss."""
    settings, workers = run.settings, run.workers
    method.before_epoch(ctx)
    # Dropout depends on (seed, epoch, worker) alone, so a resumed epoch repeats exactly.
    torch.manual_seed(hashing.digest("epoch", run.seed, ctx.epoch, workers.rank))
    ctx.classifier.train()
    losses: list[Tensor] = []
    steps = steps_per_epoch(len(ctx.train), settings.batch_size)
    for batches in epoch_batches(
        ctx.train,
        batch_size=settings.batch_size,
        seed=run.seed,
        epoch=ctx.epoch,
        rank=workers.rank,
        world=workers.world,
        accumulate=settings.accumulate,
        device=run.device,
    ):
        rate = settings.learning_rate_at(ctx.step, steps)
        for group in ctx.optimizer.param_groups:
            group["lr"] = rate
        losses.append(train_step(ctx, method, batches, settings.clip_norm))
    loss = workers.all_reduce(torch.stack(losses))().mean()
    ctx.epoch += 1
    # The statistics that batch norm keeps differ between workers; what is validated must be what is saved.
    workers.broadcast(list(ctx.classifier.buffers()))
    if not math.isfinite(loss):
        raise DivergedError(
            f"epoch {ctx.epoch}: the loss is {float(loss)}: training has diverged; a smaller learning rate may help"
        )
    return float(loss)


def _rehearse(run: Run, ctx: Context, method: BalancingMethod, epochs: int) -> Classifier:
    """Trains a copy of the model from where it stands, with a copy of the optimizer's state; see `Context`."""
    classifier = copy.deepcopy(ctx.classifier)
    method.extend(classifier)
    optimizer = build_optimizer(list(classifier.parameters()), run.settings)
    optimizer.load_state_dict(copy.deepcopy(ctx.optimizer.state_dict()))
    own = dataclasses.replace(
        ctx,
        classifier=classifier,
        module=_for_workers(classifier, run),
        optimizer=optimizer,
        groups=classifier.parameter_groups(),
        log={},
    )
    method.setup(own)
    for _ in range(epochs):
        try:
            _train_epoch(run, own, method)
        except DivergedError as error:
            raise DivergedError(f"before epoch {ctx.epoch + 1}, a copy trained by {method.name}: {error}") from error
    ctx.rehearsed += epochs
    return classifier


def _autocast(settings: TrainSettings, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    if settings.precision == "bfloat16" or (settings.precision == "auto" and device.type == "cuda"):
        return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext


def _score(record: dict[str, Any]) -> tuple[float, float]:
    """What "best" compares: accuracy, then likelihood. Without validation every epoch beats the one before."""
    if not record["validation"]:
        return float(record["epoch"]), 0.0
    fused = record["validation"]["fused"]
    return fused["accuracy"], -fused["nll"]


def _stalled(progress: dict[str, Any], patience: int | None) -> bool:
    done = len(progress["history"])
    if patience is None or not done or not progress["history"][-1]["validation"]:
        return False
    return done - progress["best"] >= patience


def _resume(run: Run, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    done = run.checkpoints.epochs("epoch")
    if not done:
        return {"history": [], "best": 0, "best_score": [float("-inf"), float("-inf")]}
    tensors, metadata = run.checkpoints.read("epoch", done[-1])
    run.method.load_state_dict(unpack(tensors, metadata["numbers"], run.classifier, optimizer))
    if run.workers.rank == 0:
        log.info("training continues after its checkpointed epoch %d of %d", done[-1], run.settings.epochs)
    return metadata["progress"]


def _save(run: Run, ctx: Context, progress: dict[str, Any]) -> None:
    tensors, numbers = pack(ctx.classifier, ctx.optimizer, run.method.state_dict())
    model = {name: value for name, value in tensors.items() if name.startswith("model.")}
    # The model before the state that speaks of it: a resumed run must find what its checkpoint calls best. Without
    # validation the best is the last, which the state holds.
    if progress["best"] == ctx.epoch and run.validation is not None:
        run.checkpoints.write("best", ctx.epoch, model, {"epoch": ctx.epoch})
    run.checkpoints.write("epoch", ctx.epoch, tensors, {"numbers": numbers, "progress": progress})
    run.checkpoints.keep_only("epoch", ctx.epoch)
    run.checkpoints.keep_only("best", progress["best"])
