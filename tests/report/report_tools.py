"""Pools and stores made by hand, without training, and a parser to look into a report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raybal.columns import tensor_column, tensor_field
from raybal.data.pool import Pool, Sidecar
from raybal.data.publish import write_tables
from raybal.data.schema import Modality, PoolInfo
from raybal.labelling.journal import Answer, Journal
from raybal.querying.balance import balance_of
from raybal.report.data import read_experiment
from raybal.report.page import render
from raybal.rounds import ENDED
from raybal.store import Store

AUDIO = Modality("audio", "audio", (1, 8, 12), "float16", (-1.0,), (2.0,))
VIDEO = Modality("video", "video", (6, 3, 10, 12), "uint8", (120.0,) * 3, (40.0,) * 3)
OMICS = tuple(
    Modality(name, "features", (20,), "float32", (0.0,) * 20, (1.0,) * 20) for name in ("mrna", "meth", "mirna")
)
CLASSES = ("cat", "dog", "cow")
HOSTILE = "<script>alert(1)</script>"


def make_pool(
    folder: Path,
    modalities: Sequence[Modality] = (VIDEO, AUDIO),
    *,
    train: Sequence[str] | int = 30,
    test: int = 10,
    uris: Mapping[str, str] | None = None,
    absent: Mapping[str, Sequence[str]] | None = None,
    quarantine: Sequence[tuple[str, str, str, str]] = (),
    classes: Sequence[str] | None = CLASSES,
) -> Pool:
    """Writes a prepared pool in two shards; `absent` maps a modality to the ids that lack it."""
    names = [f"item-{i:03d}" for i in range(train)] if isinstance(train, int) else list(train)
    ids = names + [f"test-{i:03d}" for i in range(test)]
    store, generator = Store(folder), np.random.default_rng(0)
    present = np.array([[i not in (absent or {}).get(m.name, ()) for m in modalities] for i in ids])
    half = len(ids) // 2
    for shard, rows in (("a", slice(0, half)), ("b", slice(half, None))):
        fields, columns = [pa.field("id", pa.string())], [pa.array(ids[rows], pa.string())]
        for k, m in enumerate(modalities):
            values = generator.normal(size=(len(ids[rows]), *m.shape)) * m.std[0] + m.mean[0]
            values = np.clip(values, 0, 255) if m.dtype == "uint8" else values
            fields.append(tensor_field(m.name, m.shape, m.dtype))
            columns.append(tensor_column(values.astype(m.dtype), present[rows, k]))
        store.write_table(f"shards/{shard}.parquet", pa.Table.from_arrays(columns, schema=pa.schema(fields)), "none")
    index = {
        "id": ids,
        "shard": ["a"] * half + ["b"] * (len(ids) - half),
        "row": pa.array([*range(half), *range(len(ids) - half)], pa.int32()),
        "split": ["train"] * len(names) + ["test"] * test,
        **{f"present_{m.name}": present[:, k] for k, m in enumerate(modalities)},
    }
    where = [(uris or {}).get(i, f"clips/{i}.mp4") for i in ids]
    none = pa.array([], pa.string())
    sidecars = {
        "labels": pa.table({"id": none, "label": none}),
        "groups": pa.table({"id": none, "group": none}),
        "sources": pa.table({"id": ids, "uri": where, "fingerprint": [""] * len(ids)}),
    }
    columns = list(zip(*quarantine, strict=True)) or [[], [], [], []]
    table = {n: pa.array(c, pa.string()) for n, c in zip(("id", "uri", "modality", "reason"), columns, strict=True)}
    store.write_table("quarantine.parquet", pa.table(table))
    info = PoolInfo(tuple(modalities), tuple(classes) if classes else None, {}, "", "hash")
    write_tables(store, info, pa.table(index), sidecars)
    return Pool(str(folder))


class MadeStore:
    """Writes a store phase by phase and remembers what it wrote.

    Attributes:
        store: the store.
        facts: {(round, phase): facts} as written.
        shares: {round: contributions [n, M]} of the queries.
    """

    def __init__(self, store: Store, pool: Pool, *, classes: Sequence[str] = CLASSES, seed: int = 0, **settings: Any):
        self.store, self.pool, self.classes = store, pool, classes
        self.generator = np.random.default_rng(seed)
        self.facts: dict[tuple[int, str], dict[str, Any]] = {}
        self.shares: dict[int, np.ndarray] = {}
        self.asked: list[str] = []
        self.has_model = False
        defaults = {
            "pool": pool.store.root,
            "store": store.root,
            "seed": 0,
            "label_budget": 12,
            "model": {"fusion": "concat"},
            "balancing": {"method": "mlb", "pace": {"kind": "constant"}},
            "query": {"strategy": "bmmal", "size": 4},
            "labelling": {"labeller": "oracle"},
        }
        content = {"format": 1, "raybal": "0.1.0", "defines": {"classes": list(classes)}}
        store.write_yaml("experiment.yaml", content | {"settings": defaults | settings})

    def write(self, number: int, phase: str, facts: dict[str, Any]) -> None:
        """Writes a marker."""
        facts = {**facts, "seconds": round(float(self.generator.uniform(0.1, 5)), 3)}
        self.facts[number, phase] = facts
        self.store.write_yaml(f"rounds/{number:03d}/{phase}.yaml", facts)

    def query(self, number: int, size: int = 4, marker: bool = True) -> list[str]:
        """Scores and selects the next items."""
        names, cold = self.pool.info.names, not self.has_model
        ids = self.pool.ids_at(self.pool.positions_in("train"))[len(self.asked) :][:size]
        shares = self.generator.dirichlet(np.ones(len(names)), len(ids))
        columns: dict[str, Any] = {
            "id": ids,
            "score": [0.0] * len(ids),
            "reason": ["no model yet: at random" if cold else f"because <{i}>" for i in range(len(ids))],
            "predicted": pa.array([None if cold else k % len(self.classes) for k in range(len(ids))], pa.int32()),
            "confidence": pa.array([None if cold else 0.5 + k / 100 for k in range(len(ids))], pa.float64()),
        }
        for k, m in enumerate(names):
            columns[f"contribution_{m}"] = pa.array([None] * len(ids) if cold else shares[:, k], pa.float64())
        self.store.write_table(f"rounds/{number:03d}/query.parquet", pa.table(columns))
        if not cold:
            self.shares[number] = shares
        pool = {"candidates": 20, "predicted": {0: 15, 2: 5}}
        for of in ("contribution", "dominated"):
            pool[of] = self.generator.dirichlet(np.ones(len(names))).tolist()  # type: ignore[assignment]
        self.write(number, "score", {"items": 0 if cold else 20})
        if marker:
            facts: dict[str, Any] = {"items": len(ids), "cost": float(len(ids)), "pool": {}, "balance": {}}
            if not cold:
                predicted = columns["predicted"].to_pylist()
                items = {
                    i: {"contribution": c, "predicted": p}
                    for i, c, p in zip(ids, shares.tolist(), predicted, strict=True)
                }
                facts |= {"pool": pool, "balance": balance_of(items, pool)}
            self.write(number, "select", facts)
            self.asked += ids
        return ids

    def answer(
        self, number: int, ids: Sequence[str], source: str = "oracle", tuning: dict[str, Any] | None = None
    ) -> None:
        """Answers a query, class after class, and goes on to training."""
        answers = [Answer(i, self.classes[k % len(self.classes)], source) for k, i in enumerate(ids)]
        Journal(self.store).add(answers)
        self.write(number, "ask", {"asked": len(ids), "unanswered": [], "cannot_label": [], "conflicts": []})
        self.write(number, "tune", tuning or {})

    def train(self, number: int, *, epochs: int = 3, validation: bool = True, coefficients: bool = True) -> None:
        """Writes a training run."""
        history = []
        for epoch in range(1, epochs + 1):
            record = {"epoch": epoch, "loss": float(self.generator.uniform(0.5, 3)), "seconds": 0.1}
            record["validation"] = self.metrics(6) if validation else {}
            if coefficients:
                record["pace"] = 1.0
                record["coefficient"] = self.generator.uniform(0.5, 2, len(self.pool.info.names)).tolist()
            history.append(record)
        facts = {"items": {"train": len(self.asked), "validation": 6 * validation}, "epoch": 2, "history": history}
        self.write(number, "train", facts)
        self.has_model = True

    def evaluate(
        self,
        number: int,
        test: dict[str, Any] | str | None = "random",
        contribution: dict[str, list[float] | None] | None = None,
    ) -> None:
        """Writes an evaluation; older stores know no contributions over test and validation items."""
        facts = {"labels": len(self.asked), "test": self.metrics(10) if test == "random" else test}
        self.write(number, "evaluate", facts | ({"contribution": contribution} if contribution else {}))

    def round(
        self,
        number: int,
        test: dict[str, Any] | str | None = "random",
        contribution: dict[str, list[float] | None] | None = None,
        **training: Any,
    ) -> None:
        """Writes a whole round."""
        self.answer(number, self.query(number))
        self.train(number, **training)
        self.evaluate(number, test, contribution)

    def end(self, why: str) -> None:
        """Writes why the loop ended."""
        self.store.write_yaml(ENDED, {"why": why})

    def round_without_labels(self, number: int) -> None:
        """Writes a round in which people could label nothing, and that has no model."""
        ids = self.query(number)
        Journal(self.store).add([Answer(i, None, f"round-{number:03d}.csv") for i in ids])
        self.write(number, "ask", {"asked": len(ids), "unanswered": [], "cannot_label": ids, "conflicts": []})
        self.write(number, "tune", {})
        self.write(number, "train", {"items": {"train": 0, "validation": 0}, "history": [], "epoch": None})
        self.write(number, "evaluate", {"labels": 0, "test": None})

    def metrics(self, items: int) -> dict[str, Any]:
        """Returns random metrics of each head."""
        heads = ("fused", *self.pool.info.names)
        return {"items": items} | {
            head: dict(
                zip(("accuracy", "balanced_accuracy", "nll"), self.generator.uniform(0, 1, 3).tolist(), strict=True)
            )
            for head in heads
        }


def metrics(**balanced: float | None) -> dict[str, Any]:
    """Test metrics over 1,000 items with these balanced accuracies (None: the head has no items)."""
    return {"items": 1000} | {
        head: None if value is None else {"accuracy": value, "balanced_accuracy": value, "nll": 1.0}
        for head, value in balanced.items()
    }


class Page(HTMLParser):
    """A parsed report.

    Attributes:
        tags: (tag, attributes) of all elements, in order.
        words: the text, outside of styles.
        styles: content of the style elements.
        tables: cells of all tables, by row.
    """

    def __init__(self, content: str | bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.styles = ""
        self.tables: list[list[list[str]]] = []
        self._words: list[str] = []
        self._style = self._cell = False
        self.feed(content if isinstance(content, str) else content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._style = tag == "style" or (self._style and tag != "body")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._style = self._style and tag != "style"
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._style:
            self.styles += data
            return
        self._words.append(data)
        if self._cell:
            self.tables[-1][-1][-1] += data.strip()

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self._words))


def sidecar_of(pool: Pool) -> Sidecar:
    return Sidecar(pool.store.root)


def report(made: MadeStore) -> Page:
    """Returns a store's report, parsed."""
    return Page(text(made))


def text(made: MadeStore) -> str:
    """Returns a store's report."""
    return render(read_experiment(made.store), made.store, made.pool, sidecar_of(made.pool))


def store_in(
    folder: Path,
    modalities: Sequence[Modality] = (VIDEO, AUDIO),
    *,
    settings: Mapping[str, Any] | None = None,
    classes: Sequence[str] = CLASSES,
    **pool: Any,
) -> MadeStore:
    """Returns an empty store, with a pool beside it."""
    made_pool = make_pool(folder / "pool", modalities, **pool)
    return MadeStore(Store(folder / "store"), made_pool, classes=classes, **(settings or {}))


def assert_nothing_is_fetched(page: Page) -> None:
    """Checks that a page opens no address and runs nothing."""
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "form", "base")
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "poster", "data", "action", "background"):
                assert value.startswith("#" if name == "href" else "data:image/"), (tag, name, value)
            if name == "style" or "url(" in value:
                assert not re.search(r"url\((?!#)", value), (tag, value)
    assert "@import" not in page.styles
    assert "url(" not in page.styles
    assert "http" not in page.styles
