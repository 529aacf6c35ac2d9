"""What an experiment is: its identity in the store, what it may still ask for, and what it learns from."""

from __future__ import annotations

import dataclasses
import logging
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

import raybal
from raybal import hashing
from raybal.config import LoopConfig, defining
from raybal.data.batches import Items
from raybal.data.pool import Pool, Sidecar
from raybal.data.split import validation_parts
from raybal.errors import ConfigError, DataError, StoreError, shorten
from raybal.predictor import PredictorSpec
from raybal.rounds import Round, asked_in
from raybal.store import Store

FORMAT = 1
NAME = "experiment.yaml"

Labelled = list[tuple[str, int]]

log = logging.getLogger(__name__)


class Experiment:
    """One experiment over one pool, in one store.

    Args:
        config: its settings.
        store: where it lies; begun if it is empty.

    Raises:
        ConfigError, DataError, StoreError: it cannot begin, or cannot continue with these settings.
    """

    def __init__(self, config: LoopConfig, store: Store) -> None:
        self.config = config
        self.store = store
        self.pool = Pool(config.pool)
        self.sidecar = Sidecar(config.pool)
        self.classes = self._classes()
        self._begin_or_continue()

    @property
    def spec(self) -> PredictorSpec:
        """The model and the method; every round starts from the same fresh weights."""
        seed = hashing.digest(self.config.seed, "weights")
        return PredictorSpec(self.pool.info.modalities, self.classes, self.config.model, self.config.balancing, seed)

    def seed(self, what: str, current: Round) -> int:
        """Returns the seed of something in a round."""
        return hashing.digest(self.config.seed, what, current.number)

    # What may be asked for.

    @cached_property
    def initial(self) -> dict[str, str]:
        """Labels that the manifest gives from the start (with the table labeller only)."""
        if self.config.labelling.labeller == "oracle":
            return {}
        return self.sidecar.labels(self.pool.ids_at(self.pool.positions_in("train")))

    def candidates(self, current: Round) -> NDArray[np.int64]:
        """Returns positions of the items that a round may ask for: in the training split, never asked for, without a
        label from the start."""
        out = {*asked_in(self.store, before=current.number), *self.initial}
        positions = self.pool.positions_in("train")
        return positions[~np.isin(positions, self.pool.positions(sorted(out)))] if out else positions

    def size(self, current: Round) -> int:
        """Returns how many items a round asks for: what is left where that is less than the query size."""
        query = self.config.query
        wanted = query.size
        if current.number == 0:
            wanted = query.initial_size or (0 if self.initial else query.size)
        left = self.config.label_budget - len(asked_in(self.store, before=current.number))
        return min(wanted, left, len(self.candidates(current)))

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
        parts = validation_parts(
            list(known),
            self.sidecar.groups(list(known)),
            self.config.labelling.validation_share,
            hashing.digest(self.config.seed, "validation"),
            {i: part for i, part in before.items() if i in known},
        )
        return tuple([(i, k) for i, k in known.items() if parts[i] == part] for part in ("train", "validation"))  # type: ignore[return-value]

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
        return len(current.trained_on()) - len(self.fixed_validation)

    def _labelled(self, split: str) -> Labelled:
        ids = self.pool.ids_at(self.pool.positions_in(split))
        ids = list(self.sidecar.labels(ids)) if ids else []
        return list(zip(ids, self.sidecar.class_indices(ids, self.classes, f"the {split} split"), strict=True))

    # What it is.

    def _classes(self) -> tuple[str, ...]:
        given, known = self.config.labelling.classes, self.pool.info.classes
        if given is None and known is None:
            raise ConfigError(
                "labelling.classes: the pool knows no class names, so they must be given, e.g. "
                "--labelling.classes cat,dog"
            )
        classes = tuple(given or known or ())
        if len(set(classes)) < 2 or len(set(classes)) < len(classes):
            raise ConfigError(f"labelling.classes: {list(classes)} is not accepted; give two or more different names")
        return classes

    def _begin_or_continue(self) -> None:
        if not len(self.pool.positions_in("train")):
            raise DataError(f"pool {self.config.pool} has no item in its train split")
        keys = {"pool": self.pool.info.content_hash, "classes": list(self.classes), **defining(self.config)}
        if self.store.exists(NAME):
            self._check(keys)
        # The settings that may change are those of the last start.
        content = {"format": FORMAT, "raybal": raybal.__version__, "defines": keys}
        self.store.write_yaml(NAME, content | {"settings": dataclasses.asdict(self.config)})

    def _check(self, keys: dict[str, object]) -> None:
        """Checks that the store was begun with the same experiment."""
        begun = self.store.read_yaml(NAME)
        if begun["format"] != FORMAT:
            raise StoreError(
                f"store {self.store.root} was written in format {begun['format']} by raybal {begun['raybal']}; "
                f"this is raybal {raybal.__version__}, which reads format {FORMAT}. Use that version, or another store"
            )
        for key in dict.fromkeys([*begun["defines"], *keys]):
            old, new = begun["defines"].get(key), keys.get(key)
            if old != new:
                raise StoreError(
                    f"store {self.store.root} was begun with {key} = {old}, and now it is {new}. An experiment "
                    "cannot change in the middle: give the old value, or choose another store"
                )
        asked = len(asked_in(self.store))
        if self.config.label_budget < asked:
            raise ConfigError(f"label_budget: {self.config.label_budget} is not accepted; {asked} items were asked for")
