"""Freed memory, kept for the next batch.

By default glibc gives every large block back to the system as soon as it is freed, and a model on a CPU frees its
activations batch after batch: fetching the pages anew takes a large part of the time.

What it costs is memory: the heap has gaps, so a process holds more than it had in use at its peak (twice as much
with the activations of a network; glibc 2.36 keeps ten or more blocks of one size where one is in use at a time).
Threads other than the main one have heaps of their own, in which only blocks below 64 MB are kept, unless the process
was started with `environment`.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1


def keep_freed() -> None:
    """Lets this process keep memory that it frees, from now on.

    Does nothing where malloc is not glibc's, or where the environment has settings of malloc
    (`MALLOC_MMAP_MAX_=65536` is the default of the system).
    """
    libc = _glibc()
    if libc is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def environment() -> dict[str, str]:
    """Returns the variables that make a process which is yet to start keep freed memory in all of its threads; none
    where this process has settings of malloc."""
    if any(name.startswith("MALLOC_") for name in os.environ):
        return {}
    return {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}


def give_back() -> None:
    """Gives the system back all memory that is free now. Does nothing where malloc is not glibc's."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> Any:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
