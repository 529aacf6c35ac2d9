"""Settings of a study."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raybal.balancing.base import METHODS, BalancingSettings
from raybal.config import LoopConfig
from raybal.errors import ConfigError
from raybal.models.classifier import ModelSettings
from raybal.querying.base import STRATEGIES, QuerySettings
from raybal.resources import ResourceSettings
from raybal.rows import Rows
from raybal.settings import Settings, setting
from raybal.training.settings import TrainSettings

#: What others are compared with.
BASELINE = "random"
DEFAULT_STRATEGIES = (BASELINE, "entropy", "margin", "bald", "coreset", "typiclust", "badge", "bmmal")
DEFAULT_METHODS = ("multi_loss", "mlb")
#: What strategies cannot have for themselves, and what to do.
SHARED = {
    "size": "give --size",
    "initial_size": "give --initial-size",
    "initial": "the first query is random",
    "initial_features": "the first query is random",
    "explain": "nobody looks at its queries",
}
STRATEGY_ROWS = Rows("study", "strategies", "query", "strategy", STRATEGIES)
METHOD_ROWS = Rows("study", "methods", "balancing", "method", METHODS)


@dataclass(frozen=True)
class StudyConfig(Settings):
    """Compares query strategies: simulated active learning on a labelled pool, every strategy with every method and
    seed. A seed's first query is the same for all. Loops run side by side, each in one process; the same command
    continues a study, and it may be given more strategies, methods and seeds later.

      python jobs/study.py --seeds 3                                        on the built-in pool
      python jobs/study.py --strategies random,bmmal,both --query.both.strategy bmmal --query.both.modulate both
    """

    pool: str = setting("demo", help="prepared pool with labels, a folder or URI; demo: the built-in pool")
    store: str = setting("runs/study", help="folder or URI that keeps everything of the study")
    strategies: list[str] = setting(
        factory=lambda: list(DEFAULT_STRATEGIES),
        help="query strategies, or names of your own for settings under `query`",
    )
    methods: list[str] = setting(
        factory=lambda: list(DEFAULT_METHODS),
        help="balancing methods that models are trained with, or names of your own for settings under `balancing`",
    )
    seeds: int = setting(5, ge=1, help="loops of each strategy and method")
    label_budget: int = setting(300, ge=2, help="items asked for in each loop")
    size: int = setting(60, ge=1, help="items asked for in each round")
    initial_size: int | None = setting(None, ge=1, help="items of the first, random round; none: as `size`")
    query: dict[str, QuerySettings] = setting(factory=dict, help="settings of a strategy, its name included")
    balancing: dict[str, BalancingSettings] = setting(factory=dict, help="settings of a method, its name included")
    model: ModelSettings = setting(factory=ModelSettings, help="the model")
    train: TrainSettings = setting(factory=TrainSettings, help="how a model is trained in each round")
    resources: ResourceSettings = setting(factory=ResourceSettings, help="what may be used of the cluster")

    @classmethod
    def complete(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        for name, own in (content.get("query") or {}).items():
            for key in SHARED:
                if isinstance(own, Mapping) and key in own:
                    raise ConfigError(
                        f"query.{name}.{key}: all strategies of a study have the same {key}; {SHARED[key]}"
                    )
        content = STRATEGY_ROWS.complete(content, DEFAULT_STRATEGIES)
        return METHOD_ROWS.complete(content, DEFAULT_METHODS)

    def __post_init__(self) -> None:
        super().__post_init__()
        STRATEGY_ROWS.check(self.strategies)
        METHOD_ROWS.check(self.methods)
        if self.label_budget <= (first := self.initial_size or self.size):
            raise ConfigError(
                f"label_budget: {self.label_budget} is not accepted; the first, random query has {first} items, and "
                "strategies begin after it"
            )
        if self.train.num_workers:
            raise ConfigError("train.num_workers: a study's loops run in one process each; leave it at 0")

    def check_typed(self, given: Mapping[str, Any]) -> None:
        STRATEGY_ROWS.check_typed(given, self.strategies)
        METHOD_ROWS.check_typed(given, self.methods)

    def loop(self, strategy: str, method: str, seed: int, store: str) -> LoopConfig:
        """Returns the settings of one loop."""
        query = STRATEGY_ROWS.settings_of(strategy, self.query)
        return LoopConfig(
            pool=self.pool,
            store=store,
            seed=seed,
            label_budget=self.label_budget,
            model=self.model,
            balancing=METHOD_ROWS.settings_of(method, self.balancing),
            train=self.train,
            query=dataclasses.replace(query, size=self.size, initial_size=self.initial_size, explain=False),
            resources=self.resources,
        )
