"""A whole training run: resume, keeping the best, and several workers."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from toy import make_classifier, make_items, make_spec

from raybal.balancing.base import Predictor
from raybal.balancing.pace import PaceSettings
from raybal.errors import DivergedError
from raybal.store import Store
from raybal.training.checkpoint import Checkpoints
from raybal.training.evaluate import evaluate
from raybal.training.fit import Run, fit
from raybal.training.settings import TrainSettings
from raybal.workers import Distributed, Workers, free_port


def make_run(folder, method="mlb", workers=None, train=None, validation=None, **settings):
    classifier, balancing = make_spec(method).build()
    return Run(
        classifier=classifier,
        method=balancing,
        train=train or make_items(40),
        validation=validation,
        settings=TrainSettings(**{"epochs": 4, "batch_size": 16, "device": "cpu", **settings}),
        seed=7,
        checkpoints=Checkpoints(Store(str(folder)), "train"),
        device=torch.device("cpu"),
        workers=workers or Workers(),
    )


class KilledError(Exception):
    pass


@pytest.mark.parametrize(("method", "optimizer"), [("mlb", "adam"), ("pmr", "sgd")])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, method, optimizer):
    options = {"validation": make_items(15, seed=9), "optimizer": optimizer, "schedule": "cosine", "warmup_epochs": 1}
    undisturbed = make_run(tmp_path / "a", method, **options)
    whole = fit(undisturbed)

    def kill(record):
        if record["epoch"] == 2:
            raise KilledError

    with pytest.raises(KilledError):
        fit(make_run(tmp_path / "b", method, **options), kill)
    seen = []
    resumed = make_run(tmp_path / "b", method, **options)
    result = fit(resumed, lambda record: seen.append(record["epoch"]))
    assert seen == [3, 4]
    for key, value in undisturbed.classifier.state_dict().items():
        assert torch.equal(value, resumed.classifier.state_dict()[key]), key
    drop = ("seconds",)
    for one, other in zip(whole["history"], result["history"], strict=True):
        assert {k: v for k, v in one.items() if k not in drop} == {k: v for k, v in other.items() if k not in drop}
    assert whole["epoch"] == result["epoch"]
    last = [Checkpoints(Store(str(tmp_path / x)), "train").read("epoch", 4)[0] for x in "ab"]
    assert last[0].keys() == last[1].keys()
    assert all(torch.equal(last[0][k], last[1][k]) for k in last[0])


def test_dropout_repeats_after_a_resume(tmp_path):
    def run(name, stop_at=None):
        prepared = make_run(tmp_path / name)
        for encoder in prepared.classifier.encoders.values():
            encoder.dropout.p = 0.5

        def kill(record):
            if record["epoch"] == stop_at:
                raise KilledError

        fit(prepared, kill)
        return prepared.classifier.state_dict()

    whole = run("a")
    with pytest.raises(KilledError):
        run("b", stop_at=1)
    torch.manual_seed(123)  # whatever happened in between
    resumed = run("b")
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_training_learns_and_keeps_the_best_epoch(tmp_path):
    validation = make_items(40, seed=9)
    run = make_run(tmp_path, validation=validation, train=make_items(80), epochs=8, learning_rate=0.01)
    result = fit(run)
    accuracies = [r["validation"]["fused"]["accuracy"] for r in result["history"]]
    losses = [r["validation"]["fused"]["nll"] for r in result["history"]]
    best = max(range(8), key=lambda e: (accuracies[e], -losses[e]))
    assert accuracies[best] > 0.8
    assert result["epoch"] == best + 1
    assert run.checkpoints.epochs("best") == [best + 1]
    assert run.checkpoints.epochs("epoch") == [8]


def test_early_stopping_counts_epochs_without_a_better_result(tmp_path):
    # A learning rate of almost nothing: the first epoch stays the best.
    run = make_run(tmp_path, validation=make_items(10, seed=9), epochs=9, patience=2, learning_rate=1e-12)
    result = fit(run)
    best = result["epoch"]
    assert len(result["history"]) == best + 2 < 9
    assert (
        len(
            fit(make_run(tmp_path, validation=make_items(10, seed=9), epochs=9, patience=2, learning_rate=1e-12))[
                "history"
            ]
        )
        == best + 2
    )


def test_without_validation_the_last_epoch_is_used_and_written_once(tmp_path):
    run = make_run(tmp_path)
    written, write = [], run.checkpoints.write
    run.checkpoints.write = lambda kind, epoch, *content: (written.append((kind, epoch)), write(kind, epoch, *content))
    assert fit(run)["epoch"] == 4
    assert written == [("epoch", e) for e in (1, 2, 3, 4)]
    assert fit(make_run(tmp_path))["epoch"] == 4


def test_training_that_diverges_ends_with_its_epoch(tmp_path):
    with pytest.raises(DivergedError, match=r"epoch 1: the loss is (nan|inf): training has diverged"):
        fit(make_run(tmp_path, "joint", optimizer="sgd", learning_rate=1e30, warmup_epochs=0.0))


def test_a_warm_start_goes_on_from_other_weights_and_keeps_where_it_began(tmp_path):
    """Re-learning pulls back to fresh weights, not to those of the round before."""
    before = make_run(tmp_path / "before", "joint")
    fit(before)
    run = make_run(tmp_path / "warm", "diagnosing_relearning", epochs=1, learning_rate=1e-9)
    fresh = {k: v.clone() for k, v in run.classifier.state_dict().items()}
    run.warm = {k: v.clone() for k, v in before.classifier.state_dict().items()}
    fit(run)
    for name, value in run.classifier.state_dict().items():
        torch.testing.assert_close(value, run.warm[name], rtol=0, atol=1e-5, msg=name)
    for name, value in run.method.state_dict().items():
        if name.startswith("initial."):
            assert torch.equal(value, fresh[f"encoders.{name.removeprefix('initial.')}"]), name


def test_the_pace_of_an_epoch_is_the_mean_over_its_steps(tmp_path):
    """Three steps an epoch, four epochs, and a window that ends in the middle of the second."""
    spec = make_spec("mlb", pace=PaceSettings(kind="window", end=0.4))
    run = make_run(tmp_path)
    run.method = spec.build()[1]
    assert [r["pace"] for r in fit(run)["history"]] == pytest.approx([1.0, 2 / 3, 0.0, 0.0])
    assert all("pace" not in r for r in fit(make_run(tmp_path / "joint", "joint"))["history"])


def _work(rank, world, port, folder, method, options):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    run = make_run(folder, method, Distributed(), validation=make_items(15, seed=9), **options)
    result = fit(run)
    state = run.classifier.state_dict()
    torch.save((result["history"], state), f"{folder}/rank-{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_equal_one_at_the_same_batch(tmp_path):
    """20 steps of MLB on convolutions: the same coefficients, and the same weights to 1e-5."""
    method = "mlb"
    options = {"epochs": 5, "batch_size": 12, "optimizer": "sgd", "learning_rate": 0.05, "clip_norm": 1.0}
    alone = make_run(tmp_path / "alone", method, validation=make_items(15, seed=9), **options)
    expected = fit(alone)
    assert 5 * np.ceil(40 / 12) == 20
    mp.spawn(_work, (2, free_port(), str(_made(tmp_path / "two")), method, options), nprocs=2)
    ranks = [torch.load(tmp_path / "two" / f"rank-{r}.pt", weights_only=False) for r in (0, 1)]
    for key, value in alone.classifier.state_dict().items():
        assert torch.equal(ranks[0][1][key], ranks[1][1][key]), f"the replicas differ in {key}"
        torch.testing.assert_close(ranks[0][1][key], value, rtol=0, atol=1e-5, msg=key)
    for one, two in zip(expected["history"], ranks[0][0], strict=True):
        assert one.get("coefficient", []) == pytest.approx(two.get("coefficient", []), rel=1e-4)
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
        assert one["validation"]["items"] == two["validation"]["items"] == 15
        assert one["validation"]["fused"]["accuracy"] == two["validation"]["fused"]["accuracy"]


def _work_with_batch_norm(rank, world, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    run = make_run(folder, "joint", Distributed(), validation=make_items(40, seed=9), optimizer="sgd", epochs=3)
    run.classifier = make_classifier(norm="batch")
    result = fit(run)
    torch.save((result["history"], run.classifier.state_dict()), f"{folder}/rank-{rank}.pt")
    dist.destroy_process_group()


def test_workers_validate_the_model_that_is_saved(tmp_path):
    """Batch norm's running statistics are those of each worker's own rows; only the first worker's are saved."""
    mp.spawn(_work_with_batch_norm, (2, free_port(), str(tmp_path)), nprocs=2)
    (history, state), (_, other) = (torch.load(tmp_path / f"rank-{r}.pt", weights_only=False) for r in (0, 1))
    assert any("running_mean" in key for key in state)
    assert all(torch.equal(state[key], other[key]) for key in state)
    checkpoints = Checkpoints(Store(str(tmp_path)), "train")
    (best,) = checkpoints.epochs("best")
    classifier = make_classifier(norm="batch")
    tensors = checkpoints.read("best", best)[0]
    classifier.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items()})
    found = evaluate(Predictor(classifier), make_items(40, seed=9), torch.device("cpu"))
    reported = history[best - 1]["validation"]
    for head in ("fused", "audio", "video"):
        assert found[head] == pytest.approx(reported[head], rel=1e-6)


def _made(folder):
    folder.mkdir()
    return folder
