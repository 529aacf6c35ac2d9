"""The report's numbers as TensorBoard event files: `tensorboard --logdir STORE/tensorboard`.

    tensorboard/rounds/       against the number of labels: test/<metric>/<head>, contribution/<modality>/query, /pool,
                              /test and /validation, dominated/<modality>/query and /pool
    tensorboard/round-003/    against epochs: loss, validation/<metric>/<head>, and what the method recorded, such as
                              pace and coefficient/<modality>

Contributions stand at the number of labels of the model that they are contributions of: for a query and its pool, the
newest model before that round.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from raybal.report.data import ExperimentRecord, QueryRecord, RoundRecord, heads_of, read_experiment
from raybal.report.recorded import RECORDED
from raybal.store import Store

FOLDER = "tensorboard"
_NUMBER = re.compile(r"tfevents\.(\d+)\.")

Scalar = tuple[str, float, int]


def write_events(store: Store, experiment: ExperimentRecord | None = None) -> None:
    """Writes all metrics of a store as event files, in the place of those that are there.

    A TensorBoard that is running takes the new files for the old ones.

    Args:
        store: of the experiment.
        experiment: its content, if it has been read already.
    """
    experiment = experiment or read_experiment(store)
    runs = {"rounds": list(round_scalars(experiment))}
    runs |= {f"round-{r.number:03d}": list(epoch_scalars(experiment, r)) for r in experiment.rounds}
    # Only folders that are written here: a file manager may have left something of its own.
    there = [run for run in store.names(FOLDER) if run.startswith("round")]
    old = [name for run in there for name in store.names(f"{FOLDER}/{run}")]
    # TensorBoard reads a folder's files in the order of their names and never goes back to an earlier name.
    number = 1 + max((int(found.group(1)) for name in old if (found := _NUMBER.search(name))), default=0)
    store.clear(FOLDER)
    for run, scalars in runs.items():
        if scalars:
            store.write_bytes(f"{FOLDER}/{run}/events.out.tfevents.{number:010d}.raybal", _events(scalars))


def round_scalars(experiment: ExperimentRecord) -> Iterator[Scalar]:
    """Yields (tag, value, number of labels) of everything that there is once a round."""
    for r in experiment.rounds:
        model = experiment.model_before(r)
        if r.query is not None and model is not None and model.labels is not None:
            yield from _contributions(r, r.query, model.labels)
        if r.labels is None:
            continue
        for part, shares in r.contributions.items():
            for m, share in zip(experiment.modalities, shares, strict=True):
                yield f"contribution/{m}/{part}", share, r.labels
        if r.test is None:
            continue
        for head, metrics in heads_of(r.test).items():
            for metric, value in metrics.items():
                yield f"test/{metric}/{head}", value, r.labels


def _contributions(r: RoundRecord, query: QueryRecord, labels: int) -> Iterator[Scalar]:
    pool = r.pool or {}
    kinds = (("contribution", query.mean_contribution()), ("dominated", query.dominated()))
    for of, shares in kinds:
        for k, m in enumerate(query.modalities):
            if shares is not None:
                yield f"{of}/{m}/query", shares[k], labels
            if of in pool:
                yield f"{of}/{m}/pool", pool[of][k], labels


def epoch_scalars(experiment: ExperimentRecord, r: RoundRecord) -> Iterator[Scalar]:
    """Yields (tag, value, epoch) of a round's training."""
    for record in r.history:
        epoch = record["epoch"]
        yield "loss", record["loss"], epoch
        if isinstance(record.get("pace"), float):
            yield "pace", record["pace"], epoch
        for head, metrics in heads_of(record["validation"]).items():
            for metric, value in metrics.items():
                yield f"validation/{metric}/{head}", value, epoch
        for of in ("pace", *(one.name for one in RECORDED)):
            values = record.get(of)
            for m, value in zip(experiment.modalities, values if isinstance(values, list) else [], strict=False):
                yield f"{of}/{m}", value, epoch


def _events(scalars: list[Scalar]) -> bytes:
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        # Purging from step 0 tells a TensorBoard that has read an older file to forget it.
        with SummaryWriter(folder, purge_step=0) as writer:
            for tag, value, step in scalars:
                writer.add_scalar(tag, value, step)
        (file,) = Path(folder).iterdir()
        return file.read_bytes()
