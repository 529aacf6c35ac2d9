"""Which queried items the report shows, and what it says about each."""

from __future__ import annotations

from dataclasses import dataclass

from raybal.data.pool import Pool, Sidecar
from raybal.report.data import ExperimentRecord, QueryRecord, RoundRecord
from raybal.report.thumbnails import Picture, pictures

NEWEST = 16  # items shown of the newest round
OLDER = 8  # of each older one
ROUNDS = 6  # newest rounds shown
MOST_BYTES = 2_000_000  # of pictures


@dataclass(frozen=True)
class ShownItem:
    """One queried item.

    Attributes:
        id: of the item.
        uri: where it came from, if that is known.
        pictures: of its modalities; None where the file would grow too large.
        predicted: name of the class that the model predicted when it was chosen, or None.
        confidence: of that prediction.
        contributions: (modality, share) if a model looked at it.
        reason: why it was chosen.
        score: the strategy's number for it and what that is made of, in words; empty where it is nothing.
        place: what it is to other items, in words; empty if that is not known.
        label: that stands, or None.
        answered: whether there is an answer; one without a label says that the item cannot be labelled.
        right: whether prediction and label agree; None if one is not known.
    """

    id: str
    uri: str
    pictures: list[Picture] | None
    predicted: str | None
    confidence: float | None
    contributions: list[tuple[str, float]]
    reason: str
    score: str
    place: str
    label: str | None
    answered: bool
    right: bool | None


@dataclass(frozen=True)
class ShownRound:
    """The items shown of one round's query.

    Attributes:
        number: of the round.
        items: the first ones in order of choice.
        asked: number of all.
    """

    number: int
    items: list[ShownItem]
    asked: int


@dataclass(frozen=True)
class ShownItems:
    """What is shown of all queries.

    Attributes:
        rounds: newest first.
        earlier: number of rounds of which nothing is shown.
        without_pictures: items shown without pictures, to keep the file small.
    """

    rounds: list[ShownRound]
    earlier: int
    without_pictures: int


def choose_items(experiment: ExperimentRecord, pool: Pool, sidecar: Sidecar) -> ShownItems:
    """Returns the first items of the newest queries, with pictures as long as those stay small together."""
    asked = [(r, query) for r, query in experiment.queries() if query.ids][::-1]
    parts = [(r, query, NEWEST if k == 0 else OLDER) for k, (r, query) in enumerate(asked[:ROUNDS])]
    ids = [i for _, query, most in parts for i in query.ids[:most]]
    uris = sidecar.uris(ids) if ids else {}
    seen = _within(pictures(pool, ids), ids)
    rounds = [
        ShownRound(
            r.number,
            [_item(experiment, pool, r, query, row, seen, uris) for row in range(min(most, len(query.ids)))],
            len(query.ids),
        )
        for r, query, most in parts
    ]
    return ShownItems(rounds, len(asked) - len(parts), sum(i.pictures is None for r in rounds for i in r.items))


def _within(found: dict[str, list[Picture]], ids: list[str]) -> dict[str, list[Picture]]:
    """Keeps pictures in order of the ids until they fill the space there is."""
    kept, size = {}, 0
    for i in ids:
        size += sum(len(picture.uri) for picture in found.get(i, []))
        if i in found and size <= MOST_BYTES:
            kept[i] = found[i]
    return kept


def _item(
    experiment: ExperimentRecord,
    pool: Pool,
    r: RoundRecord,
    query: QueryRecord,
    row: int,
    seen: dict[str, list[Picture]],
    uris: dict[str, str],
) -> ShownItem:
    item, index = query.ids[row], query.predicted[row]
    predicted = None if index is None else experiment.class_name(index)
    label = experiment.labels.label.get(item)
    known = index is not None
    return ShownItem(
        id=item,
        uri=uris.get(item) or "",
        pictures=seen.get(item),
        predicted=predicted,
        confidence=query.confidence[row],
        contributions=list(zip(pool.info.names, query.contribution[row].tolist(), strict=True)) if known else [],
        reason=query.reason[row],
        score=_score(query.score[row], query.parts[row]),
        place=_place(query.stands_for[row], query.nearest_labelled[row]),
        label=label,
        answered=item in experiment.labels.label,
        right=None if label is None or predicted is None else label == predicted,
    )


def _score(score: float, parts: dict[str, float]) -> str:
    if not score and not parts:
        return ""
    made_of = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in parts.items())
    return f"score {score:.4g}" + (f" ({made_of})" if made_of else "")


def _place(stands_for: int | None, nearest: str | None) -> str:
    parts = []
    if stands_for is not None:
        parts.append(f"stands for {stands_for:,} item{'' if stands_for == 1 else 's'}")
    if nearest is not None:
        parts.append(f"nearest labelled: {nearest}")
    return "; ".join(parts)
