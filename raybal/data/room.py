"""Arrays of any size: in memory, or in a file that is mapped into it."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from raybal.errors import DataError

#: Share of this machine's memory above which an array lies in a file; several training runs may share a machine.
SHARE = 1 / 8
#: Bytes copied at a time.
CHUNK = 1 << 26
#: Where a container finds the memory that it was given.
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def room(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """Returns zeros.

    A large array is mapped from a file in the folder for temporary files (`TMPDIR`), which has no name and is gone with
    the process: the system keeps in memory what is used, and fetches the rest.

    Raises:
        DataError: there is no room for the file.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= SHARE * total_memory():
        return np.zeros(shape, dtype)
    try:
        with tempfile.TemporaryFile(prefix="raybal-") as file:
            # Now, since a disk that is full later would end the process.
            os.posix_fallocate(file.fileno(), 0, size)
            return np.asarray(np.memmap(file, dtype, "r+", shape=shape))
    except OSError as error:
        raise DataError(
            f"{size / 2**30:.1f} GiB of items are too many for memory, and for {tempfile.gettempdir()} "
            f"({error.strerror}); set TMPDIR to a folder with room, take fewer items, or prepare smaller ones"
        ) from error


def take(array: NDArray, positions: NDArray[np.int64]) -> NDArray:
    """Returns array[positions], with the room that it needs."""
    found = room((len(positions), *array.shape[1:]), array.dtype)
    rows = max(1, CHUNK // max(1, array[:1].nbytes))
    for start in range(0, len(positions), rows):
        found[start : start + rows] = array[positions[start : start + rows]]
    return found


def total_memory() -> int:
    """Returns the bytes of memory that this machine, or container, has."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(whole, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):
        return whole
