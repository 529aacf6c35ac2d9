"""What training runs learn from and are compared on: the labelled items of a pool, with their labels open from the
start."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

from raybal import hashing
from raybal.data.pool import Labelled, Pool, Sidecar
from raybal.data.split import split_validation
from raybal.errors import DataError


class MaterialConfig(Protocol):
    """Settings of a comparison of training runs."""

    @property
    def pool(self) -> str:
        """A prepared pool."""
        ...

    @property
    def seed(self) -> int:
        """Of the split, and of the items drawn."""
        ...

    @property
    def items(self) -> int | None:
        """Labelled training items that each seed draws; None takes all."""
        ...

    @property
    def validation_share(self) -> float:
        """Share of whole groups that validates where the pool has no validation split."""
        ...


class Material:
    """The labelled items of a pool.

    Args:
        config: which pool, and how much of it.

    Raises:
        DataError: the pool has no classes to tell apart.
    """

    def __init__(self, config: MaterialConfig) -> None:
        self.config = config
        self.pool = Pool(config.pool)
        self.sidecar = Sidecar(config.pool)
        if self.pool.info.classes is None:
            raise DataError(f"pool {config.pool} knows no classes: its manifest has no labels to train with")
        self.classes = self.pool.info.classes
        if len(self.classes) < 2:
            raise DataError(f"pool {config.pool} has one class, {self.classes[0]!r}: there is nothing to tell apart")

    @cached_property
    def test(self) -> Labelled:
        """The labelled test items.

        Raises:
            DataError: there are none.
        """
        found = self._labelled("test")
        if not found:
            raise DataError(
                f"pool {self.config.pool} has no labelled test items, which a table is about; prepare it from a "
                "manifest with a split column, or with a --test-share above 0"
            )
        return found

    @cached_property
    def validation(self) -> Labelled:
        """The validation items.

        Raises:
            DataError: there are none.
        """
        _, found = self.parts(0)
        if not found:
            raise DataError(
                f"pool {self.config.pool} has no validation items (its labelled items are of one group), and trials "
                "are judged by them"
            )
        return found

    def parts(self, seed: int) -> tuple[Labelled, Labelled]:
        """Returns (training items, validation items) of a seed: the same for all methods.

        Raises:
            DataError: there are no labelled training items.
        """
        known, wanted = self._known, self.config.items
        validation = self._labelled("val")
        if not validation:
            groups = self.sidecar.groups([i for i, _ in known])
            seed_of_split = hashing.digest(self.config.seed, "validation")
            known, validation = split_validation(known, groups, self.config.validation_share, seed_of_split)
        if wanted is not None and wanted < len(known):
            order = hashing.order([i for i, _ in known], hashing.digest(self.config.seed, "items", seed))
            known = [known[p] for p in order[:wanted]]
        return known, validation

    @cached_property
    def _known(self) -> Labelled:
        known = self._labelled("train")
        if not known:
            raise DataError(f"pool {self.config.pool} has no labelled training items")
        return known

    def _labelled(self, split: str) -> Labelled:
        ids = self.pool.ids_at(self.pool.positions_in(split))
        return self.sidecar.labelled(ids, self.classes, f"the {split} split")
