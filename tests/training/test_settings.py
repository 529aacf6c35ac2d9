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
        np.testing.assert_allclose(settings.learning_rate_at(epoch), optimizer.param_groups[0]["lr"], rtol=1e-9)
        optimizer.step()
        schedule.step()


def test_step_and_warm_up():
    settings = TrainSettings(epochs=30, schedule="step", decay_every=10, learning_rate=1.0, warmup_epochs=2)
    rates = [settings.learning_rate_at(e) for e in (0.5, 1, 2, 9.9, 10, 25)]
    assert rates == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.1, 0.01])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"train\.device: 'cuda' is not accepted here"):
        TrainSettings(device="cuda").resolve_device()
