"""Event files, read back with TensorBoard's own reader, hold the store's numbers, once."""

from __future__ import annotations

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raybal.report.events import write_events


def read(store, run):
    events = EventAccumulator(store.path(f"tensorboard/{run}"), size_guidance={"scalars": 0})
    events.Reload()
    return events


def values(events, tag):
    return [(e.step, e.value) for e in events.Scalars(tag)]


@pytest.fixture
def written(made):
    write_events(made.store)
    return made


def test_rounds_hold_test_metrics_against_labels(written):
    events = read(written.store, "rounds")
    for head in ("fused", "video", "audio"):
        for metric in ("accuracy", "balanced_accuracy", "nll"):
            wanted = [(4 * r + 4, np.float32(written.facts[r, "evaluate"]["test"][head][metric])) for r in range(3)]
            assert values(events, f"test/{metric}/{head}") == wanted


def test_contributions_stand_at_the_labels_of_the_model_that_they_are_of(written):
    events = read(written.store, "rounds")
    for k, m in enumerate(("video", "audio")):
        query = [(4 * r, pytest.approx(written.shares[r][:, k].mean(), rel=1e-6)) for r in (1, 2)]
        pool = [(4 * r, np.float32(written.facts[r, "select"]["pool"]["contribution"][k])) for r in (1, 2)]
        assert values(events, f"contribution/{m}/query") == query
        assert values(events, f"contribution/{m}/pool") == pool


def test_a_models_own_contributions_stand_at_its_labels(made):
    made.round(3, contribution={"validation": [0.3, 0.7], "test": [0.25, 0.75]})
    write_events(made.store)
    events = read(made.store, "rounds")
    assert values(events, "contribution/audio/test") == [(16, 0.75)]
    assert values(events, "contribution/video/validation") == [(16, np.float32(0.3))]


def test_what_a_file_manager_leaves_behind_stops_nothing(written):
    written.store.write_bytes("tensorboard/.DS_Store", b"")
    write_events(written.store)
    assert written.store.names("tensorboard") == ["round-000", "round-001", "round-002", "rounds"]


def test_each_round_holds_its_epochs(written):
    for r in range(3):
        events, history = read(written.store, f"round-{r:03d}"), written.facts[r, "train"]["history"]
        assert values(events, "loss") == [(h["epoch"], np.float32(h["loss"])) for h in history]
        assert values(events, "validation/accuracy/audio") == [
            (h["epoch"], np.float32(h["validation"]["audio"]["accuracy"])) for h in history
        ]
        for k, m in enumerate(("video", "audio")):
            wanted = [(h["epoch"], np.float32(h["coefficient"][k])) for h in history]
            assert values(events, f"coefficient/{m}") == wanted


def test_a_method_without_coefficients_has_neither_them_nor_a_pace(made):
    made.round(3, coefficients=False)
    write_events(made.store)
    tags = read(made.store, "round-003").Tags()["scalars"]
    assert sorted(t for t in tags if not t.startswith("validation/")) == ["loss"]
    assert "pace" in read(made.store, "round-002").Tags()["scalars"]


def test_writing_again_duplicates_nothing(written):
    (old,) = written.store.names("tensorboard/rounds")
    content = written.store.read_bytes(f"tensorboard/rounds/{old}")
    written.round(3)
    write_events(written.store)
    assert len(written.store.names("tensorboard/rounds")) == 1
    steps = [step for step, _ in values(read(written.store, "rounds"), "test/accuracy/fused")]
    assert steps == [4, 8, 12, 16]
    # A TensorBoard that has read the old file reads the new one after it, and forgets the old events.
    written.store.write_bytes(f"tensorboard/rounds/{old}", content)
    steps = [step for step, _ in values(read(written.store, "rounds"), "test/accuracy/fused")]
    assert steps == [4, 8, 12, 16]


def test_a_store_without_a_round_has_no_events(made):
    made.store.clear("rounds")
    write_events(made.store)
    assert made.store.names("tensorboard") == []
