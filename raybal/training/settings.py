"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from raybal.errors import ConfigError
from raybal.settings import Settings, setting


@dataclass(frozen=True)
class TrainSettings(Settings):
    """How a model is trained in each round."""

    epochs: int = setting(30, ge=1, help="passes over the labelled items")
    batch_size: int = setting(
        32, ge=1, help="rows of a batch over all workers: the same batches for any number of them"
    )
    optimizer: Literal["adam", "adamw", "sgd"] = setting("adam", help="optimizer")
    learning_rate: float = setting(1e-3, gt=0, help="highest learning rate")
    weight_decay: float = setting(1e-4, ge=0, help="weight decay (decoupled for adamw)")
    momentum: float = setting(0.9, ge=0, lt=1, help="momentum of sgd, and beta1 of adam and adamw")
    schedule: Literal["constant", "cosine", "step"] = setting("cosine", help="learning rate over epochs")
    warmup_epochs: float = setting(0.0, ge=0, help="linear warm-up")
    decay_every: int = setting(10, ge=1, help="epochs between decays of the step schedule")
    decay_factor: float = setting(0.1, gt=0, le=1, help="factor of each decay of the step schedule")
    clip_norm: float | None = setting(None, gt=0, help="largest gradient norm; none: no clipping")
    accumulate: int = setting(1, ge=1, help="micro-batches a worker cuts its part of a batch into")
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", help="of forward passes; auto is bfloat16 on a GPU and float32 on a CPU"
    )
    keep: Literal["best", "last"] = setting("best", help="which epoch's model is used: best on validation, or last")
    patience: int | None = setting(
        None, ge=1, help="stop after this many epochs without a better validation result; none: never"
    )
    round_start: Literal["fresh", "warm"] = setting(
        "fresh", help="each round starts from the same fresh weights, or from the last round's model"
    )
    num_workers: int = setting(
        0, ge=0, defines=False, help="data-parallel Ray Train workers; 0 trains in the driver's own process"
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", defines=False, help="auto takes a GPU if there is one")

    def resolve_device(self) -> torch.device:
        """Returns the device to train on.

        Raises:
            ConfigError: a GPU is asked for and there is none.
        """
        available = torch.cuda.is_available()
        if self.device == "cuda" and not available:
            raise ConfigError("train.device: 'cuda' is not accepted here; this machine has no GPU that torch can use")
        return torch.device("cuda" if available and self.device != "cpu" else "cpu")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_epochs > self.epochs:
            raise ConfigError(
                f"warmup_epochs: {self.warmup_epochs:g} is not accepted; it must be at most epochs ({self.epochs})"
            )

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Returns the learning rate of a step of the run, counted from 0: a closed form, so that a resumed run needs
        no scheduler state. The last step of the warm-up has the full rate."""
        epoch = step / steps_per_epoch
        if epoch < self.warmup_epochs:
            return self.learning_rate * min((step + 1) / (self.warmup_epochs * steps_per_epoch), 1.0)
        if self.schedule == "cosine":
            done = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        if self.schedule == "step":
            return self.learning_rate * self.decay_factor ** (int(epoch) // self.decay_every)
        return self.learning_rate


def build_optimizer(parameters: list[torch.nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    """Returns the optimizer that the settings name, over all parameters."""
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=settings.momentum, weight_decay=decay)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=rate, betas=(settings.momentum, 0.999), weight_decay=decay)
