"""One driver at a time. The other drivers here are real processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import socket
import threading
import time

import pytest

from raybal import lease as lease_module
from raybal.errors import StoreError
from raybal.lease import NAME, Lease, is_current
from raybal.store import Store

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def driver():
    """Starts processes that take a store's lease and then do as they are told."""
    started = []

    def start(store, meet=None):
        started.append(Driver(store, meet))
        return started[-1]

    yield start
    for driver in started:
        driver.process.kill()
        driver.process.join()


class Driver:
    """A process that drives a store.

    Args:
        store: whose lease it takes.
        meet: called in the process before its first write.
    """

    def __init__(self, store, meet=None):
        self.pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=self.drive, args=(theirs, store, meet), daemon=True)
        self.process.start()
        self.pid = self.process.pid

    @staticmethod
    def drive(pipe, store, meet):
        if meet is not None:
            store = Meeting(store.root, meet)
        try:
            with Lease(store) as lease:
                pipe.send(lease.fence)
                while pipe.recv() == "check":
                    try:
                        lease.check()
                        pipe.send("holds")
                    except StoreError as error:
                        pipe.send(str(error))
        except StoreError as error:
            pipe.send(str(error))

    def answer(self):
        assert self.pipe.poll(30), "the other process does not answer"
        return self.pipe.recv()

    def ask(self, what):
        self.pipe.send(what)
        return self.answer()

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.process.join()

    def end(self):
        self.pipe.send("end")
        self.process.join(30)
        assert self.process.exitcode == 0


class Meeting(Store):
    """A store whose first write waits for another process that is about to write, too."""

    def __init__(self, root, meet):
        super().__init__(root)
        self.meet = meet

    def write_bytes(self, name, content):
        meet, self.meet = self.meet, None
        if meet is not None:
            with contextlib.suppress(threading.BrokenBarrierError):
                meet.wait(1)
        super().write_bytes(name, content)


def test_a_second_driver_is_refused_and_told_of_the_first(store, driver, monkeypatch):
    monkeypatch.setattr(lease_module, "RENEWAL_SECONDS", 0.05)
    other = driver(store)
    assert other.answer() == 1
    with pytest.raises(StoreError, match="in use by another driver") as error, Lease(store):
        pass
    for part in (store.root, socket.gethostname(), f"process {other.pid}"):
        assert re.search(rf"{re.escape(part)}\b", str(error.value))
    # The first is not disturbed by it.
    assert other.ask("check") == "holds"
    assert store.read_yaml(NAME)["owner"]["pid"] == other.pid


def test_the_lease_of_a_killed_driver_is_taken_at_once(store, driver):
    other = driver(store)
    assert other.answer() == 1
    other.kill()
    started = time.monotonic()
    with Lease(store) as lease:
        assert time.monotonic() - started < lease_module.EXPIRY_SECONDS / 6
        assert lease.fence == 2
        lease.check()
        assert store.read_yaml(NAME)["owner"]["pid"] == os.getpid()


def test_a_released_lease_is_free(store, driver):
    other = driver(store)
    assert other.answer() == 1
    other.end()
    assert store.read_yaml(NAME)["released"] is True
    tokens = []
    for fence in (2, 3, 4):
        with Lease(store) as lease:
            assert lease.fence == fence
            assert is_current(store, lease.token)
            tokens.append(lease.token)
        assert is_current(store, lease.token)
    assert [is_current(store, t) for t in tokens] == [False, False, True]


def test_an_error_releases_the_lease(store):
    with pytest.raises(KeyError), Lease(store):
        raise KeyError
    assert store.read_yaml(NAME)["released"] is True


@pytest.fixture
def unlocked(monkeypatch):
    """As on storage without locks: a bucket, or some network file systems."""
    monkeypatch.setattr(lease_module, "_lock", lambda store: None)
    monkeypatch.setattr(lease_module, "SETTLE_SECONDS", 0.3)
    monkeypatch.setattr(lease_module, "POLL_SECONDS", 0.02)


def elsewhere(renewed=1.0, **changes):
    owner = {"host": "another-machine", "pid": 7}
    return {"fence": 41, "token": "theirs", "owner": owner, "renewed": renewed, "released": False} | changes


