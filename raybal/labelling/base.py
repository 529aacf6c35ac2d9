"""What a labeller is: where the answers to a query come from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from raybal.labelling.journal import Answer, Labels
from raybal.settings import Settings, setting


@dataclass(frozen=True)
class LabellingSettings(Settings):
    """Where labels come from."""

    labeller: Literal["oracle", "table"] = setting(
        "oracle",
        help="oracle: the labels of the manifest, hidden until asked for (simulation); table: people fill in query "
        "sheets that the store keeps",
    )
    classes: list[str] | None = setting(None, help="class names, where the pool does not know them")
    validation_share: float = setting(
        0.2, ge=0, lt=1, help="share of each query that validates (whole groups), where the pool has no val split"
    )
    accept_partial: bool = setting(
        False, defines=False, help="go on with the answers there are instead of waiting for the whole query"
    )
    sheet: Literal["csv", "parquet"] = setting("csv", defines=False, help="format of query sheets")


class Labeller(Protocol):
    """Asks for labels."""

    def ask(self, round_number: int, ids: Sequence[str]) -> None:
        """Puts a round's query to whoever answers; asking again changes nothing."""
        ...

    def collect(self, asked: Collection[str]) -> list[Answer]:
        """Returns all answers given so far to the items that have been asked for, in any round."""
        ...

    def where(self, round_number: int) -> str:
        """Says what to fill in."""
        ...

    def report_conflicts(self, labels: Labels) -> str | None:
        """Puts the open conflicts to whoever can settle them; returns where, or None if there are none."""
        ...
