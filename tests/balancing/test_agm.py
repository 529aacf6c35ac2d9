"""AGM's coefficients against the authors' recorded ones, and its parts of the logits against their definition."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toy import OMICS, gradients, make_classifier, make_context, make_items, make_pair, whole_batch

from raybal.balancing import agm
from raybal.models.fusion import FUSIONS


def test_coefficients_and_running_averages_equal_the_authors(vectors):
    data = vectors("agm_coeff_sequence")
    labels = torch.from_numpy(data["label"])
    for a, alpha in enumerate(data["alphas"]):
        state = agm.initial_state(2)
        for step in range(5):
            losses = torch.stack(
                [
                    agm._cross_entropies(torch.from_numpy(data[f"logits_{m}"][step]).double(), labels).mean()
                    for m in ("a", "v")
                ]
            )
            np.testing.assert_allclose(losses, data["batch_ce"][step], rtol=1e-10)
            k = agm.update_coefficients(state, losses, float(alpha))
            np.testing.assert_allclose(k, data["coeff"][a, step], rtol=1e-10)
            np.testing.assert_allclose(state.cross_entropies, data["running_ce_after"][a, step], rtol=1e-10)


def test_a_modality_that_a_batch_lacks_enters_no_ratio_and_keeps_its_average():
    both, two = agm.initial_state(3), agm.initial_state(2)
    for losses in ([1.0, 2.0], [0.5, 1.8]):
        seen = torch.tensor([True, False, True])
        k = agm.update_coefficients(both, torch.tensor([losses[0], 9.0, losses[1]]), 2.0, seen)
        expected = agm.update_coefficients(two, torch.tensor(losses), 2.0)
        torch.testing.assert_close(k[[0, 2]], expected)
        assert k[1] == 1
    assert (both.cross_entropies[1], both.steps[1]) == (0, 0)
    alone = agm.update_coefficients(both, torch.ones(3), 2.0, torch.tensor([False, True, False]))
    assert alone.tolist() == [1.0, 1.0, 1.0]


def test_a_modality_that_joins_late_is_compared_as_in_a_first_step():
    losses, fresh = torch.tensor([1.8, 1.7, 1.9]), agm.initial_state(3)
    late = agm.initial_state(3)
    agm.update_coefficients(late, losses, 3.0, torch.tensor([True, True, False]))
    torch.testing.assert_close(agm.update_coefficients(late, losses, 3.0), agm.update_coefficients(fresh, losses, 3.0))
    assert late.steps.tolist() == [2, 2, 1]


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_parts_add_up_to_the_fused_logits(fusion):
    classifier = make_classifier(fusion=fusion)
    batch = whole_batch(make_items(12, missing=0.4))
    output = classifier(batch.inputs, batch.present)
    audio, video = agm.marginal_logits(classifier, output.fusion_inputs, batch.present).values()
    torch.testing.assert_close(audio + video, output.logits)
    assert (audio[~batch.present[:, 0]] == 0).all()
    there = batch.present[:, 0]
    without = classifier.fuse(output.fusion_inputs, batch.present & torch.tensor([False, True]))
    alone = classifier.fuse(output.fusion_inputs, batch.present & torch.tensor([True, False]))
    torch.testing.assert_close(audio[there], ((output.logits - without + alone) / 2)[there])


def test_parts_of_a_concat_fusion_are_the_modalities_shares():
    classifier = make_classifier(OMICS)
    batch = whole_batch(make_items(12, OMICS))
    output = classifier(batch.inputs, batch.present)
    parts = agm.marginal_logits(classifier, output.fusion_inputs, batch.present)
    for m, share in classifier.fusion.partial_logits(output.embeddings).items():
        torch.testing.assert_close(parts[m], share)


def test_a_coefficient_scales_all_that_lies_upstream_of_its_part():
    items = make_items(24)
    found = []
    for state in (None, torch.tensor([1.0, 1.4], dtype=torch.float64)):
        classifier, method = make_pair("agm", alpha=2.0)
        if state is not None:
            method.load_state_dict({"cross_entropies": state, "steps": torch.ones(2, dtype=torch.float64)})
        ctx = make_context(classifier)
        loss = method.step(ctx, [whole_batch(items)])
        (k,) = ctx.log["coefficient"]
        found.append((loss, gradients(classifier), k))
    (loss, plain, first), (_, scaled, k) = found
    # Nothing to compare with in the first step but the average that all start from.
    assert (first != k).all()
    output = classifier(whole_batch(items).inputs, whole_batch(items).present)
    heads = sum(F.cross_entropy(z, whole_batch(items).labels) for z in output.unimodal_logits.values())
    torch.testing.assert_close(loss, (F.cross_entropy(output.logits, whole_batch(items).labels) + heads).detach())
    for i, m in enumerate(("audio", "video")):
        for name in (n for n in plain if n.startswith((f"encoders.{m}.", f"fusion.parts.{m}."))):
            torch.testing.assert_close(scaled[name] / float(k[i]), plain[name] / float(first[i]), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(scaled[f"unimodal_heads.{m}.weight"], plain[f"unimodal_heads.{m}.weight"])
