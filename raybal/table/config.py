"""Settings of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raybal.balancing.base import METHODS, BalancingSettings
from raybal.data.chunk import Preprocessing
from raybal.data.layouts.base import LayoutSettings
from raybal.errors import ConfigError
from raybal.models.classifier import ModelSettings
from raybal.resources import ResourceSettings
from raybal.rows import Rows
from raybal.settings import Settings, setting
from raybal.training.settings import TrainSettings

ROWS = Rows("table", "methods", "balancing", "method", METHODS)


@dataclass(frozen=True)
class SourceSettings(Settings):
    """What a pool is made of, for tables that begin with the data set; keys are those of `jobs/prepare.py`."""

    input: str | None = setting(
        None, help="manifest, Parquet or folder that `pool` is prepared from first; none: the pool is there"
    )
    layout: LayoutSettings = setting(factory=LayoutSettings, help="the data set that the input is, if it is one")
    preprocessing: Preprocessing = setting(factory=Preprocessing, help="what shapes the tensors")
    test_share: float = setting(
        0.2, ge=0, lt=1, help="share of the items in the test split, where the input has labels but no split"
    )
    max_damage: float = setting(0.05, ge=0, le=1, help="share of damaged items above which an input is refused")


@dataclass(frozen=True)
class TableConfig(Settings):
    """Training on the labelled items of a prepared pool: one run, or a table of balancing methods and seeds.

    Every method gets the same epochs and the same number of trials: each learning rate is tried with the first seed
    and the best on validation is kept, then the other seeds follow. Test items are looked at once a method and seed,
    when all choices are made. The table grows cell by cell; the same command continues it, and it may be given more
    methods and seeds later.

      python jobs/train.py                                                    all methods on the built-in pool
      python jobs/train.py --store runs/one --methods mlb --seeds 1 --learning-rates 0.001     one run
      python jobs/train.py --methods mlb,strong --balancing.strong.method mlb --balancing.strong.alpha 4

    Keys marked * may change when a table is continued, and so may those of `source`, which only make the pool; all
    others define it.
    """

    pool: str = setting(
        "demo", defines=False, help="prepared pool, a folder or URI; demo: the built-in pool of spoken moving digits"
    )
    source: SourceSettings = setting(factory=SourceSettings, defines=False, help="what the pool is made of")
    store: str = setting("runs/table", defines=False, help="folder or URI that keeps everything of the table")
    seed: int = setting(0, ge=0, help="of the split, and of the items drawn; runs have seeds of their own")
    methods: list[str] | None = setting(
        None,
        defines=False,
        help="rows of the table: balancing methods, or names of your own for settings under `balancing`; none: all "
        "methods that take the pool's modalities and the model",
    )
    seeds: int = setting(5, ge=1, defines=False, help="runs of each method")
    learning_rates: list[float] = setting(
        factory=lambda: [3e-4, 1e-3, 3e-3], help="learning rates that every method tries, in place of that of `train`"
    )
    items: int | None = setting(
        None, ge=2, help="labelled training items that each seed draws, the same for all methods; none: all"
    )
    validation_share: float = setting(
        0.2, gt=0, lt=1, help="share of whole groups that validates where the pool has no validation split"
    )
    model: ModelSettings = setting(factory=ModelSettings, help="the model")
    balancing: dict[str, BalancingSettings] = setting(
        factory=dict, defines=False, help="settings of a row of the table, its method included"
    )
    train: TrainSettings = setting(factory=TrainSettings, help="how a model is trained")
    resources: ResourceSettings = setting(factory=ResourceSettings, help="what may be used of the cluster")

    @classmethod
    def complete(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        content = cls._of_one_model(content)
        train = content.get("train")
        for key, instead in (("learning_rate", "give learning_rates"), ("round_start", "a table has no rounds")):
            if isinstance(train, Mapping) and key in train:
                raise ConfigError(f"train.{key}: {train[key]!r} is not looked at by a table; {instead}")
        return ROWS.complete(content, METHODS.names())

    @staticmethod
    def _of_one_model(content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns settings of a single model, as a sweep writes them and a loop takes them, as those of one row."""
        balancing, train = content.get("balancing"), content.get("train")
        if not isinstance(balancing, Mapping) or not isinstance(method := balancing.get("method"), str):
            return content
        found = {**content, "balancing": {method: balancing}}
        if found.get("methods") is None:
            found["methods"] = [method]
        if isinstance(train, Mapping) and "learning_rate" in train:
            found["train"] = {key: value for key, value in train.items() if key != "learning_rate"}
            found.setdefault("learning_rates", [train["learning_rate"]])
        return found

    def __post_init__(self) -> None:
        super().__post_init__()
        ROWS.check(METHODS.names() if self.methods is None else self.methods)
        if not self.learning_rates:
            raise ConfigError("learning_rates: there must be at least one")
        # Folders are named by them.
        names = {f"{rate:g}" for rate in self.learning_rates}
        if len(names) < len(self.learning_rates) or min(self.learning_rates) <= 0:
            raise ConfigError(f"learning_rates: {self.learning_rates} is not accepted; give different ones above 0")

    def check_typed(self, given: Mapping[str, Any]) -> None:
        ROWS.check_typed(given, list(self.balancing))

    def settings_of(self, row: str) -> BalancingSettings:
        """Returns the balancing settings of a row."""
        return ROWS.settings_of(row, self.balancing)
