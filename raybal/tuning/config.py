"""Settings of a sweep."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raybal.balancing.base import METHODS, BalancingSettings
from raybal.begun import Kind
from raybal.errors import ConfigError, did_you_mean
from raybal.models.classifier import ModelSettings
from raybal.resources import ResourceSettings
from raybal.rows import Rows
from raybal.settings import Settings, from_plain, setting
from raybal.training.settings import TrainSettings
from raybal.tuning.spaces import GROUPS, Dimension

BEGUN = Kind("sweep", format=1, hint="give the old value, or choose another store, or another name for a row")
#: What rows are called that a sweep adds itself: after the names of others.
PUBLISHED, CONSTANT = "published", "constant"
GENERATED = (f"-{PUBLISHED}", f"-{CONSTANT}")
#: Where files of a sweep are written.
FOLDERS = ("trials", "rows", "tuned")
ROWS = Rows("sweep", "methods", "balancing", "method", METHODS)
DEFAULT_METHODS = ["multi_loss", "mlb"]


@dataclass(frozen=True)
class StoppingSettings(Settings):
    """Which trials end early: asynchronous successive halving over epochs."""

    grace: int | None = setting(
        None,
        ge=1,
        help="epochs before which no trial is stopped; none: a third of them, and not before the method has begun",
    )
    reduction: float = setting(2.0, gt=1, help="of so many trials that reach a rung one goes on")
    off: bool = setting(False, help="train all trials to the end")


@dataclass(frozen=True)
class RetuneSettings(Settings):
    """Tuning inside a loop, on the labels that there are: the settings found hold until they are tuned again. Trials
    begin with fresh weights, whatever train.round_start is."""

    every: int | None = setting(None, ge=1, help="rounds between tunings; none: never")
    share: float = setting(0.5, gt=0, lt=1, help="share of the loop's time so far that tuning may have")
    trials: int = setting(16, ge=2, help="trials of a tuning at most; the settings in force are the first")
    seeds: int = setting(
        3,
        ge=1,
        help="seeds over which the best trial has to beat the settings in force, that of the trials among them",
    )
    search: list[str] = setting(
        factory=lambda: ["method", "pace", "learning_rate", "weight_decay"], help="what is searched, as in jobs/tune.py"
    )
    space: dict[str, Any] = setting(factory=dict, help="ranges by key, as in jobs/tune.py")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_groups(self.search)
        check_space(self.space)
        if "fusion" in self.search or any(key.startswith("model.") for key in self.space):
            raise ConfigError("search, space: a loop keeps its model; leave fusion and model out")


@dataclass(frozen=True)
class PopulationSettings(Settings):
    """Schedules by population: members train side by side; every few epochs the worst take over the state of the best,
    and change how strongly the method goes on to act. The schedule of the best is then trained from scratch, beside the
    best constant strength of as many trials."""

    members: int = setting(0, ge=0, help="members, in place of `trials` and `stopping`; 0: trials that Optuna suggests")
    scheduler: Literal["pbt", "pb2"] = setting(
        "pbt", help="how strengths change: at random (PBT), or as a Gaussian process suggests (PB2)"
    )
    interval: int | None = setting(None, ge=1, help="epochs between takeovers; none: a fifth of them")
    share: float = setting(0.25, gt=0, le=0.5, help="share of the members that take over, and that are taken over")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.members and self.members * self.share < 1:
            raise ConfigError(
                f"members: {self.members} is not accepted; with share {self.share:g} there must be at least "
                f"{math.ceil(1 / self.share)}, so that one takes over"
            )


@dataclass(frozen=True)
class LoopTrialSettings(Settings):
    """Whole loops as trials: what is searched is how labels are spent. A trial is a simulated loop; it is worth its
    area under the curve: the mean validation accuracy over the labels asked for, from the largest of the sizes on. All
    are run to the end, in one process each."""

    label_budget: int = setting(0, ge=0, help="items that a loop asks for; 0: trials are training runs")
    strategies: list[str] = setting(
        factory=lambda: ["random", "margin", "badge", "bmmal"],
        help="query strategies to choose from; methods are chosen from `methods`. The first of each is the baseline",
    )
    sizes: list[int] = setting(factory=lambda: [30, 60], help="items asked for in a round, to choose from")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strategies:
            raise ConfigError("strategies: there must be at least one")
        if not self.sizes or min(self.sizes) < 1:
            raise ConfigError(f"sizes: {self.sizes} is not accepted; give numbers above 0")
        if self.label_budget and max(self.sizes) > self.label_budget:
            raise ConfigError(
                f"sizes: {max(self.sizes)} is not accepted; a loop asks for {self.label_budget} items in all "
                "(label_budget)"
            )


@dataclass(frozen=True)
class TuneConfig(Settings):
    """Finds coefficients, pace and training settings of balancing methods on a labelled pool, every method with the
    same number of trials, epochs and seeds.

    Trials are suggested by Optuna, the published settings first, judged on validation, and stopped early when others
    are ahead. The best few of each method are trained with more seeds, and the best of these with fresh seeds, beside
    the published settings; test items are looked at then, once. The settings found are YAML files that jobs/train.py
    and jobs/al_loop.py take. The same command continues a sweep, and it may be given more trials and methods later.

      python jobs/tune.py                                          mlb beside multi_loss on the built-in pool
      python jobs/tune.py --methods joint,multi_loss,mlb,ogm_ge --trials 32
      python jobs/tune.py --space '{train.weight_decay: 1e-4, balancing.alpha: {kind: uniform, low: 1, high: 3}}'
      python jobs/tune.py --store runs/schedule --methods mlb --population.members 8
      python jobs/tune.py --store runs/loops --loop.label-budget 300 --loop.strategies random,margin,bmmal
      python jobs/al_loop.py --config runs/tune/tuned/mlb.yaml

    Keys marked * may change when a sweep is continued; all others define it.
    """

    pool: str = setting(
        "demo", defines=False, help="prepared pool with labels, a folder or URI; demo: the built-in pool"
    )
    store: str = setting("runs/tune", defines=False, help="folder or URI that keeps everything of the sweep")
    seed: int = setting(0, ge=0, help="of suggestions, splits and the items drawn")
    methods: list[str] = setting(
        factory=lambda: list(DEFAULT_METHODS),
        defines=False,
        help="methods that are tuned, or names of your own for settings under `balancing`",
    )
    trials: int = setting(32, ge=1, defines=False, help="trials of each method; may grow when a sweep is continued")
    finalists: int = setting(3, ge=1, defines=False, help="best trials of each method that are trained with more seeds")
    finalist_seeds: int = setting(
        3, ge=1, help="seeds that finalists are compared over, that of their trial among them"
    )
    seeds: int = setting(5, ge=0, defines=False, help="fresh seeds of the final table; 0: no table")
    search: list[str] = setting(
        factory=lambda: ["method", "pace", "learning_rate", "weight_decay"],
        help=f"what is searched, of {', '.join(GROUPS)}; paces: a pace for each modality, where a method can have "
        "them. Where loops are trials, methods are chosen as they are",
    )
    space: dict[str, Any] = setting(
        factory=dict,
        help="ranges by key of a row's settings, in place of those declared or beside them: '{KEY: {kind: uniform, "
        "low: L, high: H}}' (or loguniform, int), '{KEY: {values: [A, B]}}', each with `when: {OTHER: [A]}` if it "
        "depends on another; a plain value fixes a key",
    )
    objective: Literal["accuracy", "both"] = setting(
        "accuracy",
        help="accuracy on validation, or also the balance gap: the largest minus the smallest ratio of an encoder's "
        "probe to that of the same encoder trained alone (it is measured in any case)",
    )
    population: PopulationSettings = setting(factory=PopulationSettings, help="schedules by population")
    loop: LoopTrialSettings = setting(factory=LoopTrialSettings, help="whole loops as trials")
    stopping: StoppingSettings = setting(factory=StoppingSettings, help="which trials end early")
    items: int | None = setting(None, ge=2, help="labelled training items that each seed draws; none: all")
    validation_share: float = setting(
        0.2, gt=0, lt=1, help="share of whole groups that validates where the pool has no validation split"
    )
    model: ModelSettings = setting(factory=ModelSettings, help="the model")
    balancing: dict[str, BalancingSettings] = setting(
        factory=dict, defines=False, help="settings of a row of the sweep, its method included"
    )
    train: TrainSettings = setting(factory=TrainSettings, help="how a model is trained")
    resources: ResourceSettings = setting(factory=ResourceSettings, help="what may be used of the cluster")

    @classmethod
    def complete(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        return ROWS.complete(content, DEFAULT_METHODS)

    def __post_init__(self) -> None:
        super().__post_init__()
        ROWS.check(self.methods)
        _ = self.dimensions
        check_groups(self.search)
        check_space(self.space, ("train.epochs", "train.round_start") if self.loop.label_budget else ())
        for row in self.methods:
            if row.endswith(GENERATED):
                raise ConfigError(
                    f"methods: {row!r} is not accepted; names that end like this are of rows that a sweep adds itself"
                )
        if (self.stopping.grace or 0) > self.train.epochs:
            raise ConfigError(
                f"stopping.grace: {self.stopping.grace} is not accepted; a run has {self.train.epochs} epochs "
                "(train.epochs)"
            )
        if self.population.members and (self.population.interval or 1) >= self.train.epochs:
            raise ConfigError(
                f"population.interval: {self.population.interval or 1} is not accepted; nobody would take over in a "
                f"run of {self.train.epochs} epochs (train.epochs)"
            )
        if self.population.members and self.objective != "accuracy":
            raise ConfigError("objective: 'both' is not accepted; members of a population are compared by accuracy")
        if self.population.members and self.train.num_workers:
            raise ConfigError("train.num_workers: members of a population train in one process each; leave it at 0")
        if self.loop.label_budget:
            self._check_loops()
        if self.train.round_start != "fresh" and not self.loop.label_budget:
            raise ConfigError("train.round_start: a sweep has no rounds; leave it at fresh")

    def _check_loops(self) -> None:
        if self.population.members:
            raise ConfigError("population.members: loops are no population; give this, or loop.label_budget")
        if self.objective != "accuracy":
            raise ConfigError("objective: loops are compared by accuracy alone")
        if self.items is not None:
            raise ConfigError("items: a loop asks for its items itself; give loop.label_budget")
        if self.train.num_workers:
            raise ConfigError("train.num_workers: loops run in one process each; leave it at 0")

    def check_typed(self, given: Mapping[str, Any]) -> None:
        ROWS.check_typed(given, self.methods)

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """The ranges of `space`.

        Raises:
            ConfigError: one is none.
        """
        return {key: from_plain(Dimension, _dimension(value), f"space.{key}") for key, value in self.space.items()}

    def settings_of(self, row: str) -> BalancingSettings:
        """Returns the balancing settings of a row."""
        return ROWS.settings_of(row, self.balancing)


def check_space(space: Mapping[str, Any], but: Sequence[str] = ()) -> None:
    """Checks that ranges leave alone what is the same for all trials.

    Raises:
        ConfigError: one does not.
    """
    for key in ("train.epochs", "train.num_workers", "train.device", "train.round_start"):
        if key in space and key not in but:
            raise ConfigError(f"space.{key}: all trials have the same; give --{key.replace('_', '-')}")


def check_groups(search: Sequence[str]) -> None:
    """Checks what is searched.

    Raises:
        ConfigError: there is no such group.
    """
    for group in search:
        if group not in GROUPS:
            raise ConfigError(
                f"search: {group!r} is not accepted; choose of {', '.join(GROUPS)}{did_you_mean(group, GROUPS)}"
            )


def _dimension(value: Any) -> Any:
    """Returns a range as its settings have it: a plain value is a choice of one, and numbers are numbers."""
    if not isinstance(value, Mapping):
        return {"values": [_number(value)]}
    found = dict(value)
    if isinstance(values := found.get("values"), list):
        found["values"] = [_number(v) for v in values]
    if isinstance(when := found.get("when"), Mapping):
        found["when"] = {k: [_number(v) for v in vs] if isinstance(vs, list) else vs for k, vs in when.items()}
    return found


def _number(value: Any) -> Any:
    """Returns text that is a number as one: YAML settings leave fractions as text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value
