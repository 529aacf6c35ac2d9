"""The label journal: every answer ever given, in immutable batches.

A batch is one object named by its number and the hash of its content. The same answer twice changes nothing. A
conflicting answer is kept and reported but does not train: the first stands until a resolution says otherwise.
"Cannot label" is an answer too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

from raybal.store import Store

FOLDER = "labels"


@dataclass(frozen=True)
class Answer:
    """One annotator's answer.

    Attributes:
        id: of the item.
        label: class name; None means that the item cannot be labelled.
        source: where it came from, e.g. the name of a query sheet.
        kind: an answer, or the resolution of a conflict.
    """

    id: str
    label: str | None
    source: str
    kind: Literal["answer", "resolution"] = "answer"


@dataclass
class Labels:
    """What the journal says.

    Attributes:
        label: class name by id, in the order in which the items were first answered; None: cannot be labelled.
        conflicts: all answers of the items whose answers differ and are not resolved, in order.
    """

    label: dict[str, str | None] = field(default_factory=dict)
    conflicts: dict[str, list[Answer]] = field(default_factory=dict)

    @property
    def known(self) -> dict[str, str]:
        """Class names of the items that have one."""
        return {i: label for i, label in self.label.items() if label is not None}


class Journal:
    """The label journal of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def answers(self) -> list[Answer]:
        """Returns all answers in the order in which they came."""
        found = []
        for name in self._batches():
            for row in self.store.read_table(f"{FOLDER}/{name}").to_pylist():
                found.append(Answer(**row))
        return found

    def add(self, answers: Iterable[Answer]) -> list[Answer]:
        """Writes the answers that say something new, as one batch; returns them.

        An answer is new if its source said something else of the item before, or nothing while another label stands;
        a resolution is new if it changes what stands or ends a conflict.
        """
        labels, new = self.read(), list[Answer]()
        said = {(a.id, a.source): a.label for a in self.answers() if a.kind == "answer"}
        for answer in answers:
            stands = answer.id in labels.label and labels.label[answer.id] == answer.label
            if answer.kind == "resolution":
                told = stands and answer.id not in labels.conflicts
            else:
                told = said.get((answer.id, answer.source), answer.label if stands else _NOTHING) == answer.label
                said[answer.id, answer.source] = answer.label
            if not told:
                new.append(answer)
                labels.label.setdefault(answer.id, answer.label)
        if new:
            table = pa.Table.from_pylist([vars(a) for a in new], schema=_SCHEMA)
            content = repr([(a.id, a.label, a.source, a.kind) for a in new]).encode()
            number = len(self._batches()) + 1
            name = f"{number:06d}-{hashlib.blake2b(content, digest_size=8).hexdigest()}"
            self.store.write_table(f"{FOLDER}/{name}.parquet", table)
        return new

    def _batches(self) -> list[str]:
        return [name for name in self.store.names(FOLDER) if name.endswith(".parquet")]

    def read(self) -> Labels:
        """Returns the labels that stand, and the open conflicts."""
        labels = Labels()
        by_item: dict[str, list[Answer]] = {}
        for answer in self.answers():
            by_item.setdefault(answer.id, []).append(answer)
        for item, given in by_item.items():
            resolutions = [a for a in given if a.kind == "resolution"]
            standing = resolutions[-1] if resolutions else given[0]
            labels.label[item] = standing.label
            since = given[len(given) - given[::-1].index(standing) :] if resolutions else given
            if len({a.label for a in [standing, *since]}) > 1:
                labels.conflicts[item] = given
        return labels


_NOTHING = object()
_SCHEMA = pa.schema([("id", pa.string()), ("label", pa.string()), ("source", pa.string()), ("kind", pa.string())])
