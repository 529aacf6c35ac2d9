"""Whether a cluster can grow to what a reservation needs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

import ray

#: An autoscaler looks at what is wanted every few seconds.
SECONDS = 30.0


def grows() -> bool:
    """Returns whether an autoscaler may start machines. A head that was started by hand has one that starts none."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    if is_autoscaler_v2(fetch_from_server=True):
        return True
    # One of the first version names the kinds of machines that it may start; without any, each node is its own kind.
    own = {f"node_{node['NodeID']}" for node in ray.nodes()}
    return not set(_status().get("autoscaler_report", {}).get("active_nodes", {})) <= own


def _status() -> dict[str, dict[str, dict[str, int]]]:
    from ray.experimental.internal_kv import _internal_kv_get

    return json.loads(_internal_kv_get("__autoscaling_status") or b"{}")


def can_place(bundles: Sequence[Mapping[str, float]], seconds: float = SECONDS) -> bool:
    """Reserves some bundles together, waits for what the autoscaler says, and gives them back.

    Returns:
        False if it says that the machines it may start, beside what runs now, could not hold them; True if they are
        there, or if nothing was said in this time.
    """
    from ray.util import placement_group, remove_placement_group

    group = placement_group([dict(bundle) for bundle in bundles])
    try:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if group.wait(1):
                return True
            if group.id.hex() in _infeasible():
                return False
        return True
    finally:
        remove_placement_group(group)


def _infeasible() -> set[str]:
    """Returns the reservations of which the autoscaler says that they can never be placed."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply.FromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status())
    return {gang.details.partition(":")[0] for gang in reply.autoscaling_state.infeasible_gang_resource_requests}
