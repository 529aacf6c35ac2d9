"""Shared by the tests of cluster/: nothing here starts Ray, and nothing may reach the network."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a test of the deployment files tried to reach the network: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


def _load(name: str) -> Any:
    return yaml.safe_load((ROOT / "cluster" / name).read_text())


# Read anew for each test, so that a test may change what it gets.
@pytest.fixture
def aws() -> Any:
    return _load("aws.yaml")


@pytest.fixture
def ray_cluster() -> Any:
    return _load("kuberay/raycluster.yaml")


@pytest.fixture
def ray_job() -> Any:
    return _load("kuberay/rayjob.yaml")


@pytest.fixture
def service_account() -> Any:
    return _load("kuberay/serviceaccount.yaml")


@pytest.fixture
def runtime_env() -> Any:
    return _load("runtime_env.yaml")
