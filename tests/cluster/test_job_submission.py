"""runtime_env.yaml through Ray's own parser and packer, and the commands that submit jobs."""

from __future__ import annotations

import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import click
import pytest
import ray
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import _zip_files
from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args
from ray.dashboard.modules.job.cli import submit
from ray.runtime_env import RuntimeEnv
from ray.scripts import scripts
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

RAY = Path(ray.__file__).parent


def check(content: dict[str, Any]) -> RuntimeEnv:
    # Ray itself takes any key, and ignores those that it does not know.
    unknown = set(content) - RuntimeEnv.known_fields
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))}: no such key of a runtime environment")
    return RuntimeEnv(**content)


def packed(folder: Path, excludes: list[str], to: Path) -> set[str]:
    """Returns the files that `ray job submit --working-dir` would upload."""
    _zip_files(str(folder), get_runtime_env_default_excludes() + excludes, str(to), include_gitignore=True)
    with zipfile.ZipFile(to) as package:
        return set(package.namelist())


def test_it_is_a_valid_runtime_environment(root: Path) -> None:
    content = parse_runtime_env_args(runtime_env=str(root / "cluster/runtime_env.yaml"))
    assert set(check(content)) == {"excludes", "env_vars"}, "dependencies belong in the image"


def test_a_misspelt_key_is_rejected(runtime_env: dict[str, Any]) -> None:
    runtime_env["exclude"] = runtime_env.pop("excludes")
    with pytest.raises(ValueError, match="exclude"):
        check(runtime_env)


def test_a_number_as_environment_variable_is_rejected(runtime_env: dict[str, Any]) -> None:
    runtime_env["env_vars"]["RAY_DATA_DISABLE_PROGRESS_BARS"] = 1
    with pytest.raises(TypeError):
        check(runtime_env)


def test_its_variables_are_ones_that_ray_reads(runtime_env: dict[str, Any]) -> None:
    names = set(runtime_env["env_vars"])
    assert {name for name in names if name.startswith("RAY_TRAIN_")} <= ENV_VARS_TO_PROPAGATE
    names -= ENV_VARS_TO_PROPAGATE
    assert names == {"RAY_DATA_DISABLE_PROGRESS_BARS"}
    assert "RAY_DATA_DISABLE_PROGRESS_BARS" in (RAY / "data/context.py").read_text()


def test_the_upload_holds_the_code_and_nothing_large(runtime_env: dict[str, Any], root: Path, tmp_path: Path) -> None:
    files = packed(root, runtime_env["excludes"], tmp_path / "package.zip")
    code = {str(path.relative_to(root)) for folder in ("raybal", "jobs") for path in (root / folder).rglob("*.py")}
    assert code
    assert code <= files
    assert not [name for name in files if name.startswith(("tests/", ".git/"))]
    assert (tmp_path / "package.zip").stat().st_size < 5 * 2**20


def test_the_upload_leaves_out_what_is_made_while_working(runtime_env: dict[str, Any], tmp_path: Path) -> None:
    keep = {"raybal/data/pool.py", "raybal/report/templates/page.html", "jobs/al_loop.py", "jobs/configs/a.yaml"}
    leave = {
        ".git/config",
        ".venv/bin/python",
        ".venv-gpu/bin/python",
        "raybal/__pycache__/store.cpython-311.pyc",
        "raybal.egg-info/PKG-INFO",
        ".mypy_cache/3.11/a.json",
        ".ruff_cache/a",
        ".pytest_cache/a",
        "build/lib/a.py",
        "dist/a.whl",
        "runs/first/rounds/001/select.yaml",
        "tests/test_store.py",
        "clips/a.mp4",
        "clips/a.wav",
        "pool/shard-0.parquet",
        "weights.safetensors",
    }
    for name in keep | leave:
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")
    assert packed(tmp_path / "project", runtime_env["excludes"], tmp_path / "package.zip") == keep


def commands(root: Path) -> list[list[str]]:
    """Returns the commands in the README's code blocks and in the comments that begin the files, as words."""
    text = "\n".join(re.findall(r"^```bash\n(.*?)^```", (root / "cluster/README.md").read_text(), re.M | re.S))
    for path in (root / "cluster").rglob("*"):
        if path.is_file() and path.suffix != ".md":
            # An indented comment is a command; words after two spaces say when to use it.
            text += "\n" + "\n".join(re.findall(r"^#   (\w.*?)(?:   .*)?$", path.read_text(), re.M))
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def ray_commands(root: Path) -> list[list[str]]:
    found = [words[words.index("ray") :] for words in commands(root) if "ray" in words]
    # Not `helm install ray`-like uses, but `ray up`, and `RAY_AUTH_MODE=token ray start`.
    return [words for words in found if words[1] in scripts.cli.commands]


def test_entrypoints_name_job_scripts(root: Path, ray_job: dict[str, Any]) -> None:
    submitted = [words[words.index("--") + 1 :] for words in ray_commands(root) if words[1:3] == ["job", "submit"]]
    assert len(submitted) >= 3
    for entrypoint in [*submitted, ray_job["spec"]["entrypoint"].split()]:
        assert entrypoint[0] == "python"
        assert re.fullmatch(r"jobs/[a-z_]+\.py", entrypoint[1])
        assert (root / entrypoint[1]).is_file(), f"{entrypoint[1]} does not exist"


def test_the_configuration_of_the_job_exists_or_is_a_placeholder(root: Path, ray_job: dict[str, Any]) -> None:
    words = ray_job["spec"]["entrypoint"].split()
    config = words[words.index("--config") + 1]
    assert "REPLACE_" in config or (root / config).is_file()


def test_rays_command_line_knows_the_commands_and_options(root: Path) -> None:
    used = ray_commands(root)
    assert {words[1] for words in used} >= {"up", "down", "start", "dashboard", "exec", "job", "get-auth-token"}
    for words in used:
        command: click.Command = scripts.cli.commands[words[1]]
        if words[1] == "job":
            assert words[2] == "submit"
            command = submit
        own = words[: words.index("--")] if "--" in words else words
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word.split("=")[0] for word in own if word.startswith("--")} <= known, words


@pytest.mark.parametrize("who", ["head", "worker"])
def test_rays_command_line_knows_the_start_commands_on_aws(aws: dict[str, Any], who: str) -> None:
    (start,) = [command for command in aws[f"{who}_start_ray_commands"] if "ray start" in command]
    known = {option for parameter in scripts.start.params for option in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", start)) <= known
