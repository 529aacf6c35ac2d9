"""Every published experiment's configuration on a small tree of its data set: loaded, decoded, every row built, and
what the experiment is about trained two steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from layout_trees import ave, crema_d, crema_d_common, crema_d_folds, kinetics, ucf101, vggsound, write

from raybal.config import parse
from raybal.data.batches import Items, gather
from raybal.data.layouts.base import read_layout
from raybal.data.schema import Modality
from raybal.media.clip import decode_audio, decode_video
from raybal.models.classifier import ModelSettings
from raybal.models.encoders import EncoderSettings
from raybal.predictor import PredictorSpec
from raybal.store import Store
from raybal.table.config import TableConfig
from raybal.training.checkpoint import Checkpoints
from raybal.training.fit import Run, begin
from raybal.training.step import train_step

FOLDER = Path(__file__).parents[2] / "jobs/published"
FILES = sorted(FOLDER.glob("*.yaml"))
TREES = {"ave": ave, "crema_d": crema_d, "kinetics_sounds": kinetics, "ucf101": ucf101, "vggsound": vggsound}
CLIPS = 6
#: Rows of a benchmark that depend on the data set by more than the shape of its tensors.
BY_DATA = ["g_blending", "pmr", "diagnosing_relearning"]


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    made = {name: make(tmp_path_factory.mktemp(name)) for name, make in TREES.items()}
    write(made["crema_d"], [], crema_d_common() | crema_d_folds())
    return made


def decoded(config: TableConfig, folder: Path) -> tuple[Items, tuple[Modality, ...], tuple[str, ...]]:
    """A few clips through the configuration's own preprocessing, but of small pictures and little sound."""
    table = read_layout(config.source.layout, str(folder)).table.to_pylist()
    classes = tuple(sorted({row["label"] for row in table}))
    settings = config.source.preprocessing
    small = dataclasses.replace(settings.video, height=40, width=40)
    short = dataclasses.replace(settings.audio, seconds=0.3)
    chosen = [row for row in table if row["split"] in ("train", None)][:: max(1, len(table) // (2 * CLIPS))][:CLIPS]
    video, audio = [], []
    for row in chosen:
        files = {k: Path(row.get(f"{k}_uri") or row["uri"]).read_bytes() for k in ("video", "audio")}
        video.append(decode_video(files["video"], small))
        audio.append(decode_audio(files["audio"], short))
    modalities = (
        Modality("video", "video", small.shape(), "uint8", (128.0,) * 3, (64.0,) * 3),
        Modality("audio", "audio", short.shape(), "float16", (-5.0,), (4.0,)),
    )
    labels = np.array([classes.index(row["label"]) for row in chosen], np.int64)
    inputs = {"video": np.stack(video), "audio": np.stack(audio)}
    return Items([row["id"] for row in chosen], inputs, np.ones((len(chosen), 2), bool), labels), modalities, classes


def test_there_are_configurations():
    assert len(FILES) >= 10


def test_experiments_do_not_share_a_pool_or_a_store():
    configs = [parse(TableConfig, ["--config", str(file)]) for file in FILES]
    assert len({c.pool for c in configs}) == len({c.store for c in configs}) == len(FILES)


def commands(file: Path) -> list[list[str]]:
    """The arguments of each command that a configuration's comment has."""
    lines = [line.removeprefix("#   ") for line in file.read_text().splitlines() if line.startswith("#   python")]
    assert all(line.startswith(f"python jobs/train.py --config jobs/published/{file.name} ") for line in lines)
    return [line.replace("jobs/published/", f"{FOLDER}/").split()[2:] for line in lines]


@pytest.mark.parametrize(
    ("file", "arguments"),
    [(f, c) for f in FILES for c in commands(f)],
    ids=lambda v: v.stem if isinstance(v, Path) else "",
)
def test_a_published_experiment_is_one_command(file, arguments, trees, tmp_path):
    assert "Settings: github.com/" in file.read_text()
    config = parse(TableConfig, arguments)
    assert config.source.input
    first = arguments == commands(file)[0]
    assert config.store == f"runs/{file.stem}" if first else config.store.startswith(f"runs/{file.stem}-")
    assert {"multi_loss", "ensemble"} <= set(config.methods)
    items, modalities, classes = decoded(config, trees[config.source.layout.name])
    # What the experiment is about: the row of its name. A benchmark is about all of its rows, which its three tables
    # share.
    benchmark = file.stem.startswith("balancebenchmark_")
    own = config.methods if benchmark else [row for row in config.methods if file.stem.startswith(f"{row}_")]
    assert own
    # Of its other two tables only what their data may change: the methods that count classes or hold items out.
    stepped = own if not benchmark or file.stem == "balancebenchmark_crema_d" else BY_DATA
    small = dataclasses.replace(config, model=ModelSettings(fusion=config.model.fusion, encoder=EncoderSettings(dim=8)))
    for row in config.methods if first else own:
        steps, how = (2, config) if row in stepped else (0, config if row in own else small)
        _steps(steps, how, row, items, modalities, classes, tmp_path)


def test_every_configuration_has_a_command():
    assert all(commands(file) for file in FILES)


def _steps(count, config, row, items, modalities, classes, folder):
    classifier, method = PredictorSpec(modalities, classes, config.model, config.settings_of(row), seed=0).build()
    train = dataclasses.replace(
        config.train, learning_rate=config.learning_rates[0], batch_size=4, epochs=2, device="cpu"
    )
    run = Run(classifier, method, items, None, train, 0, Checkpoints(Store(str(folder)), row), torch.device("cpu"))
    ctx = begin(run)
    ctx.rehearse = lambda method, epochs: ctx.classifier
    method.setup(ctx)
    method.before_epoch(ctx)
    classifier.train()
    for step in range(count):
        rows = np.arange(4 * step, 4 * step + 4) % len(items)
        assert torch.isfinite(train_step(ctx, method, [gather(items, rows, ctx.device)])), row
    assert all(torch.isfinite(p).all() for p in classifier.parameters()), row
