"""aws.yaml through Ray's schema and through the configuration code that `ray up` and the autoscaler run, offline."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

Config = dict[str, Any]
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def check(config: Config) -> AutoscalingConfig:
    """Takes the steps of `ray up` that come before the first call to AWS; raises if one refuses."""
    jsonschema.validate(config, SCHEMA)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    # Content hashes would read the user's token.
    autoscaling = AutoscalingConfig(copy.deepcopy(config), skip_content_hash=True)
    autoscaling.get_node_type_configs()
    return autoscaling


def node_types(config: Config) -> dict[str, Config]:
    return config["available_node_types"]


def workers(config: Config) -> dict[str, Config]:
    return {name: node for name, node in node_types(config).items() if name != config["head_node_type"]}


def start_commands(config: Config, who: str) -> list[str]:
    return [command for command in config[f"{who}_start_ray_commands"] if "ray start" in command]


def test_it_passes_rays_own_checks(aws: Config) -> None:
    check(aws)


def test_a_misspelt_top_level_key_is_rejected(aws: Config) -> None:
    aws["idle_timeout_minute"] = aws.pop("idle_timeout_minutes")
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        check(aws)


def test_a_misspelt_key_of_a_node_type_is_rejected(aws: Config) -> None:
    node_types(aws)["cpu-spot"]["max_worker"] = 8
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        check(aws)


def test_a_wrong_type_is_rejected(aws: Config) -> None:
    aws["max_workers"] = "12"
    with pytest.raises(jsonschema.ValidationError, match="'12' is not of type 'integer'"):
        check(aws)


def test_fewer_workers_at_most_than_at_least_are_rejected(aws: Config) -> None:
    node_types(aws)["gpu-spot"].update(min_workers=5, max_workers=4)
    with pytest.raises(AssertionError):
        check(aws)


def test_more_workers_at_least_than_the_cluster_may_have_are_rejected(aws: Config) -> None:
    node_types(aws)["gpu-spot"].update(min_workers=13, max_workers=13)
    with pytest.raises(ValueError, match="max_workers"):
        check(aws)


def test_a_head_that_is_no_node_type_is_rejected(aws: Config) -> None:
    aws["head_node_type"] = "haed"
    with pytest.raises(ValueError, match="head_node_type"):
        check(aws)


def test_workers_are_spot_and_the_head_is_not(aws: Config) -> None:
    head = node_types(aws)[aws["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["labels"] == {"ray.io/market-type": "on-demand"}
    assert len(workers(aws)) == 2
    for node in workers(aws).values():
        assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert node["labels"] == {"ray.io/market-type": "spot"}


def test_the_head_schedules_nothing(aws: Config) -> None:
    autoscaling = check(aws)
    assert autoscaling.get_node_resources("head") == {"CPU": 0}
    assert node_types(autoscaling.get_raw_config_mutable())["head"]["max_workers"] == 0
    (start,) = start_commands(aws, "head")
    assert "--num-cpus=0" in start
    assert "--num-gpus=0" in start


def test_the_cluster_shrinks_to_its_head(aws: Config) -> None:
    assert [node["min_workers"] for node in workers(aws).values()] == [0, 0]
    assert sum(node["max_workers"] for node in workers(aws).values()) <= aws["max_workers"]
    assert 0 < aws["idle_timeout_minutes"] <= 30


def test_gpu_nodes_and_only_they_run_the_gpu_image(aws: Config) -> None:
    autoscaling = check(aws)
    for name in node_types(aws):
        docker, gpu = autoscaling.get_docker_config(name), "GPU" in autoscaling.get_node_resources(name)
        assert docker["image"].endswith("-gpu" if gpu else "-cpu")
        assert docker.get("worker_run_options", []) == (["--gpus all"] if gpu else [])


@pytest.mark.parametrize("who", ["head", "worker"])
def test_start_commands_are_rays_own_with_two_changes(aws: Config, who: str) -> None:
    (ours,) = start_commands(aws, who)
    (rays,) = start_commands(prepare_config({"provider": aws["provider"]}), who)
    added = {"unset", "OMP_NUM_THREADS;"} | ({"--num-cpus=0", "--num-gpus=0"} if who == "head" else set())
    assert set(ours.split()) - set(rays.split()) == added
    assert set(rays.split()) <= set(ours.split())


def test_every_node_uses_the_mounted_token(aws: Config) -> None:
    options = aws["docker"]["run_options"]
    assert "-e RAY_AUTH_MODE=token" in options
    (path,) = [option.split("=")[1] for option in options if option.startswith("-e RAY_AUTH_TOKEN_PATH=")]
    assert aws["file_mounts"][path] == "~/.ray/auth_token"


def test_every_node_has_an_identity_that_is_marked_as_a_placeholder(aws: Config) -> None:
    profiles = [node["node_config"]["IamInstanceProfile"]["Name"] for node in node_types(aws).values()]
    assert all(profile.startswith("REPLACE_") for profile in profiles)
    assert len(set(profiles)) == 2, "head and workers have different rights"


def test_nodes_install_the_dependencies_of_the_project(aws: Config, root: Path, tmp_path: Path) -> None:
    """Runs the command that lists them, on the file that is mounted."""
    (mount,) = [remote for remote, local in aws["file_mounts"].items() if local == "pyproject.toml"]
    listing, install = aws["setup_commands"]
    target = tmp_path / "requirements.txt"
    command = listing.replace(mount, str(root / "pyproject.toml")).replace("/tmp/requirements.txt", str(target))
    assert command.startswith("python ")
    subprocess.run(["bash", "-c", f"{sys.executable} {command.removeprefix('python ')}"], check=True)
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert target.read_text().splitlines() == project["dependencies"]
    assert "-r /tmp/requirements.txt" in install
    assert re.search(r'"ray==\d+\.\d+\.\d+"', install)
