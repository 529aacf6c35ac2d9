"""Splitting by groups, so that no group is on both sides.

Nothing here looks at a label: a split that did would let unseen labels decide what is trained on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from raybal import hashing
from raybal.data.pool import Labelled

log = logging.getLogger(__name__)


def assign_groups(
    groups: Sequence[str], shares: Mapping[str, float], seed: int, *, taken: Mapping[str, str] | None = None
) -> list[str]:
    """Assigns each item to a part so that parts get their shares and no group is split.

    Groups come in a random order by hash, and each goes where most is missing.

    Args:
        groups: the group of each item.
        shares: wanted share of each part; the first part takes what is left over.
        seed: of the order of the groups.
        taken: parts of groups that are assigned already; they stay and count, also in a part without a share.

    Returns:
        The part of each item.
    """
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    part_of = dict(taken or {})
    have = dict.fromkeys(shares, 0)
    for group, size in sizes.items():
        if group in part_of:
            have[part_of[group]] = have.get(part_of[group], 0) + size
    new = [g for g in sizes if g not in part_of]
    first, *others = shares
    for i in hashing.order(new, seed):
        group, size = new[i], sizes[new[i]]
        # A group goes to another part only if that brings the part nearer to its share.
        missing = {p: shares[p] * len(groups) - have[p] for p in others}
        part = max(missing, key=missing.__getitem__, default=first)
        if part != first and missing[part] < size / 2:
            part = first
        part_of[group] = part
        have[part] += size
    return [part_of[g] for g in groups]


def split_validation(
    known: Labelled, groups: Mapping[str, str], share: float, seed: int, before: Mapping[str, str] | None = None
) -> tuple[Labelled, Labelled]:
    """Divides items with a label into those that train and those that validate; arguments as in `validation_parts`."""
    parts = validation_parts([i for i, _ in known], groups, share, seed, before or {})
    train, validation = ([pair for pair in known if parts[pair[0]] == part] for part in ("train", "validation"))
    return train, validation


def validation_parts(
    answered: Sequence[str], groups: Mapping[str, str], share: float, seed: int, before: Mapping[str, str]
) -> dict[str, str]:
    """Says which answered items train and which validate.

    Args:
        answered: ids of all items with a label.
        groups: group by id.
        share: of the items that should validate.
        seed: of the order in which groups are taken.
        before: parts ("train" or "validation") by id of the last round; they stay.

    Returns:
        The part by id. With a single group in all, every item trains.
    """
    if len({groups[i] for i in answered}) < 2:
        if share > 0 and answered:
            log.warning("all answered items are of one group, so none can validate without a leak")
        return dict.fromkeys(answered, "train")
    taken = {groups[i]: part for i, part in before.items()}
    names = [groups[i] for i in answered]
    parts = assign_groups(names, {"train": 1 - share, "validation": share}, seed, taken=taken)
    if "train" not in parts:
        return dict.fromkeys(answered, "train")
    return dict(zip(answered, parts, strict=True))
