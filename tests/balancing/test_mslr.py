"""MSLR's multipliers against recorded ones."""

import numpy as np
import pytest
import torch
from toy import make_classifier, make_context, make_items, make_method, make_pair, whole_batch

from raybal.balancing.mslr import multipliers
from raybal.errors import ConfigError
from raybal.training.step import train_step


def test_multipliers_equal_the_authors(vectors):
    data = vectors("mslr")
    history = torch.from_numpy(np.stack([data["val_acc_a"], data["val_acc_v"]], 1))
    initial = torch.from_numpy(data["init"])
    found = [multipliers(history[:e], int(data["window"]), initial) for e in range(len(history) + 1)]
    np.testing.assert_allclose(torch.stack(found), data["coeff_per_epoch"], rtol=1e-10)


def test_a_modality_that_was_never_right_keeps_its_initial_factor():
    history = torch.tensor([[0.0, 0.5], [0.0, 0.5], [0.3, 0.25]], dtype=torch.float64)
    assert multipliers(history, 2, torch.tensor([0.9, 1.1]).double()).tolist() == pytest.approx([0.9, 0.55])


def test_published_starts_go_by_name():
    assert make_method("mslr")._initial.tolist() == [0.9, 1.1]
    assert make_method("mslr", ("video", "audio", "text"))._initial.tolist() == [1.1, 0.9, 1.0]
    assert make_method("mslr", initial={"audio": 0.7})._initial.tolist() == [0.7, 1.1]
    with pytest.raises(ConfigError, match=r"balancing\.initial\.adio: .*audio, video \(did you mean 'audio'"):
        make_method("mslr", initial={"adio": 0.7})


def test_accuracy_is_that_of_the_held_out_items_once_an_epoch():
    held_out = make_items(12, seed=4)
    classifier, method = make_pair("mslr", window=1)
    ctx = make_context(classifier, train=make_items(24), held_out=held_out)
    wanted = []
    for epoch in range(3):
        ctx.epoch = epoch
        method.before_epoch(ctx)
        if epoch:
            wanted.append([ctx.evaluate(classifier, held_out)[m]["accuracy"] for m in ("audio", "video")])
        for _ in range(4):
            train_step(ctx, method, [whole_batch(ctx.train)])
    assert method._history.tolist() == wanted
    expected = [[0.9, 1.1]] * 8 + [multipliers(method._history, 1, method._initial).tolist()] * 4
    assert [k.tolist() for k in ctx.log["coefficient"]] == expected


def test_a_step_moves_each_encoder_and_its_slice_of_the_fusion_by_the_factor():
    items, moves = make_items(24), {}
    for name, options in (("joint", {}), ("mslr", {"skew": 0.5})):
        classifier, method = make_classifier(), make_method(name, **options)
        start = {n: p.detach().clone() for n, p in classifier.named_parameters()}
        ctx = make_context(classifier, torch.optim.Adam(classifier.parameters(), lr=1e-3, eps=1e-12), train=items)
        method.before_epoch(ctx)
        train_step(ctx, method, [whole_batch(items)])
        moves[name] = {n: p.detach() - start[n] for n, p in classifier.named_parameters()}
    for parameter, move in moves["joint"].items():
        scale = 1.0
        for m, factor in (("audio", 0.5), ("video", 1.5)):
            if parameter.startswith((f"encoders.{m}.", f"fusion.parts.{m}.")):
                scale = factor
        torch.testing.assert_close(moves["mslr"][parameter], scale * move, rtol=1e-3, atol=2e-7, msg=parameter)
