"""One driver at a time: a lease with a fencing number in the store.

A driver takes the lease when its store has none, when the last one was given back, when its process is known to be
dead (same machine), or when it has not been renewed for `EXPIRY_SECONDS`. Each taking raises the fencing number;
what a driver or its workers publish is checked against it, so that a process that outlived its driver cannot
write into the store of the next.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from types import TracebackType
from typing import Any

from raybal.errors import StoreError
from raybal.store import Store

NAME = "lease.yaml"
EXPIRY_SECONDS = 30.0
RENEWAL_SECONDS = 5.0

log = logging.getLogger(__name__)


class Lease:
    """A context manager that holds a store's lease and renews it in a background thread.

    Raises:
        StoreError: on entering, if another driver is at work on the store.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.fence = 0
        self._stop = threading.Event()
        self._lost: str | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        held = _read(self.store)
        if held is not None:
            _wait_until_free(self.store, held)
        # Read again: whoever waited beside us may have taken it.
        held = _read(self.store)
        if held is not None and not _is_over(held):
            raise _in_use(self.store, held)
        self.fence = (held or {}).get("fence", 0) + 1
        self._write(released=False)
        if (_read(self.store) or {}).get("owner") != _owner():
            raise _in_use(self.store, _read(self.store) or {})
        self.store.sweep()
        self._thread = threading.Thread(target=self._renew, name="raybal-lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._lost is None and is_current(self.store, self.fence):
            self._write(released=True)

    def check(self) -> None:
        """Raises a StoreError if the lease has passed to another driver."""
        if self._lost is not None or not is_current(self.store, self.fence):
            raise StoreError(f"store {self.store.root}: another driver has taken over; this one stops")

    def _write(self, *, released: bool) -> None:
        content = {"fence": self.fence, "owner": _owner(), "renewed": time.time(), "released": released}
        self.store.write_yaml(NAME, content)

    def _renew(self) -> None:
        while not self._stop.wait(RENEWAL_SECONDS):
            try:
                if not is_current(self.store, self.fence):
                    self._lost = "taken over"
                    return
                self._write(released=False)
            except StoreError as error:
                # A passing fault; the next renewal or the next write of the driver will tell.
                log.warning("could not renew the lease: %s", error)


def is_current(store: Store, fence: int) -> bool:
    """Returns whether this fencing number is still the store's newest."""
    return (_read(store) or {}).get("fence", 0) == fence


def _owner() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _start_time(os.getpid())}


def _start_time(pid: int) -> str | None:
    """Returns when a process of this machine started (kernel ticks), or None if it cannot be known."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _read(store: Store) -> dict[str, Any] | None:
    return store.read_yaml(NAME) if store.exists(NAME) else None


def _is_over(held: dict[str, Any]) -> bool:
    if held.get("released") or time.time() - held["renewed"] > EXPIRY_SECONDS:
        return True
    owner = held["owner"]
    if owner["host"] != socket.gethostname() or owner["started"] is None or not os.path.isdir("/proc"):
        return False
    return _start_time(owner["pid"]) != owner["started"]


def _wait_until_free(store: Store, held: dict[str, Any]) -> None:
    """Waits for a lease that is not renewed any more; one that is renewed meanwhile ends the wait."""
    if _is_over(held):
        return
    log.info("the store was in use by another driver a moment ago; waiting to see whether it still runs")
    while not _is_over(held):
        time.sleep(1.0)
        now = _read(store)
        if now is None:
            return
        if now["renewed"] != held["renewed"] and not now.get("released"):
            raise _in_use(store, now)
        held = now


def _in_use(store: Store, held: dict[str, Any]) -> StoreError:
    owner = held.get("owner", {})
    return StoreError(
        f"store {store.root} is in use by another driver (host {owner.get('host')}, process {owner.get('pid')}); "
        "wait until it ends, stop it, or choose another store"
    )
