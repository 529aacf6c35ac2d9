import math

import pytest

from raybal.balancing.pace import PaceSettings
from raybal.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "constant"}, [1, 1, 1, 1, 1]),
        ({"kind": "constant", "final": 0.5}, [0.5] * 5),
        ({"kind": "window", "start": 0.25, "end": 0.75}, [0, 1, 1, 0, 0]),
        ({"kind": "linear", "initial": 1.0, "final": 0.0}, [1, 0.75, 0.5, 0.25, 0]),
        ({"kind": "linear", "start": 0.25, "end": 0.75}, [0, 0, 0.5, 1, 1]),
        ({"kind": "cosine"}, [0, (1 - math.cos(math.pi / 4)) / 2, 0.5, (1 - math.cos(3 * math.pi / 4)) / 2, 1]),
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
