"""BMMAL's contributions, modulation and factors against the recorded ones."""

import numpy as np
import pytest
import torch

from raybal.analysis.contribution import contributions, shapley_values
from raybal.models.classifier import Encoded
from raybal.models.fusion import Concat
from raybal.querying.base import Scored
from raybal.querying.bmmal import BMMAL, modulated, modulation
from raybal.querying.distances import exact_distances


def head(data):
    """The recorded linear head as a concat fusion, and its logits under a mask."""
    z = {"1": torch.from_numpy(data["z1"]), "2": torch.from_numpy(data["z2"])}
    fusion = Concat({m: x.shape[1] for m, x in z.items()}, len(data["bias"])).to(z["1"].dtype)
    with torch.no_grad():
        d1 = z["1"].shape[1]
        fusion.parts["1"].weight.copy_(torch.from_numpy(data["W"][:, :d1]))
        fusion.parts["2"].weight.copy_(torch.from_numpy(data["W"][:, d1:]))
        fusion.bias.copy_(torch.from_numpy(data["bias"]))
    return z, lambda mask: fusion(z, mask).detach()


def columns_of(z, logits, present=None, modulate="weak"):
    """The contributions, and the columns that the strategy makes of items with these embeddings and logits."""
    first = next(iter(z.values()))
    present = torch.ones(len(first), len(z), dtype=torch.bool) if present is None else present
    phi, probabilities = shapley_values(logits, present)
    predicted = probabilities.argmax(1)
    scored = Scored(Encoded(z, z, present), probabilities, predicted, contributions(phi, predicted))
    strategy = BMMAL(BMMAL.Settings(strategy="bmmal", modulate=modulate))
    return scored.contributions, strategy.columns(None, scored)


@pytest.mark.parametrize("file", ["bmmal_small", "bmmal_concat"])
def test_shapley_values_and_factors_equal_the_recorded_ones(vectors, file):
    data = vectors(file)
    z, logits = head(data)
    everything = torch.ones(len(data["z1"]), 2, dtype=torch.bool)
    phi, probabilities = shapley_values(logits, everything)
    np.testing.assert_allclose(probabilities, data["prob_full"], atol=1e-6)
    for m in (1, 2):
        np.testing.assert_allclose(phi[:, m - 1], data[f"shap{m}"], atol=1e-6)
    empty = logits(torch.zeros_like(everything)).softmax(1)
    np.testing.assert_allclose(phi.sum(1), probabilities - empty, atol=1e-6)

    found, columns = columns_of(z, logits)
    shares = np.concatenate([data["contrib1_pred"], data["contrib2_pred"]], 1)
    np.testing.assert_allclose(found, shares, atol=1e-5)
    embedding = torch.einsum("nc,nd->ncd", columns["q"], columns["h"]).flatten(1)
    np.testing.assert_allclose(embedding, data["bmmal_emb"], atol=1e-5)
    badge = torch.einsum("nc,nd->ncd", columns["q"], torch.cat(list(z.values()), 1)).flatten(1)
    np.testing.assert_allclose(badge, data["badge_emb"], atol=1e-6)
    scale = modulation(found)
    np.testing.assert_allclose(scale, np.concatenate([data["scale1"], data["scale2"]], 1), atol=1e-5)


@pytest.mark.parametrize("file", ["bmmal_small", "bmmal_concat"])
def test_distances_and_probabilities_after_each_pick_equal_the_recorded_ones(vectors, file):
    data = vectors(file)
    columns = columns_of(*head(data))[1]
    q, h = columns["q"], columns["h"]
    for t in range(1, int(data["K"])):
        chosen = data["bmmal_sel"][:t]
        d2 = exact_distances(q, h, q[chosen], h[chosen]).amin(1).numpy()
        # There 1e-6 is added to each coordinate of a difference.
        np.testing.assert_allclose(np.sqrt(d2), data["bmmal_step_mindist_f64"][t - 1], atol=1e-4)
        np.testing.assert_allclose(d2 / d2.sum(), data["bmmal_step_prob_f64"][t - 1], atol=1e-5)


def test_edge_rows(vectors):
    """Zero features and a head that ignores them: finite and even where the authors' code reads stray memory."""
    data = vectors("bmmal_edge")
    z, logits = head(data)
    found, columns = columns_of(z, logits)
    scale = modulation(found)
    recorded = np.concatenate([data["scale1"], data["scale2"]], 1)
    np.testing.assert_allclose(scale[1:5], recorded[1:5], atol=1e-6)
    for row in (0, 5):
        assert found[row].tolist() == [0.5, 0.5]
        assert scale[row].tolist() == [1.0, 1.0]
    assert torch.isfinite(columns["h"]).all()
    assert torch.isfinite(columns["q"]).all()


