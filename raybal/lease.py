"""One driver at a time: a lease in the store.

`lease.yaml` names the driver that holds the lease, by a token of its own, and is renewed while the driver lives. What
a driver or its workers publish is checked against the token, so that a process that outlived its driver cannot write
into the store of the next.

In a local folder the driver also holds a lock of the operating system on `lease.lock`, which ends with its process
whatever happens: a second driver is refused at once, and the lease of a killed one is free at once. Elsewhere a lease
is over when it was given back, or when nobody has renewed it for `EXPIRY_SECONDS` of watching; clocks of different
machines are never compared.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any

from raybal.errors import StoreError
from raybal.store import Store, storage_errors

NAME = "lease.yaml"
LOCK = "lease.lock"
EXPIRY_SECONDS = 30.0
RENEWAL_SECONDS = 5.0
#: How long to wait before reading back a lease that no lock protects: longer than writing it takes.
SETTLE_SECONDS = 2.0
POLL_SECONDS = 0.5

_KEYS = {"token", "owner", "renewed", "released"}

log = logging.getLogger(__name__)


class Lease:
    """A context manager that holds a store's lease and renews it in a background thread.

    Attributes:
        token: names this holding of the lease, for `is_current`.
        check: raises a StoreError if the lease has passed to another driver; can be sent to other processes.
        fence: how many times the store's lease has been taken.

    Raises:
        StoreError: on entering, if another driver is at work on the store.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.token = uuid.uuid4().hex
        self.check: Callable[[], None] = functools.partial(_check, store, self.token)
        self.fence = 0
        self._lock: IO[str] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        try:
            self._lock = _lock(self.store)
            held = _read(self.store)
            if held is not None and not self._is_over(held):
                held = _watch(self.store, held)
            self.fence = (held or {}).get("fence", 0) + 1
            self._write(released=False)
            if self._lock is None:
                time.sleep(SETTLE_SECONDS)
                now = _read(self.store) or {}
                if now.get("token") != self.token:
                    raise _in_use(self.store, now)
        except BaseException:
            self._unlock()
            raise
        self._thread = threading.Thread(target=self._renew, name="raybal-lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            if is_current(self.store, self.token):
                self._write(released=True)
        except StoreError as failure:
            # Whatever ended the work matters more; an unreleased lease runs out by itself.
            log.warning("could not give the lease back: %s", failure)
        finally:
            self._unlock()

    def _is_over(self, held: dict[str, Any]) -> bool:
        # With the lock in hand, a driver of this machine that did not give its lease back is dead.
        return held["released"] or (self._lock is not None and held["owner"]["host"] == socket.gethostname())

    def _write(self, *, released: bool) -> None:
        owner = {"host": socket.gethostname(), "pid": os.getpid()}
        content = {"fence": self.fence, "token": self.token, "owner": owner, "renewed": time.time()}
        self.store.write_yaml(NAME, content | {"released": released})

    def _renew(self) -> None:
        while not self._stop.wait(RENEWAL_SECONDS):
            try:
                if not is_current(self.store, self.token):
                    return
                self._write(released=False)
            except StoreError as error:
                # A passing fault; the next renewal or the driver's next write will tell.
                log.warning("could not renew the lease: %s", error)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def is_current(store: Store, token: str) -> bool:
    """Returns whether the holding of the lease that a token names is still the store's newest."""
    return (_read(store) or {}).get("token") == token


def _lock(store: Store) -> IO[str] | None:
    """Returns the lock of a local store, or None where there are no locks.

    Raises:
        StoreError: another process of this machine holds it.
    """
    if not store.is_local:
        return None
    with storage_errors("write", store.path(LOCK)):
        os.makedirs(store.path(), exist_ok=True)
        file = open(store.path(LOCK), "a", encoding="utf-8")  # noqa: SIM115 - held as long as the lease
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise _in_use(store, _read(store) or {}) from error
    except OSError:
        # A network file system without locks.
        file.close()
        return None
    return file


def _read(store: Store) -> dict[str, Any] | None:
    if not store.exists(NAME):
        return None
    content = store.read_yaml(NAME)
    if not isinstance(content, dict) or not set(content) >= _KEYS or not isinstance(content["owner"], dict):
        raise StoreError(f"{store.path(NAME)} is not a lease; if no driver is at work on the store, delete it")
    return content


def _watch(store: Store, held: dict[str, Any]) -> dict[str, Any] | None:
    """Watches a lease until it is given back or has not been renewed for long enough; returns it.

    Raises:
        StoreError: it is renewed.
    """
    log.info(
        "the store was last held by a driver on %s; watching for %.0f s whether it still runs",
        held["owner"]["host"],
        EXPIRY_SECONDS,
    )
    deadline = time.monotonic() + EXPIRY_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(POLL_SECONDS, max(deadline - time.monotonic(), 0)))
        now = _read(store)
        if now is None or now["released"]:
            return now
        if (now["renewed"], now["token"]) != (held["renewed"], held["token"]):
            raise _in_use(store, now)
    return held


def _in_use(store: Store, held: dict[str, Any]) -> StoreError:
    owner = held.get("owner", {})
    return StoreError(
        f"{store.root} is in use by another driver (host {owner.get('host')}, process {owner.get('pid')}); wait until "
        "it ends, stop it, or choose another place"
    )


def _check(store: Store, token: str) -> None:
    if not is_current(store, token):
        raise StoreError(f"store {store.root}: another driver has taken over; this one stops")
