"""What a training step of each balancing method costs beside one of joint training."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from raybal import memory
from raybal.balancing.base import METHODS, Context
from raybal.balancing.diagnosing_relearning import DiagnosingRelearning, DiagnosingRelearningSettings
from raybal.data.batches import Items, gather
from raybal.data.schema import Modality
from raybal.models.classifier import ModelSettings, build_classifier
from raybal.models.encoders import EncoderSettings
from raybal.store import Store
from raybal.training.checkpoint import Checkpoints
from raybal.training.fit import Run, begin
from raybal.training.settings import TrainSettings
from raybal.training.step import train_step

#: Three frames and a spectrogram, for a pair of ResNet-18: the field's usual comparison.
VIDEO = Modality("video", "video", (3, 3, 112, 112), "uint8", (128.0,) * 3, (64.0,) * 3)
AUDIO = Modality("audio", "audio", (1, 128, 128), "float16", (-2.0,), (3.0,))
CLASSES = 6
BATCH_SIZE = 32
ITEMS = 512
#: Epochs from one diagnosis to the next, over which its cost is spread.
INTERVAL = 20


def bench_methods(names: Sequence[str], seconds: float) -> Iterator[tuple[str, float]]:
    """Times steps of each method and of `joint` on the same model, in turns, each for at least `seconds`.

    Yields:
        (what, value) as they are measured: by method the median of its steps over that of the joint steps between
        them; 1 + the cost of a diagnosis spread over 20 epochs of 512 items, with parts of equal sizes and with all
        items (the paper preset); and at last the median seconds of a joint step.
    """
    memory.keep_freed()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    items = _items(ITEMS)
    joint_seconds = []
    with tempfile.TemporaryDirectory() as folder:
        joint = _Stepper("joint", items, device, folder)
        for name in names:
            if name == "joint":
                continue
            other = _Stepper(name, items, device, folder)
            times: dict[str, list[float]] = {"joint": [], name: []}
            for stepper in (joint, other):
                stepper.step()
            while sum(times[name]) < seconds or len(times[name]) < 5:
                times["joint"].append(joint.step())
                times[name].append(other.step())
            joint_seconds += times["joint"]
            beside = statistics.median(times["joint"])
            yield name, statistics.median(times[name]) / beside
            if name == DiagnosingRelearning.name:
                for what, preset in (("equal parts", "none"), ("all items", "paper")):
                    epochs = INTERVAL * ITEMS / BATCH_SIZE * beside
                    yield f"{name}, {what}", 1 + _diagnosis(other, preset) / epochs
    if joint_seconds:
        yield "joint, seconds", statistics.median(joint_seconds)


class _Stepper:
    """A model with its method, to be stepped and timed."""

    def __init__(self, name: str, items: Items, device: torch.device, folder: str) -> None:
        encoder = EncoderSettings(name="resnet18", dim=512, norm="batch")
        classifier = build_classifier((VIDEO, AUDIO), CLASSES, ModelSettings(encoder=encoder), seed=0)
        cls = METHODS.get(name)
        self.method = cls(cls.Settings(method=name), ("video", "audio"), CLASSES)
        self.method.extend(classifier)
        settings = TrainSettings(batch_size=BATCH_SIZE, optimizer="sgd", schedule="constant", device=device.type)  # type: ignore[arg-type]
        run = Run(classifier, self.method, items, None, settings, 0, Checkpoints(Store(folder), name), device)
        self.ctx: Context = begin(run)
        # What happens between epochs is not part of a step.
        self.ctx.rehearse = lambda method, epochs: self.ctx.classifier
        self.method.setup(self.ctx)
        self.method.before_epoch(self.ctx)
        self.ctx.classifier.train()
        self.batch = gather(items, np.arange(BATCH_SIZE), device)

    def step(self) -> float:
        """Runs one step, or on a GPU several, which run ahead of each other as in training; returns seconds a step."""
        count = 1 if self.ctx.device.type == "cpu" else 10

        def steps() -> None:
            for _ in range(count):
                train_step(self.ctx, self.method, [self.batch])

        return _seconds(steps, self.ctx.device) / count


def _diagnosis(stepper: _Stepper, preset: str) -> float:
    ctx = stepper.ctx
    method = DiagnosingRelearning(
        DiagnosingRelearningSettings(interval=1, preset=preset),  # type: ignore[arg-type]
        ("video", "audio"),
        CLASSES,
    )
    method.setup(ctx)
    ctx.epoch = 2
    return _seconds(lambda: method.before_epoch(ctx), ctx.device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _items(count: int) -> Items:
    generator = np.random.default_rng(0)
    inputs: dict[str, NDArray] = {
        "video": generator.integers(0, 256, (count, *VIDEO.shape), dtype=np.uint8),
        "audio": generator.normal(-2, 3, (count, *AUDIO.shape)).astype(np.float16),
    }
    labels = generator.integers(0, CLASSES, count)
    return Items([f"item-{i:04d}" for i in range(count)], inputs, np.ones((count, 2), bool), labels.astype(np.int64))