def test_modulation_of_two_modalities():
    shares = torch.tensor([[0.7, 0.3], [0.5, 0.5], [0.0, 1.0]])
    torch.testing.assert_close(modulation(shares), torch.tensor([[1, 0.6], [1, 1], [0, 1]]))
    torch.testing.assert_close(modulation(shares), (2 * shares).clamp(max=1))
    torch.testing.assert_close(modulation(shares, "strong"), torch.tensor([[0.6, 1], [1, 1], [1, 0]]))
    torch.testing.assert_close(modulation(shares, "both"), torch.tensor([[0.6, 0.6], [1, 1], [0, 0]]))


@pytest.mark.parametrize("modulate", ["weak", "strong", "both"])
def test_a_missing_modality_is_neither_strong_nor_weak(modulate):
    """An item with a single modality keeps its gradient; of three, the two that are there are compared."""
    shares = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.8, 0.2]])
    present = torch.tensor([[True, False], [False, True], [False, False], [True, True]])
    scale = modulation(shares, modulate, present)
    assert scale[:3].tolist() == [[1.0, 1.0]] * 3
    torch.testing.assert_close(scale[3:], modulation(shares[3:], modulate))
    three = modulation(torch.tensor([[0.7, 0.0, 0.3]]), modulate, torch.tensor([[True, False, True]]))
    torch.testing.assert_close(three[:, [0, 2]], modulation(torch.tensor([[0.7, 0.3]]), modulate))
    z = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.zeros(1, 2)}
    _, columns = columns_of(z, lambda mask: z["a"] * mask[:, :1], torch.tensor([[True, False]]), modulate)
    assert columns["h"].tolist() == [[3.0, 4.0, 0.0, 0.0]]


def test_three_modalities_keep_their_own_blocks_and_swap_together():
    generator = torch.Generator().manual_seed(0)
    z = {m: torch.rand(6, d, generator=generator) for m, d in (("a", 2), ("b", 3), ("c", 4))}
    weights = {m: torch.randn(4, x.shape[1], generator=generator) for m, x in z.items()}

    def logits_of(order):
        def logits(mask):
            parts = [(z[m] @ weights[m].T) * mask[:, i : i + 1] for i, m in enumerate(order)]
            return sum(parts)

        return logits

    shares, straight = columns_of(z, logits_of("abc"))
    turned_shares, turned = columns_of({m: z[m] for m in "cab"}, logits_of("cab"))
    torch.testing.assert_close(turned_shares, shares[:, [2, 0, 1]])
    torch.testing.assert_close(turned["h"], straight["h"][:, [5, 6, 7, 8, 0, 1, 2, 3, 4]])
    torch.testing.assert_close(shares.sum(1), torch.ones(6))
    torch.testing.assert_close(straight["h"], modulated(z, modulation(shares)))


def test_shapley_values_of_three_modalities_equal_the_average_over_all_orders():
    import itertools

    generator = torch.Generator().manual_seed(0)
    table = {c: torch.randn(5, 3, generator=generator) for c in itertools.product((False, True), repeat=3)}

    def logits(mask):
        return torch.stack([table[tuple(row.tolist())][i] for i, row in enumerate(mask)])

    phi, _ = shapley_values(logits, torch.ones(5, 3, dtype=torch.bool))
    expected = torch.zeros(5, 3, 3)
    for order in itertools.permutations(range(3)):
        have = [False] * 3
        for m in order:
            before = table[tuple(have)].softmax(1)
            have[m] = True
            expected[:, m] += (table[tuple(have)].softmax(1) - before) / 6
    torch.testing.assert_close(phi, expected)


def test_a_missing_modality_contributes_nothing():
    generator = torch.Generator().manual_seed(0)
    z, w = torch.rand(4, 2, generator=generator), torch.randn(2, 3, generator=generator)
    present = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    phi, probabilities = shapley_values(lambda mask: (z * mask) @ w, present)
    shares = contributions(phi, probabilities.argmax(1))
    assert shares[1].tolist() == [1.0, 0.0]
    assert shares[2].tolist() == [0.0, 1.0]
    assert shares[3].tolist() == [0.5, 0.5]
