"""The errors a user can meet.

Every message names the thing (key, file, id), the value found, and what would be accepted. A job turns a
`RaybalError` into one line and a non-zero exit; anything else is a defect of raybal and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RaybalError(Exception):
    """Base of everything raybal raises on purpose."""


class ConfigError(RaybalError, ValueError):
    """A key or a value of the configuration that raybal cannot take."""


class DataError(RaybalError):
    """A manifest, a media file or a prepared pool that raybal cannot use."""


class StoreError(RaybalError):
    """A store that cannot be read, written, continued or shared."""


class LabelError(RaybalError):
    """An answer, a query sheet or a label table that raybal cannot take."""


class InstallationError(RaybalError):
    """A library that is there and cannot be loaded: no fault of whatever was to be done with it."""


class DivergedError(RaybalError):
    """A training run whose values are no longer finite: another start of it would end the same way."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the closest known word, or an empty string."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def shorten(items: Iterable[object], most: int = 5) -> str:
    """Returns the first few items for a message: "a, b, c and 12 more"."""
    listed = [str(item) for item in items]
    head = ", ".join(listed[:most])
    return head if len(listed) <= most else f"{head} and {len(listed) - most} more"
