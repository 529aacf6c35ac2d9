"""Fused and unimodal losses together."""

import pytest
import torch
import torch.nn.functional as F
from toy import make_context, make_items, make_pair, whole_batch


@pytest.mark.parametrize("name", ["multi_loss", "mlb"])
def test_unimodal_losses_have_their_weight(name):
    classifier, method = make_pair(name, unimodal_weight=0.25)
    batch = whole_batch(make_items(12))
    output = classifier(batch.inputs, batch.present)
    own = sum(F.cross_entropy(z, batch.labels) for z in output.unimodal_logits.values())
    wanted = F.cross_entropy(output.logits, batch.labels) + 0.25 * own
    torch.testing.assert_close(method.loss(make_context(classifier), output, batch), wanted)
