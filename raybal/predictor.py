"""Saving and loading what a trained method predicts with."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from raybal import hashing
from raybal.balancing.base import METHODS, BalancingMethod, BalancingSettings, Predictor
from raybal.data.schema import Modality
from raybal.models.classifier import Classifier, ModelSettings, build_classifier
from raybal.settings import from_plain
from raybal.store import Store


@dataclasses.dataclass(frozen=True)
class PredictorSpec:
    """All that is needed to build a model and its method, without weights.

    Attributes:
        modalities: of the pool.
        classes: class names.
        model, balancing: settings.
        seed: of the initial weights.
    """

    modalities: tuple[Modality, ...]
    classes: tuple[str, ...]
    model: ModelSettings
    balancing: BalancingSettings
    seed: int

    def build(self) -> tuple[Classifier, BalancingMethod]:
        """Returns the classifier with its initial weights, and the method."""
        classifier = build_classifier(self.modalities, len(self.classes), self.model, self.seed)
        names = tuple(m.name for m in self.modalities)
        method = METHODS.get(self.balancing.method)(self.balancing, names, len(self.classes))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hashing.digest("extend", self.seed))
            method.extend(classifier)
        return classifier, method


def save_predictor(
    store: Store, name: str, spec: PredictorSpec, tensors: dict[str, torch.Tensor], **facts: Any
) -> None:
    """Writes a predictor as one safetensors file that says how to build it.

    Args:
        tensors: the model's, under "model." as checkpoints have them.
        facts: plain values to keep beside it.
    """
    content = dataclasses.asdict(spec)
    # The weights are in this file; those that training started from are not needed again.
    for encoder in (content["model"]["encoder"], *content["model"]["encoders"].values()):
        encoder["weights"] = None
    store.write_tensors(name, tensors, {"spec": content, **facts})


def load_predictor(store: Store, name: str, device: torch.device | str = "cpu") -> tuple[Predictor, dict[str, Any]]:
    """Returns (predictor in eval mode, the facts saved beside it)."""
    tensors, metadata = store.read_tensors(name)
    classifier, method = from_plain(PredictorSpec, metadata.pop("spec")).build()
    classifier.load_state_dict({key.removeprefix("model."): value for key, value in tensors.items()})
    return method.predictor(classifier.to(device).eval()), metadata
