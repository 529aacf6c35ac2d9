"""What a layout is: how the folder of a data set, as it is distributed, becomes a manifest.

A layout is one class in one file. It says of each clip that the data set's lists name which files it has, its label,
its group and its split. Everything else is the same for all and is here: clips that are gone are counted and left
out, media that no list names too, and a folder that is not the data set's is refused.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from raybal.data.layouts.tree import Tree
from raybal.data.manifest import SPLITS, Manifest, check_table
from raybal.data.sources import find_sources
from raybal.errors import ConfigError, DataError, shorten
from raybal.registry import Registry
from raybal.settings import Settings, setting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayoutSettings(Settings):
    """Which data set an input is, where it is the folder of one."""

    name: str | None = setting(None, help="data set whose folder the input is, or none where it is a manifest")
    lists: str | None = setting(
        None, help="folder or URI with the data set's lists, where they are not in the input's folder"
    )

    @classmethod
    def resolve(cls, content: Mapping[str, Any]) -> type[LayoutSettings]:
        if content.get("name") is not None:
            return LAYOUTS.settings(content, "name", cls)
        if given := [key for key in content if key != "name"]:
            raise ConfigError(f"name: this key is missing, beside {given[0]}; choose one of {_names()}")
        return cls


@dataclass(frozen=True)
class Clip:
    """One clip that a data set's lists name.

    Attributes:
        id: unique in the data set.
        files: path below the input for each uri column of the manifest; None where the file is gone.
        label: name of its class.
        group: clips of one group belong on one side of a split.
        split: train, val or test; None if raybal is to split.
    """

    id: str
    files: Mapping[str, str | None]
    label: str
    group: str
    split: str | None


class Layout(ABC):
    """Base of all layouts.

    Args:
        settings: of the subclass's own `Settings`.

    Attributes:
        name: by which it is chosen.
        title: of the data set, for messages.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    Settings: ClassVar[type[LayoutSettings]] = LayoutSettings

    def __init__(self, settings: LayoutSettings) -> None:
        self.settings = settings

    @abstractmethod
    def clips(self, folder: Tree, lists: Tree) -> list[Clip]:
        """Returns all clips that the lists name, those whose files are gone too.

        Args:
            folder: with the media.
            lists: with the lists; often the same.

        Raises:
            DataError: a list is missing, or is not as it is distributed.
        """


LAYOUTS: Registry[Layout] = Registry("layout", "raybal.data.layouts", Layout)  # type: ignore[type-abstract]


def _names() -> str:
    return ", ".join(LAYOUTS.names())


def read_layout(settings: LayoutSettings, place: str) -> Manifest:
    """Returns the manifest of a data set's folder.

    Args:
        settings: of a layout.
        place: the folder, a path or URI.

    Raises:
        DataError: the folder is not the data set's, or more than half of its clips are gone.
        StoreError: the storage refuses.
    """
    assert settings.name is not None
    layout = LAYOUTS.get(settings.name)(settings)
    folder = Tree(place, layout.title)
    lists = folder if settings.lists is None else Tree(settings.lists, layout.title)
    clips = _that_are_there(layout.clips(folder, lists), folder)
    columns = {key: [getattr(c, key) for c in clips] for key in ("id", "label", "group", "split")}
    columns |= {uri: [folder.store.where(str(c.files[uri])) for c in clips] for uri in clips[0].files}
    table = pa.table({key: pa.array(values, pa.string()) for key, values in columns.items()})
    parts = Counter(c.split for c in clips)
    log.info(
        "%s: %d clips of %d classes, %s",
        layout.title,
        len(clips),
        len({c.label for c in clips}),
        ", ".join(f"{parts[part]} {part}" for part in SPLITS if parts[part]) or "without a split",
    )
    return Manifest(check_table(table, place), find_sources(table.schema, place), (), (), {})


def _that_are_there(clips: Sequence[Clip], folder: Tree) -> list[Clip]:
    """Returns the clips that have all their files; says how many have not, and which media no clip has.

    Raises:
        DataError: fewer than half are there.
    """
    if not clips:
        raise DataError(f"{folder.store.root} has no clip of {folder.title} that these settings ask for")
    there = [c for c in clips if None not in c.files.values()]
    gone = [c.id for c in clips if None in c.files.values()]
    said = f"{len(gone)} of {len(clips)} clips of {folder.title} are not in {folder.store.root}"
    if len(gone) > len(there):
        raise DataError(f"{said}: {shorten(gone, 3)}; at most half of those that its lists name may be gone")
    if gone:
        log.warning("%s, and left out: %s", said, shorten(gone, 3))
    others = len(folder.offered - {path for c in there for path in c.files.values()})
    if others:
        log.info("%s: %d media files belong to no clip of the lists and are left out", folder.store.root, others)
    return there
