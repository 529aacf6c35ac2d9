"""What must agree between the files of cluster/: versions, names, placeholders; and no secrets."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import ray

PLACES = {
    "Dockerfile": (r"^FROM rayproject/ray:(\d+\.\d+\.\d+)-", r'"ray==(\d+\.\d+\.\d+)"', r"raybal:(\d+\.\d+\.\d+)-"),
    "aws.yaml": (r"rayproject/ray:(\d+\.\d+\.\d+)-", r'"ray==(\d+\.\d+\.\d+)"'),
    "kuberay/raycluster.yaml": (r'rayVersion: "(\d+\.\d+\.\d+)"', r"raybal:(\d+\.\d+\.\d+)-"),
    "kuberay/rayjob.yaml": (r'rayVersion: "(\d+\.\d+\.\d+)"', r"raybal:(\d+\.\d+\.\d+)-"),
    "README.md": (r"ray\[default\]==(\d+\.\d+\.\d+)", r"raybal:(\d+\.\d+\.\d+)-", r"of one version, (\d+\.\d+\.\d+)"),
}
# Variables that others read.
NOT_RAYS = {"OMP_NUM_THREADS"}


def test_the_ray_version_is_the_same_everywhere(root: Path) -> None:
    dependencies = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    (pin,) = [re.fullmatch(r"ray\[[a-z,]+\]==(\d+\.\d+)\.\*", text) for text in dependencies if text.startswith("ray[")]
    assert pin is not None
    found = {}
    for name, patterns in PLACES.items():
        text = (root / "cluster" / name).read_text()
        for pattern in patterns:
            versions = re.findall(pattern, text, re.MULTILINE)
            assert versions, f"{name}: no version matches {pattern}"
            found[name, pattern] = set(versions)
    (version,) = set().union(*found.values())
    assert version.rpartition(".")[0] == pin[1]
    assert ray.__version__.rpartition(".")[0] == pin[1]


def test_no_version_of_ray_hides_elsewhere(root: Path) -> None:
    for path in (root / "cluster").rglob("*"):
        if path.is_file() and re.search(r"rayproject/ray:|ray==|rayVersion", path.read_text()):
            assert str(path.relative_to(root / "cluster")) in PLACES


def test_images_are_for_the_oldest_supported_python(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    python = "py" + project["requires-python"].removeprefix(">=").replace(".", "")
    for name in PLACES:
        tags = re.findall(r"(?:rayproject/ray|raybal):\d+\.\d+\.\d+-(py\d+)", (root / "cluster" / name).read_text())
        assert set(tags) == ({python} if tags else set())


def test_the_readme_names_every_file_and_every_file_exists(root: Path) -> None:
    readme = (root / "cluster/README.md").read_text()
    named = set(re.findall(r"^\| `([^`]+)` \| [^|]+ \|$", readme, re.MULTILINE))
    there = {str(path.relative_to(root / "cluster")) for path in (root / "cluster").rglob("*") if path.is_file()}
    ours = {name for name in there if name == "Dockerfile" or name.endswith(".yaml")}
    assert ours <= named
    for path in set(re.findall(r"cluster/[\w/]+(?:\.yaml|file)", readme)):
        assert (root / path).is_file(), path
    for name in named:
        assert (root / "cluster" / name).exists(), name


def test_the_readme_explains_every_placeholder(root: Path) -> None:
    readme = (root / "cluster/README.md").read_text()
    used: set[str] = set()
    for path in (root / "cluster").rglob("*"):
        if path.is_file() and path.name != "README.md":
            used |= set(re.findall(r"REPLACE_[A-Z_]*[A-Z]", path.read_text()))
    assert used
    assert used == set(re.findall(r"REPLACE_[A-Z_]*[A-Z]", readme))


def test_the_readme_says_what_was_not_run(root: Path) -> None:
    assert "never run on AWS or Kubernetes" in " ".join((root / "cluster/README.md").read_text().split())


def test_variables_in_the_readme_exist(root: Path) -> None:
    readme = (root / "cluster/README.md").read_text()
    rows = re.findall(r"^\| (`[A-Z_]+`(?:, `[A-Z_]+`)*) \|", readme, re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"[A-Z_]+", row)} - NOT_RAYS
    assert len(names) >= 8
    package = Path(ray.__file__).parent
    sources = [
        "_private/ray_constants.py",
        "_private/runtime_env/image_uri.py",
        "_private/authentication/authentication_token_setup.py",
        "train/v2/_internal/constants.py",
        "data/context.py",
    ]
    text = "".join((package / source).read_text() for source in sources)
    assert {name for name in names if not re.search(rf"\b{name}\b", text)} == set()


def test_the_image_lists_the_dependencies_as_the_nodes_do(root: Path) -> None:
    """The command that reads them is run in the test of aws.yaml; here it differs by its path."""
    program = r"import tomllib; print\(\*tomllib\.load\(open\('[^']*pyproject\.toml', 'rb'\)\)\[[^\"]*\""
    (ours,) = re.findall(program, (root / "cluster/Dockerfile").read_text())
    (nodes,) = re.findall(program, (root / "cluster/aws.yaml").read_text())
    assert ours == nodes.replace("/home/ray/raybal-setup/", "")


def test_the_image_copies_what_exists(root: Path) -> None:
    copied = re.findall(r"^COPY --chown=ray (.+) \S+$", (root / "cluster/Dockerfile").read_text(), re.MULTILINE)
    for name in " ".join(copied).split():
        assert (root / name).exists(), name


def test_no_secret_is_in_a_file(root: Path) -> None:
    for path in (root / "cluster").rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not re.search(r"RAY_AUTH_TOKEN=(?!\$\()", text), path
            assert not re.search(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b", text), path
            assert not re.search(r"\b[0-9]{12}\b", text), f"{path}: an account number?"
