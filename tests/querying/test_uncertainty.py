"""Strategies that score items one by one, against recorded values and closed forms."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from toy import make_classifier, make_items

from raybal.balancing.base import Predictor
from raybal.errors import ConfigError
from raybal.querying.bald import BALD, BALDSettings, mutual_information
from raybal.querying.base import STRATEGIES, Scored
from raybal.querying.deepfool import boundary_distances, pairwise_squares
from raybal.querying.entropy import entropy
from raybal.querying.gradient import multilabel_residual

ITEMS = make_items(40, missing=0.3)


def seen(predictor):
    present = torch.from_numpy(ITEMS.present)
    with torch.no_grad():
        encoded = predictor.encode({m: torch.from_numpy(a) for m, a in ITEMS.inputs.items()}, present)
        p = predictor.logits(encoded.fusion_inputs, present).softmax(1)
    return Scored(encoded, p, p.argmax(1), torch.ones(len(p), 2))


def strategy(name, **options):
    cls = STRATEGIES.get(name)
    return cls(cls.Settings(strategy=name, **options))


def test_entropy_and_mutual_information_equal_the_recorded_ones(vectors):
    data = vectors("bmmal_baselines")
    found = entropy(torch.from_numpy(data["probs"]))
    np.testing.assert_allclose(found, data["entropy_score"], atol=1e-6)
    assert found.argsort(descending=True)[:15].tolist() == data["entropy_sel"].tolist()
    information = mutual_information(torch.from_numpy(data["mc_probs"]))
    np.testing.assert_allclose(information, data["bald_score"], atol=1e-6)
    assert information.argsort(descending=True)[:15].tolist() == data["bald_sel"].tolist()


def test_dropout_acts_and_is_the_same_model_for_every_item():
    predictor = Predictor(make_classifier().eval())
    scored = seen(predictor)
    bald = strategy("bald", passes=6)
    whole = bald.columns(predictor, scored)["information"]
    assert (whole > 1e-4).all()
    # An item's score does not depend on those beside it.
    few = torch.tensor([31, 4, 7])
    encoded = type(scored.encoded)(
        {m: z[few] for m, z in scored.encoded.embeddings.items()},
        {m: z[few] for m, z in scored.encoded.fusion_inputs.items()},
        scored.encoded.present[few],
    )
    part = bald.columns(predictor, Scored(encoded, scored.probabilities[few], scored.predicted[few], None))
    torch.testing.assert_close(part["information"], whole[few])
    # More dropout, more disagreement.
    assert strategy("bald", dropout=0.8).columns(predictor, scored)["information"].mean() > whole.mean()
    assert BALDSettings(strategy="bald").passes == 10
    assert BALD.name == "bald"


def test_deepfool_is_the_distance_to_the_nearest_boundary_and_not_to_the_tenth(vectors):
    data = vectors("bmmal_baselines")
    w, z = torch.from_numpy(data["df_W"]).double(), torch.from_numpy(data["features"]).double()
    logits = z @ w.T + torch.from_numpy(data["df_b"])
    everything = torch.ones(len(z), 1, dtype=torch.bool)
    found = boundary_distances(logits, pairwise_squares(w)[None], everything)
    order = logits.argsort(1, descending=True)
    for i in range(len(z)):
        best = order[i, 0]
        distances = [(logits[i, best] - logits[i, k]) / (w[best] - w[k]).norm() for k in order[i, 1:]]
        assert found[i] == pytest.approx(float(min(distances)), rel=1e-9)
        # The authors' code goes to the class of rank ten.
        assert float(distances[8]) ** 2 == pytest.approx(data["deepfool_sqnorm"][i], rel=1e-4)


def test_deepfool_reaches_the_boundary_of_the_model_itself():
    """Moved by its distance along the weights' difference, an embedding lies between two classes; what is missing
    does not move."""
    predictor = Predictor(make_classifier().eval())
    scored = seen(predictor)
    distance = -strategy("deepfool").columns(predictor, scored)["nearness"]
    weights = predictor.linear_weights()
    joint = torch.cat([weights[m] for m in weights], 1).double()
    widths = torch.cat([torch.full((w.shape[1],), i) for i, w in enumerate(weights.values())])
    z = torch.cat([scored.encoded.embeddings[m] for m in weights], 1).double()
    for i in range(len(z)):
        there = scored.encoded.present[i][widths.long()].double()
        logits = predictor.logits(scored.encoded.fusion_inputs, scored.encoded.present)[i].double()
        best = int(logits.argmax())
        reached = []
        for k in set(range(len(logits))) - {best}:
            towards = (joint[k] - joint[best]) * there
            moved = logits + joint @ (towards / towards.norm() * distance[i])
            reached.append((moved[best] - moved[k]).item())
        # With the one class it is equal; with the others it is not yet.
        assert min(reached) == pytest.approx(0, abs=1e-5)
        assert (torch.tensor(reached) > -1e-5).all()
    assert z.shape[1] == joint.shape[1]


@pytest.mark.parametrize("fusion", ["mlp", "film", "gated", "transformer"])
def test_deepfool_needs_a_linear_head(fusion):
    with pytest.raises(ConfigError, match=r"deepfool needs logits that are linear .* --model\.fusion concat or sum"):
        strategy("deepfool").check(Predictor(make_classifier(fusion=fusion)))


def test_a_predictor_with_logits_of_its_own_has_no_linear_head():
    class Other(Predictor):
        def logits(self, fusion_inputs, present):
            return super().logits(fusion_inputs, present).square()

    with pytest.raises(ConfigError, match="deepfool needs logits"):
        strategy("deepfool").check(Other(make_classifier()))


def test_multi_label_residuals_have_no_factor_of_two(vectors):
    data = vectors("bmmal_multilabel")
    p = torch.from_numpy(data["probs"])
    q = multilabel_residual(p)
    h = torch.from_numpy(np.concatenate([data["z1"], data["z2"]], 1))
    np.testing.assert_allclose(torch.einsum("nc,nd->ncd", q, h).flatten(1), data["badge_emb"], atol=1e-6)
    scaled = torch.from_numpy(np.concatenate([data["z1"] * data["scale1"], data["z2"] * data["scale2"]], 1))
    ours = torch.einsum("nc,nd->ncd", q, scaled)
    theirs = torch.from_numpy(data["bmmal_emb"]).view_as(ours)
    # Twice as large for predicted labels there, and only there.
    factor = torch.where(p >= 0.5, 2.0, 1.0)[..., None]
    np.testing.assert_allclose(ours * factor, theirs, atol=1e-6)
    assert (p >= 0.5).any()


@pytest.mark.parametrize("combine", ["mean", "max", "min"])
@pytest.mark.parametrize("measure", ["entropy", "margin", "least_confidence"])
def test_uncertainty_of_modalities_counts_those_that_are_there(measure, combine):
    predictor = Predictor(make_classifier().eval())
    scored = seen(predictor)
    with torch.no_grad():
        column = strategy("modality_uncertainty", measure=measure, combine=combine).columns(predictor, scored)
        heads = predictor.classifier.unimodal_logits(scored.encoded.embeddings)
    for i in range(len(ITEMS.ids)):
        values = []
        for m, there in zip(heads, ITEMS.present[i], strict=True):
            if there:
                p = sorted(heads[m][i].softmax(0).tolist(), reverse=True)
                own = {"entropy": scipy_entropy(p), "margin": 1 - p[0] + p[1], "least_confidence": 1 - p[0]}
                values.append(own[measure])
        wanted = {"mean": np.mean, "max": max, "min": min}[combine](values)
        assert float(column["uncertainty"][i]) == pytest.approx(float(wanted), rel=1e-5)
