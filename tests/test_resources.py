"""From the size of a cluster to workers and actors. The sizes are made up: no machine here has a GPU."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
import ray

from raybal.errors import ConfigError, RaybalError
from raybal.resources import ResourceSettings, check_place, cluster, scaling, scoring_options, trial_options
from raybal.training.settings import TrainSettings


@pytest.fixture
def size(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_JOB_ID", raising=False)

    def set_size(*nodes: dict[str, float], grown: list | None = None, **resources: float) -> None:
        """A cluster of some nodes, or of one, which may grow to (resources, largest number) of each kind of node."""
        each = nodes or (resources,)
        total = {name: sum(node.get(name, 0.0) for node in each) for node in each for name in node}
        groups = [SimpleNamespace(resources=r, max_count=n) for r, n in grown or []]
        config = None if grown is None else SimpleNamespace(node_group_configs=groups)
        monkeypatch.setattr(ray, "cluster_resources", lambda: total)
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": dict(node)} for node in each])
        monkeypatch.setattr(ray._private.state.state, "get_cluster_config", lambda: config)

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


def test_on_a_cluster_workers_wait_for_it_to_grow(size, monkeypatch, caplog):
    size()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    made = workers(4, ResourceSettings(gpus_per_worker=1), "cuda")
    assert made.num_workers == 4
    assert "waiting for it to grow" in caplog.text


@pytest.mark.parametrize(
    ("count", "each", "fits"),
    [
        # Up to three nodes of 2 CPUs beside one of 1: sums would say that 4 CPUs fit.
        (1, 4.0, False),
        (6, 1.0, True),
        (7, 1.0, True),
        (8, 1.0, False),
        (3, 2.0, True),
        (4, 2.0, False),
        (14, 0.5, True),
        (15, 0.5, False),
    ],
)
def test_what_even_the_largest_cluster_cannot_place_is_refused(size, monkeypatch, caplog, count, each, fits):
    size(CPU=1.0, grown=[({"CPU": 1.0}, 1), ({"CPU": 2.0}, 3)])
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    settings = ResourceSettings(cpus_per_worker=each)
    if fits:
        assert workers(count, settings).num_workers == count
        assert "waiting for it to grow" in caplog.text
        return
    for asked in (lambda: workers(count, settings), lambda: trial_options(TrainSettings(num_workers=count), settings)):
        with pytest.raises(
            ConfigError, match=r"train\.num_workers: .* do not fit the cluster even when its autoscaler"
        ):
            asked()


def test_trials_share_a_cluster_without_waiting_for_one_another(size, monkeypatch):
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
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    size(CPU=2.0, grown=[({"CPU": 2.0}, 1), ({"CPU": 8.0}, 4)])
    assert trial_options(TrainSettings(num_workers=4), ResourceSettings()) == ({"memory": 1.0}, 8)
    size(CPU=2.0, grown=[({"CPU": 8.0}, -1)])
    assert trial_options(TrainSettings(), ResourceSettings())[1] == 1000


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
