"""What cannot be placed, on the cluster of all tests and by the word of an autoscaler."""

from __future__ import annotations

import json
import time

import pytest
import ray
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

from raybal import autoscaling
from raybal.errors import ConfigError
from raybal.resources import ResourceSettings, scaling, trial_options
from raybal.training.settings import TrainSettings


@pytest.mark.ray
def test_what_a_cluster_that_does_not_grow_cannot_place_is_refused_at_once(cluster, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    assert not autoscaling.grows()
    train, settings = TrainSettings(num_workers=2), ResourceSettings(cpus_per_worker=64)
    started = time.monotonic()
    for ask in (scaling, trial_options):
        with pytest.raises(ConfigError, match=r"2 workers of 64 CPU each .* and no autoscaler"):
            ask(train, settings)
    assert time.monotonic() - started < 30


def reserved():
    return {i for i, group in ray.util.placement_group_table().items() if group["state"] != "REMOVED"}


@pytest.mark.ray
def test_reservations_are_given_back_whatever_the_autoscaler_says(cluster, monkeypatch):
    """Its answer is made up: no machine here has one."""
    before = reserved()
    assert autoscaling.can_place([{"CPU": 1.0}] * 2)
    assert autoscaling.can_place([{"CPU": 64.0}], seconds=1)

    groups = []
    reserve = ray.util.placement_group
    monkeypatch.setattr(ray.util, "placement_group", lambda bundles: groups.append(reserve(bundles)) or groups[-1])

    def status(self):
        reply = GetClusterStatusReply()
        for group in groups:
            gang = reply.autoscaling_state.infeasible_gang_resource_requests.add()
            gang.details = f"{group.id.hex()}:PACK|PENDING"
        return reply.SerializeToString()

    monkeypatch.setattr(ray._raylet, "GcsClient", lambda address: type("Client", (), {"get_cluster_status": status})())
    started = time.monotonic()
    assert not autoscaling.can_place([{"CPU": 64.0}])
    assert time.monotonic() - started < 10
    # One that was refused before says nothing of another.
    groups.clear()
    monkeypatch.setattr(ray.util, "placement_group", reserve)
    assert autoscaling.can_place([{"CPU": 1.0}])
    assert reserved() == before


def test_a_first_version_autoscaler_names_the_machines_that_it_may_start(monkeypatch):
    from ray.autoscaler.v2 import utils
    from ray.experimental import internal_kv

    monkeypatch.setattr(utils, "is_autoscaler_v2", lambda fetch_from_server: False)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "ab"}, {"NodeID": "cd"}])
    for active, expected in (({"node_ab": 1, "node_cd": 1}, False), ({"ray.head.default": 1}, True), (None, False)):
        status = None if active is None else json.dumps({"autoscaler_report": {"active_nodes": active}}).encode()
        monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key, status=status: status)
        assert autoscaling.grows() is expected
