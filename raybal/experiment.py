"""What an experiment is: its identity in the store, what it may still ask for, and what it learns from."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raybal import hashing
from raybal.balancing.base import BalancingSettings
from raybal.begun import Kind
from raybal.config import LoopConfig, defining
from raybal.costs import affordable, item_costs
from raybal.data.batches import Items
from raybal.data.pool import Labelled, Pool, Sidecar
from raybal.data.split import split_validation
from raybal.errors import ConfigError, DataError, shorten
from raybal.labelling.base import Labeller
from raybal.labelling.oracle import Oracle
from raybal.labelling.table import TableLabeller
from raybal.predictor import PredictorSpec
from raybal.querying.base import STRATEGIES, QueryStrategy, QuotaSettings, build_strategy
from raybal.querying.embedding import EmbeddingSettings, check_features
from raybal.querying.random import Random
from raybal.rounds import Round, asked_in, settings_in_force
from raybal.settings import from_plain
from raybal.store import Store
from raybal.training.settings import TrainSettings
from raybal.tuning.spaces import merged

if TYPE_CHECKING:
    from raybal.tuning.trial import Plan

BEGUN = Kind("experiment", format=1)

log = logging.getLogger(__name__)


class Experiment:
    """One experiment over one pool, in one store.

    Everything that settings can get wrong is found out here, before anything is written or asked for: a store begun
    with a wrong setting could not be continued with the right one.

    Args:
        config: its settings.
        store: where it lies.

    Raises:
        ConfigError, DataError, StoreError: it cannot begin, or cannot continue with these settings.
    """

    def __init__(self, config: LoopConfig, store: Store) -> None:
        self.config = config
        self.store = store
        self.pool = Pool(config.pool)
        self.sidecar = Sidecar(config.pool)
        self.classes = self._classes()
        if not len(self.pool.positions_in("train")):
            raise DataError(f"pool {config.pool} has no item in its train split")
        self.config.train.resolve_device()
        self._check_costs()
        self._check_strategies()
        if config.tuning.every is not None:
            self.tuning_plan(store, Round(store, 0))
        self.labeller = self._labeller()
        self._asked_before: dict[int, list[str]] = {}
        for split in ("val", "test"):
            self._labelled(split)
        self._check()

    @property
    def spec(self) -> PredictorSpec:
        """The model and the method; every round starts from the same fresh weights."""
        seed = hashing.digest(self.config.seed, "weights")
        return PredictorSpec(self.pool.info.modalities, self.classes, self.config.model, self.config.balancing, seed)

    def settings_in(self, current: Round) -> tuple[PredictorSpec, TrainSettings]:
        """Returns what a round trains, and how: with what the newest tuning has set."""
        tuned = settings_in_force(current)
        train = dataclasses.replace(self.config.train, **tuned.get("train", {}))
        own = tuned.get("balancing")
        if own is None:
            return self.spec, train
        balancing = from_plain(BalancingSettings, merged(dataclasses.asdict(self.config.balancing), own), "balancing")
        return dataclasses.replace(self.spec, balancing=balancing), train

    def tuning_plan(self, store: Store, current: Round) -> Plan:
        """Returns what a tuning in a round searches.

        Raises:
            ConfigError: there is nothing to search, or a range is not accepted.
        """
        # Ray Tune and Optuna take seconds to import, and most loops do not tune.
        from raybal.tuning.inside import plan_of

        spec, train = self.settings_in(current)
        in_force = dataclasses.replace(self.config, balancing=spec.balancing, train=train)
        return plan_of(in_force, self.pool, self.classes, store, self.seed("tune", current))

    def seed(self, what: str, current: Round) -> int:
        """Returns the seed of something in a round."""
        return hashing.digest(self.config.seed, what, current.number)

    # What may be asked for.

    @cached_property
    def initial(self) -> dict[str, str]:
        """Labels that the manifest gives from the start (with the table labeller only)."""
        if self.config.labelling.labeller == "oracle":
            return {}
        labels = self.sidecar.labels(self.pool.ids_at(self.pool.positions_in("train")))
        self.sidecar.class_indices(list(labels), self.classes, "the manifest labels these items")
        return labels

    def candidates(self, current: Round) -> NDArray[np.int64]:
        """Returns positions of the items that a round may ask for: in the training split, never asked for, without a
        label from the start, and within what is left of the label budget."""
        positions = self.pool.positions_in("train")
        positions = positions[~np.isin(positions, self.pool.positions(sorted({*self._asked(current), *self.initial})))]
        return positions[self.costs[positions] <= self.left(current)]

    @cached_property
    def costs(self) -> NDArray[np.float64]:
        """What each item of the pool costs of the label budget, [n]."""
        return item_costs(self.config.cost, self.pool)

    def cost(self, ids: Sequence[str]) -> float:
        """Returns what some items cost together."""
        return float(self.costs[self.pool.positions(ids)].sum())

    def left(self, current: Round) -> float:
        """Returns what of the label budget is left for a round; sums of fractions may end a hair above it."""
        return self.config.label_budget * (1 + 1e-9) - self.cost(self._asked(current))

    def _asked(self, current: Round) -> list[str]:
        """Returns the ids that the rounds before one asked for: they stay, so they are read once."""
        if current.number not in self._asked_before:
            self._asked_before[current.number] = asked_in(self.store, before=current.number)
        return self._asked_before[current.number]

    def affordable(self, current: Round, ids: Sequence[str]) -> list[int]:
        """Returns the positions of those of some items, in order of choice, that the label budget lets a round have."""
        return affordable(self.costs[self.pool.positions(ids)].tolist(), self.left(current))

    def size(self, current: Round) -> int:
        """Returns how many items a round asks for: what there is where that is less than the query size."""
        query = self.config.query
        wanted = query.size
        if current.number == 0:
            wanted = query.initial_size or (0 if self.initial else query.size)
        cheapest = np.cumsum(np.sort(self.costs[self.candidates(current)])[:wanted])
        return int(np.searchsorted(cheapest, self.left(current), side="right"))

    def why_exhausted(self, current: Round) -> str | None:
        """Returns why a round has nothing to ask for, or None if it has."""
        passed_over = current.before.facts("select").get("passed_over")
        if passed_over is not None and passed_over > self.left(current):
            # Else the rest would go into rounds of an item or two, each with a training of its own.
            return "the label budget is spent but for less than what was wanted next"
        if self.size(current):
            return None
        out = len({*self._asked(current), *self.initial})
        if out < len(self.pool.positions_in("train")):
            left, unit = self.left(current), self.config.cost.unit
            spent = left < 1e-6 * self.config.label_budget
            return "the label budget is spent" + (
                "" if spent else f"; no item costs as little as the {left:g} {unit} left"
            )
        return "every item of the training split has been asked for or had a label"

    def chooses_initially(self, current: Round) -> bool:
        """Returns whether a round without a trained model chooses otherwise than at random."""
        return self.config.query.initial != Random.name and self.size(current) > 0

    def strategy(self, current: Round) -> QueryStrategy:
        """Returns the strategy that chooses in a round."""
        query = self.config.query
        if current.model_before is None:
            return self._initial_strategy
        return STRATEGIES.get(query.strategy)(query)

    def labelled(self, current: Round) -> NDArray[np.int64]:
        """Returns positions of the labelled items of the training split, as the newest model before a round knew
        them."""
        before = current.trained_before
        positions = self.pool.positions(sorted(before.trained_on() if before is not None else self.initial))
        return positions[np.isin(positions, self.pool.positions_in("train"))]

    # What is learnt from.

    def training_items(self, current: Round, labels: dict[str, str]) -> tuple[Labelled, Labelled]:
        """Returns (training items, validation items) as (id, class index).

        The pool's own validation split validates if it has labels; else whole groups of the answered items do, and
        those that did in the round before still do.
        """
        index = {name: k for k, name in enumerate(self.classes)}
        known = {i: index[label] for i, label in labels.items()}
        absent = sorted(set(index.values()) - set(known.values()))
        if absent:
            log.warning("no label yet of class %s", shorten([self.classes[k] for k in absent], 10))
        if self.fixed_validation:
            return list(known.items()), self.fixed_validation
        before = {} if current.number == 0 else current.before.trained_on()
        return split_validation(
            list(known.items()),
            self.sidecar.groups(list(known)),
            self.config.labelling.validation_share,
            hashing.digest(self.config.seed, "validation"),
            {i: part for i, part in before.items() if i in known},
        )

    @cached_property
    def fixed_validation(self) -> Labelled:
        """The labelled items of the pool's own validation split, if it has one."""
        return self._labelled("val")

    @cached_property
    def test(self) -> Items | None:
        """The labelled test items, or None. Read for the record only: no decision sees them."""
        pairs = self._labelled("test")
        return self.pool.items([i for i, _ in pairs], [k for _, k in pairs]) if pairs else None

    def label_count(self, current: Round) -> int:
        """Returns how many labels a round's model learnt from, validation included."""
        trained_on = current.trained_on()
        return len(trained_on) - len(self.fixed_validation) if trained_on else 0

    def _labelled(self, split: str) -> Labelled:
        ids = self.pool.ids_at(self.pool.positions_in(split))
        return self.sidecar.labelled(ids, self.classes, f"the {split} split")

    # What it is.

    def begin(self) -> None:
        """Writes what defines the experiment, and all settings of this start, into the store."""
        BEGUN.write(self.store, self._keys, dataclasses.asdict(self.config))

    def _classes(self) -> tuple[str, ...]:
        given, known = self.config.labelling.classes, self.pool.info.classes
        if given is None and known is None:
            raise ConfigError(
                "labelling.classes: the pool knows no class names, so they must be given, e.g. "
                "--labelling.classes cat,dog"
            )
        classes = tuple(name.strip() for name in given) if given else known or ()
        if len(set(classes)) < 2 or len(set(classes)) < len(classes) or "" in classes:
            raise ConfigError(f"labelling.classes: {list(classes)} is not accepted; give two or more different names")
        return classes

    @property
    def _initial_strategy(self) -> QueryStrategy:
        # What an untrained model predicts says nothing, so no quota is kept by it.
        query = dataclasses.replace(self.config.query, quota=QuotaSettings())
        if query.initial != query.strategy:
            return build_strategy(query.initial, query, features=query.initial_features)
        if isinstance(query, EmbeddingSettings):
            query = dataclasses.replace(query, features=query.initial_features)
        return STRATEGIES.get(query.strategy)(query)

    def _check_strategies(self) -> None:
        classifier, method = self.spec.build()
        predictor = method.predictor(classifier)
        query, initial = self.config.query, self._initial_strategy
        if not initial.cold:
            cold = [name for name in STRATEGIES.names() if STRATEGIES.get(name).cold]
            raise ConfigError(
                f"query.initial: {query.initial!r} is not accepted; without a trained model there are {', '.join(cold)}"
            )
        check_features("query.initial_features", query.initial_features, predictor)
        initial.check(predictor)
        STRATEGIES.get(query.strategy)(query).check(predictor)

    def _check_costs(self) -> None:
        cheapest = self.costs[self.pool.positions_in("train")].min()
        if cheapest > self.config.label_budget:
            raise ConfigError(
                f"label_budget: {self.config.label_budget} is not accepted; the cheapest item costs {cheapest:g} "
                f"{self.config.cost.unit}"
            )

    def _labeller(self) -> Labeller:
        settings = self.config.labelling
        if settings.labeller == "oracle":
            candidates = self.pool.ids_at(self.pool.positions_in("train"))
            return Oracle(self.sidecar, self.classes, candidates)
        _ = self.initial
        return TableLabeller(self.store, self.classes, self.sidecar.uris, settings.sheet)

    @property
    def _keys(self) -> dict[str, Any]:
        keys = defining(self.config)
        # The list that was given, or the pool's: what counts is which classes there are.
        del keys["labelling.classes"]
        train = self.costs[self.pool.positions_in("train")].tolist()
        costs = {} if self.config.cost.file is None else {"costs": f"{hashing.digest(*train):016x}"}
        return {"pool": self.pool.info.content_hash, "classes": list(self.classes), **costs, **keys}

    def _check(self) -> None:
        """Checks that the store was begun with the same experiment, if it was, and that its budget covers it."""
        BEGUN.check(self.store, self._keys)
        spent, unit = self.cost(asked_in(self.store)), self.config.cost.unit
        if self.config.label_budget * (1 + 1e-6) < spent:
            raise ConfigError(
                f"label_budget: {self.config.label_budget} is not accepted; {spent:g} {unit} were asked for already, "
                f"so it must be at least {math.ceil(spent)}"
            )
