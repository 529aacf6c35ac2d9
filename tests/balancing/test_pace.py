import math

import pytest
import torch
from toy import make_context, make_items, make_method, make_pair, whole_batch

from raybal.balancing.base import METHODS
from raybal.balancing.pace import Pace, PaceSettings
from raybal.errors import ConfigError
from raybal.training.step import train_step

NAMES = ("audio", "video")
PACED = [name for name in METHODS.names() if "pace" in METHODS.get(name).Settings.__dataclass_fields__]
SEEN = torch.tensor([True, True])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "constant"}, [1, 1, 1, 1, 1]),
        ({"kind": "constant", "final": 0.5}, [0.5] * 5),
        ({"kind": "window", "start": 0.25, "end": 0.75}, [0, 1, 1, 0, 0]),
        ({"kind": "linear", "initial": 1.0, "final": 0.0}, [1, 0.75, 0.5, 0.25, 0]),
        ({"kind": "linear", "start": 0.25, "end": 0.75}, [0, 0, 0.5, 1, 1]),
        ({"kind": "cosine"}, [0, (1 - math.cos(math.pi / 4)) / 2, 0.5, (1 - math.cos(3 * math.pi / 4)) / 2, 1]),
        ({"kind": "knots", "knots": [0.25, 0.5, 1.0], "strengths": [0.2, 1.0, 0.0]}, [0.2, 0.2, 1, 0.5, 0]),
        ({"kind": "knots", "knots": [0.5], "strengths": [0.3]}, [0.3] * 5),
        # A ramp of no length is a switch.
        ({"kind": "linear", "start": 0.5, "end": 0.5}, [0, 0, 1, 1, 1]),
    ],
)
def test_strength_over_training(settings, expected):
    pace = PaceSettings(**settings)
    assert [pace.strength(p) for p in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx(expected)


def test_a_window_that_ends_before_it_starts_is_refused():
    with pytest.raises(ConfigError, match=r"end: 0.2 is not accepted; it must be at least start \(0.6\)"):
        PaceSettings(kind="window", start=0.6, end=0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "knots"}, "knots: kind knots needs at least one"),
        ({"kind": "knots", "knots": [0, 1], "strengths": [1]}, r"strengths: \[1\] .* the 2 knots need one each"),
        ({"kind": "knots", "knots": [0.5, 0.5], "strengths": [1, 0]}, "they must ascend"),
        ({"kind": "knots", "knots": [0, 2], "strengths": [1, 0]}, "every value must be between 0 and 1"),
        ({"kind": "linear", "knots": [0, 1], "strengths": [1, 0]}, "is for kind knots, and kind is linear"),
    ],
)
def test_knots_that_make_no_line_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PaceSettings(**settings)


def make_pace(paces=None, **settings):
    return Pace(PaceSettings(**settings), paces or {}, NAMES, "mlb", by_modality=True)


def test_a_modality_can_have_a_pace_of_its_own():
    pace = make_pace({"video": PaceSettings(kind="linear", initial=1.0, final=0.0)}, final=0.5)
    assert pace.strengths(0.25, 1).tolist() == [0.5, 0.75]
    classifier, method = make_pair("mlb", alpha=2.0, paces={"audio": PaceSettings(final=0.0)})
    ctx = make_context(classifier)
    train_step(ctx, method, [whole_batch(make_items(12))])
    (k,), (strengths,) = ctx.log["coefficient"], ctx.log["pace"]
    assert strengths.tolist() == [0.0, 1.0]
    assert k[0] == 1
    assert k[1] != 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlb", {"paces": {"vidoe": PaceSettings()}}, r"balancing\.paces\.vidoe: .*did you mean 'video'"),
        ("multimodal_loss", {"paces": {"video": PaceSettings()}}, "multimodal_loss acts on all modalities together"),
    ],
)
def test_a_pace_that_a_method_cannot_have_is_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_method(name, **options)


def test_a_ratio_that_leaves_in_between_starts_again():
    pace = make_pace(phase_out=0.3, phase_out_steps=3)
    for step, scores in enumerate([[0.5, 0.5]] * 2 + [[9.0, 0.1]] + [[0.5, 0.5]] * 4):
        pace.observe(torch.tensor(scores), SEEN, step)
    assert pace.strengths(0.0, 99).tolist() == [1.0, 1.0]


def test_phase_out_falls_to_nothing_over_its_steps():
    pace = make_pace(phase_out=0.1, phase_out_steps=4)
    found = []
    for step in range(12):
        pace.observe(torch.tensor([0.52, 0.5]) if step < 9 else torch.tensor([0.9, 0.1]), SEEN, step)
        found.append(pace.strengths(0.0, step).tolist()[0])
    # Near from the first step, so for four steps at step 3.
    assert found == [1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_only_the_modality_that_has_converged_is_phased_out():
    pace = Pace(PaceSettings(phase_out=0.2, phase_out_steps=2), {}, ("a", "b", "c"), "mlb", by_modality=True)
    for step in range(5):
        # b is the mean of a and c.
        pace.observe(torch.tensor([0.2, 0.5, 0.8]), torch.ones(3, dtype=torch.bool), step)
    assert pace.strengths(0.0, 5).tolist() == [1.0, 0.0, 1.0]


def test_a_modality_that_is_not_seen_does_not_converge():
    pace = make_pace(phase_out=0.1, phase_out_steps=2)
    for step in range(6):
        pace.observe(torch.tensor([0.5, 0.0]), torch.tensor([True, False]), step)
    assert pace.strengths(0.0, 6).tolist() == [1.0, 1.0]


def test_the_position_is_part_of_the_state():
    one, other = make_pace(phase_out=0.1, phase_out_steps=4), make_pace(phase_out=0.1, phase_out_steps=4)
    for step in range(5):
        one.observe(torch.tensor([0.52, 0.5]), SEEN, step)
    other.load_state_dict(one.state_dict())
    for step in range(5, 9):
        for pace in (one, other):
            pace.observe(torch.tensor([0.9, 0.1]), SEEN, step)
        assert one.strengths(0.0, step).tolist() == other.strengths(0.0, step).tolist()
    assert other.strengths(0.0, 9).tolist() == [0.0, 0.0]
    assert make_pace().state_dict() == {}


@pytest.mark.parametrize("name", PACED)
def test_every_method_with_a_pace_can_be_phased_out_at_convergence(name):
    """With a tolerance that everything is within: at full strength for the steps asked for, then down to nothing."""
    classifier, method = make_pair(name, pace=PaceSettings(phase_out=1e9, phase_out_steps=2))
    ctx = make_context(classifier, train=make_items(12), held_out=make_items(6, seed=3))
    method.setup(ctx)
    for _ in range(5):
        method.before_epoch(ctx)
        train_step(ctx, method, [whole_batch(ctx.train)])
    assert method.pace.strengths(0.0, ctx.step).tolist() == [0.0, 0.0]
    found = [v.max().item() for v in ctx.log["pace"]]
    assert found[0] == 1.0
    assert found[-1] == 0.0
