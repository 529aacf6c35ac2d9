"""The checks of a query strategy."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raybal import hashing
from raybal.analysis.contribution import contributions, shapley_values
from raybal.balancing.base import Predictor
from raybal.bench.toy import make_pool
from raybal.data.batches import Items
from raybal.data.pool import Pool
from raybal.data.schema import Modality
from raybal.errors import RaybalError
from raybal.models.classifier import ModelSettings, build_classifier
from raybal.models.encoders import EncoderSettings
from raybal.querying.balance import select
from raybal.querying.base import (
    STRATEGIES,
    Holder,
    LocalCandidates,
    Query,
    QueryStrategy,
    QuotaSettings,
    Request,
    Scored,
)
from raybal.querying.distances import reproducible_distances
from raybal.querying.explain import explain_items
from raybal.querying.scoring import item_columns, read_holder, score_shard
from raybal.testing.runs import CLASSES, MODALITIES, SEED, THIRD, items_of

ITEMS, LABELLED = 120, 15
#: The last items equal others but for their ids: the first half labelled ones, the second half other candidates.
DUPLICATES = 20

Columns = dict[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class StrategyCase:
    """A strategy as it is checked.

    Attributes:
        strategy: its name, or its class.
        options: settings by name.
        modalities: number of modalities, two or three.
    """

    strategy: str | type[QueryStrategy]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    modalities: int = 2

    def build(self, **options: Any) -> QueryStrategy:
        """Returns the strategy."""
        cls = STRATEGIES.get(self.strategy) if isinstance(self.strategy, str) else self.strategy
        return cls(cls.Settings(**{"strategy": cls.name, **self.options, **options}))


def check_strategy(strategy: str | type[QueryStrategy], **options: Any) -> None:
    """Puts a strategy through all checks, with two modalities and with three.

    Args:
        strategy: its name, or its class.
        options: settings by name.

    Raises:
        AssertionError: a check failed; it names the strategy and the check.
    """
    for modalities in (2, 3):
        for name in STRATEGY_CHECKS:
            check_strategy_once(StrategyCase(strategy, options, modalities), name)


def check_strategy_once(case: StrategyCase, name: str) -> None:
    """Puts a strategy through one of `STRATEGY_CHECKS`.

    Raises:
        AssertionError: as in `check_strategy`.
    """
    try:
        STRATEGY_CHECKS[name](case)
    except AssertionError as error:
        raise AssertionError(f"{case.build().name}: {name}: {error}") from error


def candidates_of(items: Items, columns: Columns, parts: Sequence[NDArray[np.int64]]) -> LocalCandidates:
    """Returns items in one holder a part (positions)."""
    return LocalCandidates([_held(items, columns, rows) for rows in parts])


def _held(items: Items, columns: Columns, rows: NDArray[np.int64]) -> Holder:
    ids = [items.ids[r] for r in rows]
    return Holder(ids, hashing.hash_ids(ids), {name: values[rows] for name, values in columns.items()})


@torch.no_grad()
def scored(case: StrategyCase, *, missing: float = 0.0, **options: Any) -> tuple[Items, Columns]:
    """Returns items, the last of them duplicates of others, and what scoring keeps of each."""
    modalities: tuple[Modality, ...] = (*MODALITIES, THIRD)[: case.modalities]
    items = items_of(ITEMS, modalities, missing=missing)
    model = ModelSettings(encoder=EncoderSettings(dim=6, width=2, layers=1))
    predictor = Predictor(build_classifier(modalities, CLASSES, model, SEED).eval())
    strategy = case.build(**options)
    strategy.check(predictor)
    present = torch.from_numpy(items.present)
    encoded = predictor.encode({m: torch.from_numpy(a) for m, a in items.inputs.items()}, present)
    phi, probabilities = shapley_values(lambda mask: predictor.logits(encoded.fusion_inputs, mask), present)
    predicted = probabilities.argmax(1)
    seen = Scored(encoded, probabilities, predicted, contributions(phi, predicted))
    columns = {name: column.numpy() for name, column in item_columns(strategy, predictor, seen).items()}
    # Where in a batch an item lies rounds its embedding otherwise, so that equal items would not be equal.
    for array in columns.values():
        array[-DUPLICATES:] = array[LABELLED - DUPLICATES // 2 :][:DUPLICATES]
    return items, columns


def _parts(count: int, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[i::count] for i in range(count)]


def _ask(
    case: StrategyCase, size: int, parts: int = 1, *, labelled: bool = True, missing: float = 0.0, **options: Any
) -> Query:
    """Returns the query of the items after the labelled ones, in so many parts, in another order for each number."""
    items, columns = scored(case, missing=missing, **options)
    known = _held(items, columns, np.arange(LABELLED)) if labelled else None
    rows = np.arange(LABELLED, ITEMS)
    if parts > 1:
        rows = np.random.default_rng(parts).permutation(rows)
    request = Request(size, 4, CLASSES, known)
    return case.build(**options).select(candidates_of(items, columns, _parts(parts, rows)), request)


def _the_number_asked_for(case: StrategyCase) -> None:
    allowed = {f"item-{i:03d}" for i in range(LABELLED, ITEMS)}
    for labelled in (True, False):
        query = _ask(case, 20, labelled=labelled)
        assert len(set(query.ids)) == len(query.ids) == 20, f"{len(set(query.ids))} different items, not 20"
        assert set(query.ids) <= allowed, "items that are no candidates"
        assert len(query.score) == len(query.reason) == 20, "a score and a reason for each item"
        assert np.isfinite(query.score).all(), "scores that are not finite"
        assert all(query.reason), "items without a reason"
        assert len(query.parts) in (0, 20), "parts of some scores only"
        assert all(np.isfinite(list(part.values())).all() for part in query.parts), "parts that are not finite"


def _one_labelled_item(case: StrategyCase) -> None:
    items, columns = scored(case)
    known = _held(items, columns, np.arange(1))
    held = candidates_of(items, columns, [np.arange(LABELLED, ITEMS)])
    query = case.build().select(held, Request(20, 4, CLASSES, known))
    assert len(set(query.ids)) == 20, f"{len(set(query.ids))} different items beside a single labelled one, not 20"


def _all_that_is_left(case: StrategyCase) -> None:
    for labelled in (True, False):
        query = _ask(case, 500, labelled=labelled)
        assert sorted(query.ids) == [f"item-{i:03d}" for i in range(LABELLED, ITEMS)], "not all that were left"
    items, columns = scored(case)
    assert not case.build().select(candidates_of(items, columns, [np.arange(0)]), Request(5, 1)).ids, "items of none"


def _shards_and_order(case: StrategyCase) -> None:
    for labelled in (True, False):
        # So many that of some equal items not all are chosen, and of others all.
        for size in (30, 100):
            whole = _ask(case, size, labelled=labelled)
            for parts in (2, 7, 16):
                query = _ask(case, size, parts, labelled=labelled)
                assert query.ids == whole.ids, f"other items, or another order, in {parts} shards"
                assert np.allclose(query.score, whole.score, rtol=1e-6, atol=1e-9), f"other scores in {parts} shards"


def _seed(case: StrategyCase) -> None:
    assert _ask(case, 20).ids == _ask(case, 20).ids, "the same seed gave two queries"


def _missing_modalities(case: StrategyCase) -> None:
    query = _ask(case, 30, missing=0.4)
    assert len(set(query.ids)) == 30, "not 30 items where modalities are missing"
    assert query.ids == _ask(case, 30, 7, missing=0.4).ids, "other items in 7 shards where modalities are missing"


def _half_precision(case: StrategyCase) -> None:
    query = _ask(case, 30, half=True)
    assert len(set(query.ids)) == 30, "not 30 items in half precision"
    assert query.ids == _ask(case, 30, 7, half=True).ids, "other items in 7 shards in half precision"


def _no_labels(case: StrategyCase) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_pool(f"{folder}/pool", 24, shards=2, classes=CLASSES)
        for sidecar in Path(folder).rglob("sidecar"):
            shutil.rmtree(sidecar)
        pool, strategy = Pool(f"{folder}/pool"), case.build()
        model = ModelSettings(encoder=EncoderSettings(dim=6, width=2, layers=1))
        predictor = Predictor(build_classifier(pool.info.modalities, CLASSES, model, SEED).eval())
        holders = []
        for shard in range(2):
            rows = np.flatnonzero(pool.shard_of == shard)
            table = score_shard(pool, rows, predictor, strategy, device=torch.device("cpu"), batch_size=8)
            pool.store.write_table(f"scores/{shard}.parquet", table)
            holders.append(read_holder(pool.store, [f"scores/{shard}.parquet"]))
        query = strategy.select(LocalCandidates(holders), Request(5, 4, CLASSES))
    assert len(set(query.ids)) == 5, "not 5 items of a pool whose labels are gone"


def _labelled_not_finite(case: StrategyCase) -> None:
    items, columns = scored(case)
    for name, values in columns.items():
        if np.issubdtype(values.dtype, np.floating):
            broken = {**columns, name: values.copy()}
            broken[name][3] = np.nan
            said = ""
            try:
                Request(20, 4, CLASSES, _held(items, broken, np.arange(LABELLED)))
            except RaybalError as error:
                said = str(error)
            assert "item-003" in said, f"column {name} of a labelled item is not finite, and what is said is {said!r}"


def _not_finite(case: StrategyCase) -> None:
    items, columns = scored(case)
    strategy = case.build()
    known = _held(items, columns, np.arange(LABELLED))
    request = Request(20, 4, CLASSES, known)
    whole = strategy.select(candidates_of(items, columns, [np.arange(LABELLED, ITEMS)]), request)
    for name, values in columns.items():
        if name in _GENERIC or not np.issubdtype(values.dtype, np.floating):
            continue
        broken = {**columns, name: values.copy()}
        broken[name][40] = np.nan
        said = ""
        try:
            query = strategy.select(candidates_of(items, broken, [np.arange(LABELLED, ITEMS)]), request)
        except RaybalError as error:
            said = str(error)
        if said:
            assert "item-040" in said, f"the error does not name the item: {said}"
        else:
            assert query == whole, f"column {name} is not finite, and nothing is said"


#: What every scoring keeps.
_GENERIC = {"predicted", "confidence", "contribution", "present"}


def _within_a_quota(case: StrategyCase) -> None:
    items, columns = scored(case)
    quota = QuotaSettings(predicted=0.5)
    for known in (_held(items, columns, np.arange(LABELLED)), None):
        found = []
        for parts in (1, 7):
            held = candidates_of(items, columns, _parts(parts, np.arange(LABELLED, ITEMS)))
            query = select(case.build(quota=quota), held, Request(20, 4, CLASSES, known))
            assert len(set(query.ids)) == 20, f"{len(set(query.ids))} different items within a quota, not 20"
            assert len(query.parts) in (0, 20), "parts of some scores only within a quota"
            predicted = columns["predicted"][[items.ids.index(i) for i in query.ids]]
            assert np.bincount(predicted).max() <= 10, "more of one class than the quota allows"
            found.append(query.ids)
        assert found[0] == found[1], "other items in 7 shards within a quota"


def _explanations(case: StrategyCase) -> None:
    items, columns = scored(case)
    strategy = case.build()
    known = _held(items, columns, np.arange(LABELLED))
    for parts in (1, 7):
        held = candidates_of(items, columns, _parts(parts, np.arange(LABELLED, ITEMS)))
        query = strategy.select(held, Request(20, 4, CLASSES, known))
        facts = explain_items(held, strategy, query, known)
        if not strategy.settings.explain:
            assert not facts, "explanations where none are wanted"
            continue
        assert list(facts) == query.ids, "items without an explanation"
        whole = _held(items, columns, np.arange(LABELLED, ITEMS))
        chosen = strategy.factors(whole[np.array([whole.ids.index(i) for i in query.ids])])
        nearest = reproducible_distances(*strategy.factors(whole), *chosen).argmin(1)
        # Of what equals another, only itself.
        cells = torch.bincount(nearest, minlength=20).clamp(min=1).tolist()
        assert [f["stands_for"] for f in facts.values()] == cells, "other numbers of items than by brute force"
        near = reproducible_distances(*chosen, *strategy.factors(known)).min(1)
        found = [f["labelled_distance"] ** 2 for f in facts.values()]
        assert np.allclose(found, near.values, rtol=1e-6, atol=1e-9), "another distance to the nearest labelled item"
        names = [known.ids[i] for i in near.indices.tolist()]
        assert [f["nearest_labelled"] for f in facts.values()] == names, "another labelled item than the nearest"


#: All checks of a strategy, by name.
STRATEGY_CHECKS: dict[str, Callable[[StrategyCase], None]] = {
    "the number asked for": _the_number_asked_for,
    "one labelled item": _one_labelled_item,
    "all that is left": _all_that_is_left,
    "shards and order": _shards_and_order,
    "seed": _seed,
    "missing modalities": _missing_modalities,
    "half precision": _half_precision,
    "no labels": _no_labels,
    "not finite": _not_finite,
    "labelled, not finite": _labelled_not_finite,
    "within a quota": _within_a_quota,
    "explanations": _explanations,
}
