import numpy as np
import pytest
import torch

from raybal.errors import ConfigError
from raybal.training.settings import TrainSettings, build_optimizer


def test_cosine_equals_torchs_schedule():
    settings = TrainSettings(epochs=10, schedule="cosine", learning_rate=0.2)
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], settings)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for epoch in range(10):
        np.testing.assert_allclose(settings.learning_rate_at(epoch, 1), optimizer.param_groups[0]["lr"], rtol=1e-9)
        optimizer.step()
        schedule.step()


def test_step_and_warm_up():
    settings = TrainSettings(epochs=30, schedule="step", decay_every=10, learning_rate=1.0, warmup_epochs=2)
    rates = [settings.learning_rate_at(step, 10) for step in (0, 5, 9, 19, 20, 99, 100, 250)]
    assert rates == pytest.approx([0.05, 0.3, 0.5, 1.0, 1.0, 1.0, 0.1, 0.01])


def test_warm_up_wastes_no_step_and_ends_at_the_full_rate():
    for warmup, steps in ((1, 4), (0.5, 5), (0.3, 3), (3, 1)):
        settings = TrainSettings(epochs=10, warmup_epochs=warmup, learning_rate=1.0, schedule="constant")
        rates = [settings.learning_rate_at(step, steps) for step in range(10 * steps)]
        assert rates[0] == pytest.approx(min(1 / (warmup * steps), 1.0))
        assert rates == sorted(rates)
        assert max(rates) == 1.0
        assert rates.index(1.0) == np.ceil(warmup * steps) - 1


def test_a_warm_up_longer_than_the_run_is_refused():
    assert TrainSettings(epochs=3, warmup_epochs=3).warmup_epochs == 3
    with pytest.raises(ConfigError, match=r"warmup_epochs: 3\.5 is not accepted; it must be at most epochs \(3\)"):
        TrainSettings(epochs=3, warmup_epochs=3.5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"train\.device: 'cuda' is not accepted here"):
        TrainSettings(device="cuda").resolve_device()
