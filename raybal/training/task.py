"""A training run as a file in the store: what the driver writes and every worker reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raybal import memory
from raybal.data.batches import Items
from raybal.data.pool import Labelled, Pool
from raybal.predictor import PredictorSpec, load_predictor, save_predictor
from raybal.rounds import MODEL
from raybal.store import Store
from raybal.training.checkpoint import Checkpoints
from raybal.training.fit import Run, fit
from raybal.training.settings import TrainSettings
from raybal.workers import Workers


@dataclasses.dataclass(frozen=True)
class TrainTask:
    """One training run of an experiment.

    Attributes:
        store: root of the experiment's store.
        folder: the run's folder in it.
        pool: root of the prepared pool.
        spec: the model and the method, with the seed of the initial weights.
        settings: of the training.
        seed: what batches and dropout depend on.
        token: names the driver's lease of the store; None writes without a check.
        warm: name of a predictor in the store to start from; None starts fresh.
    """

    store: str
    folder: str
    pool: str
    spec: PredictorSpec
    settings: TrainSettings
    seed: int
    token: str | None
    warm: str | None = None

    def write_items(self, train: Sequence[tuple[str, int]], validation: Sequence[tuple[str, int]]) -> None:
        """Writes which items are trained on and which validate, as (id, class index)."""
        parts = ["train"] * len(train) + ["validation"] * len(validation)
        ids, labels = zip(*train, *validation, strict=True)
        table = pa.table({"id": ids, "label": pa.array(labels, pa.int32()), "part": parts})
        Store(self.store).write_table(f"{self.folder}/items.parquet", table)

    def read_labels(self) -> tuple[Labelled, Labelled]:
        """Returns what was written: training items and validation items as (id, class index)."""
        table = Store(self.store).read_table(f"{self.folder}/items.parquet")
        found: dict[str, Labelled] = {"train": [], "validation": []}
        for row in table.to_pylist():
            found[row["part"]].append((row["id"], row["label"]))
        return found["train"], found["validation"]

    def read_items(self) -> tuple[Items, Items | None]:
        """Returns the training items, and the validation items if there are any, in memory."""
        table = Store(self.store).read_table(f"{self.folder}/items.parquet")
        pool = Pool(self.pool)
        parts = []
        for part in ("train", "validation"):
            rows = table.filter(pc.equal(table["part"], part))
            parts.append(pool.items(rows["id"].to_pylist(), rows["label"].to_pylist()) if len(rows) else None)
        train, validation = parts
        assert train is not None
        return train, validation

    def history(self) -> list[dict[str, Any]]:
        """Returns the records of the epochs after which an interrupted run would continue."""
        checkpoints = Checkpoints(Store(self.store), self.folder)
        done = checkpoints.epochs("epoch")
        return checkpoints.read("epoch", done[-1])[1]["progress"]["history"] if done else []

    def run(
        self, workers: Workers | None = None, on_epoch: Callable[[dict[str, Any]], None] = lambda record: None
    ) -> dict[str, Any]:
        """Trains, as one of the workers; the first one writes the model. Returns what `fit` returns."""
        memory.keep_freed()
        workers = workers or Workers()
        store = Store(self.store)
        train, validation = self.read_items()
        classifier, method = self.spec.build()
        run = Run(
            classifier=classifier,
            method=method,
            train=train,
            validation=validation,
            settings=self.settings,
            seed=self.seed,
            checkpoints=Checkpoints(store, self.folder, self.token),
            device=self.settings.resolve_device(),
            workers=workers,
            warm=None if self.warm is None else load_predictor(store, self.warm)[0].classifier.state_dict(),
        )
        result = fit(run, on_epoch)
        if workers.rank == 0:
            self._publish(run, result["epoch"])
        workers.barrier()
        return result

    def _publish(self, run: Run, epoch: int) -> None:
        checkpoints = run.checkpoints
        kind = "best" if epoch in checkpoints.epochs("best") else "epoch"
        tensors, _ = checkpoints.read(kind, epoch)
        wanted = {k: v for k, v in tensors.items() if k.startswith("model.")}
        save_predictor(checkpoints.store, f"{self.folder}/{MODEL}", self.spec, wanted, epoch=epoch)