def test_a_driver_that_has_been_overtaken_stops_and_releases_nothing(store, driver, unlocked, monkeypatch):
    other = driver(store)
    assert other.answer() == 1
    assert other.ask("check") == "holds"
    monkeypatch.setattr(lease_module, "EXPIRY_SECONDS", 0.1)
    with Lease(store) as lease:
        assert lease.fence == 2
        assert "another driver has taken over" in other.ask("check")
        held = store.read_yaml(NAME)
        other.end()
        assert store.read_yaml(NAME) == held
        lease.check()


def test_a_driver_that_renews_notices_that_it_was_overtaken(store, monkeypatch):
    monkeypatch.setattr(lease_module, "RENEWAL_SECONDS", 0.01)
    with Lease(store) as lease:
        thread = lease._thread
        while thread.is_alive():
            store.write_yaml(NAME, elsewhere())
            thread.join(0.05)
        with pytest.raises(StoreError, match="taken over"):
            lease.check()
    assert store.read_yaml(NAME) == elsewhere()


def test_a_held_lease_is_renewed(store, monkeypatch):
    monkeypatch.setattr(lease_module, "RENEWAL_SECONDS", 0.01)
    with Lease(store):
        first = store.read_yaml(NAME)
        deadline = time.monotonic() + 20
        while (now := store.read_yaml(NAME))["renewed"] == first["renewed"]:
            assert time.monotonic() < deadline
        assert now == first | {"renewed": now["renewed"]}
        assert now["renewed"] > first["renewed"]


@pytest.mark.parametrize("clock", [-1e6, 0.0, 1e6])
def test_a_driver_on_another_machine_is_over_when_it_renews_no_more(store, monkeypatch, clock):
    """Whatever its clock says: its lease is watched, its time stamps are never compared with this machine's."""
    monkeypatch.setattr(lease_module, "EXPIRY_SECONDS", 0.4)
    monkeypatch.setattr(lease_module, "POLL_SECONDS", 0.02)
    store.write_yaml(NAME, elsewhere(time.time() + clock))
    started = time.monotonic()
    with Lease(store) as lease:
        assert lease.fence == 42
        assert time.monotonic() - started >= 0.4


def test_a_driver_on_another_machine_that_renews_is_left_alone(store, monkeypatch):
    monkeypatch.setattr(lease_module, "EXPIRY_SECONDS", 20)
    monkeypatch.setattr(lease_module, "POLL_SECONDS", 0.02)
    store.write_yaml(NAME, elsewhere())
    watched = threading.Event()
    monkeypatch.setattr(lease_module.log, "info", lambda *message: watched.set())
    renewal = threading.Thread(target=lambda: watched.wait() and store.write_yaml(NAME, elsewhere(2.0)))
    renewal.start()
    with pytest.raises(StoreError, match=r"in use by another driver \(host another-machine, process 7\)"), Lease(store):
        pass
    renewal.join()
    assert store.read_yaml(NAME) == elsewhere(2.0)


def test_is_current_without_a_lease(store):
    assert not is_current(store, "none")
    with Lease(store) as lease:
        store.delete(NAME)
        with pytest.raises(StoreError, match="taken over"):
            lease.check()
    assert not store.exists(NAME)


def test_a_file_that_is_no_lease_is_named(store):
    store.write_yaml(NAME, {"fence": 3})
    with pytest.raises(StoreError, match=r"lease\.yaml is not a lease"), Lease(store):
        pass


@pytest.mark.parametrize("locks", [True, False])
def test_of_two_drivers_that_start_together_one_gets_the_lease(store, driver, request, monkeypatch, locks):
    if not locks:
        request.getfixturevalue("unlocked")
    monkeypatch.setattr(lease_module, "RENEWAL_SECONDS", 0.05)
    meet = FORK.Barrier(2)
    drivers = [driver(store, meet) for _ in range(2)]
    answers = [each.answer() for each in drivers]
    assert sorted(isinstance(a, int) for a in answers) == [False, True]
    (holder,) = (d for d, a in zip(drivers, answers, strict=True) if isinstance(a, int))
    assert holder.ask("check") == "holds"
