"""What strategies share that choose by the predictor's embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raybal.balancing.base import Predictor
from raybal.errors import ConfigError, did_you_mean
from raybal.querying.base import EMBEDDING, Candidates, Holder, QuerySettings, QueryStrategy, Scored, finite, gather
from raybal.settings import setting

JOINT = "joint"


@dataclass(frozen=True)
class EmbeddingSettings(QuerySettings):
    """Settings of strategies that choose by embeddings."""

    features: str = setting(JOINT, help="joint: of all modalities, one beside the other; or the name of one modality")
    unit: bool = setting(
        True, help="scale each modality's embedding to length 1, so that none decides by its size alone"
    )


def check_features(key: str, features: str, predictor: Predictor) -> None:
    """Checks whose embeddings are chosen by.

    Args:
        key: of the setting, for the message.
        features: its value.
        predictor: that gives the embeddings.

    Raises:
        ConfigError: it is neither "joint" nor one of the modalities.
    """
    names = (JOINT, *predictor.classifier.modalities)
    if features not in names:
        raise ConfigError(
            f"{key}: {features!r} is not accepted; choose one of {', '.join(names)}{did_you_mean(features, names)}"
        )


class EmbeddingStrategy(QueryStrategy):
    """Chooses in the space of embeddings."""

    Settings = EmbeddingSettings
    settings: EmbeddingSettings

    def check(self, predictor: Predictor) -> None:
        check_features("query.features", self.settings.features, predictor)

    def embeddings(self, candidates: Candidates, ids: list[str]) -> tuple[Holder, Tensor]:
        """Returns (a holder of some candidates, their embeddings float32 [n, D]), in the order of these ids.

        Raises:
            RaybalError: an embedding is not finite; the message names the item.
        """
        held = gather(candidates, ids, [EMBEDDING])
        return held, torch.from_numpy(finite(held, EMBEDDING)).float() if ids else torch.zeros(0, 0)

    def columns(self, predictor: Predictor, scored: Scored) -> dict[str, Tensor]:
        chosen = self.settings.features
        parts = [z for m, z in scored.encoded.embeddings.items() if chosen in (JOINT, m)]
        return {EMBEDDING: torch.cat([F.normalize(z.float(), dim=1) if self.settings.unit else z for z in parts], 1)}
