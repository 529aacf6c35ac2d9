"""From the size of a cluster to workers and actors. The sizes are made up: no machine here has a GPU."""

from __future__ import annotations

import socket

import pytest
import ray

from raybal import autoscaling
from raybal.errors import ConfigError, RaybalError
from raybal.resources import (
    ResourceSettings,
    check_place,
    cluster,
    scaling,
    scoring_options,
    task_options,
    trial_options,
)
from raybal.training.settings import TrainSettings


@pytest.fixture
def size(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_JOB_ID", raising=False)

    def set_size(*nodes: dict[str, float], **resources: float) -> None:
        """A cluster of some nodes, or of one."""
        each = nodes or (resources,)
        total = {name: sum(node.get(name, 0.0) for node in each) for node in each for name in node}
        monkeypatch.setattr(ray, "cluster_resources", lambda: total)
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": dict(node)} for node in each])

    return set_size


def workers(count: int, settings: ResourceSettings | None = None, device: str = "auto"):
    return scaling(TrainSettings(num_workers=count, device=device), settings or ResourceSettings())  # type: ignore[arg-type]


def test_actors_are_one_a_cpu_one_a_gpu_and_never_more_than_shards(size):
    size(CPU=8.0)
    assert scoring_options(100, ResourceSettings())[0] == 8
    assert scoring_options(3, ResourceSettings())[0] == 3
    assert scoring_options(100, ResourceSettings(scoring_actors=20))[0] == 20
    assert "num_gpus" not in scoring_options(100, ResourceSettings())[1]
    size(CPU=64.0, GPU=2.0)
    count, options = scoring_options(100, ResourceSettings())
    assert (count, options["num_gpus"]) == (2, 1)
    size()
    assert scoring_options(100, ResourceSettings())[0] == 1


def test_actors_hold_no_cpu_that_training_needs(size):
    size(CPU=2.0)
    assert "num_cpus" not in scoring_options(10, ResourceSettings())[1]


def test_workers_take_a_gpu_each_where_there_are_some(size):
    size(CPU=8.0, GPU=4.0)
    assert workers(4).resources_per_worker == {"CPU": 1.0, "GPU": 1.0}
    assert workers(4, device="cpu").resources_per_worker == {"CPU": 1.0}
    assert workers(8, ResourceSettings(gpus_per_worker=0.5)).resources_per_worker == {"CPU": 1.0, "GPU": 0.5}
    size(CPU=8.0)
    assert workers(4).use_gpu is False


@pytest.mark.parametrize(
    ("count", "settings", "device", "message"),
    [
        (
            3,
            {},
            "auto",
            r"train\.num_workers: 3 workers of 1 CPU each \(resources\.cpus_per_worker\) do not fit.*2 CPU",
        ),
        (1, {"cpus_per_worker": 4}, "auto", r"1 workers of 4 CPU each"),
        (1, {"gpus_per_worker": 1}, "auto", r"1 workers of 1 CPU and 1 GPU each \(.*gpus_per_worker\).*0 GPU"),
        (1, {}, "cuda", r"train\.device: 'cuda' needs resources\.gpus_per_worker"),
    ],
)
def test_what_this_machine_does_not_have_is_refused(size, count, settings, device, message):
    size(CPU=2.0)
    with pytest.raises(ConfigError, match=message):
        workers(count, ResourceSettings(**settings), device)


def test_a_cluster_without_an_autoscaler_does_not_grow(size, monkeypatch):
    size(CPU=2.0)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(autoscaling, "grows", lambda: False)
    with pytest.raises(ConfigError, match=r"3 workers of 1 CPU each .* do not fit; the cluster has 2 CPU, and no auto"):
        workers(3)


@pytest.mark.parametrize("placed", [True, False])
def test_an_autoscaler_is_asked_for_what_is_not_there(size, monkeypatch, placed):
    size()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    asked = []
    monkeypatch.setattr(autoscaling, "grows", lambda: True)
    monkeypatch.setattr(autoscaling, "can_place", lambda bundles: asked.append(bundles) or placed)
    settings = ResourceSettings(gpus_per_worker=1)
    for ask in (
        lambda: workers(4, settings, "cuda").num_workers,
        lambda: trial_options(TrainSettings(num_workers=4), settings)[1],
    ):
        if placed:
            assert ask() in (4, 1)
        else:
            with pytest.raises(ConfigError, match=r"^train\.num_workers: 4 workers of 1 CPU and 1 GPU .* do not fit"):
                ask()
    assert asked == [[{"CPU": 1.0, "GPU": 1.0}] * 4] * 2


def test_trials_share_a_cluster_without_waiting_for_one_another(size):
    size(CPU=4.0)
    assert trial_options(TrainSettings(), ResourceSettings()) == ({"CPU": 1.0}, 4)
    assert trial_options(TrainSettings(), ResourceSettings(cpus_per_worker=0.5)) == ({"CPU": 0.5}, 8)
    # Ray Tune does not see what workers reserve, so that only the number of trials keeps them apart.
    assert trial_options(TrainSettings(num_workers=2), ResourceSettings()) == ({"memory": 1.0}, 2)
    assert trial_options(TrainSettings(num_workers=3), ResourceSettings()) == ({"memory": 1.0}, 1)
    size({"CPU": 3.0}, {"CPU": 3.0})
    assert trial_options(TrainSettings(num_workers=2), ResourceSettings(cpus_per_worker=2.0)) == ({"memory": 1.0}, 1)
    size(CPU=16.0, GPU=2.0)
    assert trial_options(TrainSettings(), ResourceSettings(gpus_per_worker=0.25)) == ({"CPU": 1.0, "GPU": 0.25}, 8)
    with pytest.raises(ConfigError, match=r"resources: 1 workers of 17 CPU and 1 GPU"):
        trial_options(TrainSettings(), ResourceSettings(cpus_per_worker=17))
    assert trial_options(TrainSettings(), ResourceSettings(trials=3))[1] == 3


def test_a_task_that_nothing_could_ever_run_is_refused(size):
    size(CPU=4.0)
    options = task_options(TrainSettings(), ResourceSettings(cpus_per_worker=0.5, max_failures=2))
    assert options == {"num_cpus": 0.5, "num_gpus": 0.0, "max_retries": 2}
    with pytest.raises(ConfigError, match=r"resources: 1 workers of 5 CPU each .* do not fit; this machine has 4 CPU"):
        task_options(TrainSettings(), ResourceSettings(cpus_per_worker=5))


def test_an_address_where_nobody_answers_is_named(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(RaybalError, match=rf"RAY_ADDRESS: no Ray cluster answers at '{address}'"),
        cluster(ResourceSettings()),
    ):
        pass


def test_a_relative_place_in_an_uploaded_folder_is_refused(tmp_path, monkeypatch):
    check_place("store", "runs/x")
    uploaded = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    uploaded.mkdir(parents=True)
    monkeypatch.chdir(uploaded)
    with pytest.raises(ConfigError, match=r"^store: 'runs/x' is not accepted in a submitted job"):
        check_place("store", "runs/x")
    check_place("store", "/data/runs/x")
    check_place("pool", "s3://bucket/pool")
