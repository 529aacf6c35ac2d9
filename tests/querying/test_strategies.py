"""What every strategy must do, on scored candidates."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from toy import make_classifier, make_items

from raybal import hashing
from raybal.analysis.contribution import contributions, shapley_values
from raybal.balancing.base import Predictor
from raybal.bench.toy import make_pool
from raybal.data.pool import Pool
from raybal.querying.base import STRATEGIES, Holder, LocalCandidates, QuotaSettings, Request, Scored
from raybal.querying.distances import squared_norms
from raybal.querying.entropy import entropy
from raybal.querying.explain import describe_items, summarise_pool
from raybal.querying.scoring import score_shard
from raybal.testing import STRATEGY_CHECKS, StrategyCase, check_strategy_once

ITEMS = make_items(120)
# Exact duplicates under other names.
for array in ITEMS.inputs.values():
    array[100:110] = array[:10]


def scored_columns(strategy):
    predictor = Predictor(make_classifier().eval())
    with torch.no_grad():
        present = torch.from_numpy(ITEMS.present)
        encoded = predictor.encode({m: torch.from_numpy(a) for m, a in ITEMS.inputs.items()}, present)
        phi, probabilities = shapley_values(lambda mask: predictor.logits(encoded.fusion_inputs, mask), present)
        predicted = probabilities.argmax(1)
        scored = Scored(encoded, probabilities, predicted, contributions(phi, predicted))
        columns = {
            "predicted": predicted.int(),
            "confidence": probabilities.amax(1),
            "contribution": scored.contributions,
            **strategy.columns(predictor, scored),
        }
    return {name: column.numpy() for name, column in columns.items()}


def make_strategy(name, size=20):
    strategy = STRATEGIES.get(name)
    return strategy(strategy.Settings(strategy=name, size=size))


def candidates(columns, parts):
    return LocalCandidates(
        [
            Holder(
                [ITEMS.ids[r] for r in rows],
                hashing.hash_ids([ITEMS.ids[r] for r in rows]),
                {name: values[rows] for name, values in columns.items()},
            )
            for rows in parts
        ]
    )


#: Fewer steps than a user's graph network has.
QUICKER = {"core_gcn": {"steps": 20}}


@pytest.mark.parametrize("check", STRATEGY_CHECKS)
@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_strategy_keeps_the_contract(name, check):
    check_strategy_once(StrategyCase(name, QUICKER.get(name, {})), check)


@pytest.mark.parametrize("check", STRATEGY_CHECKS)
@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_strategy_takes_three_modalities(name, check):
    check_strategy_once(StrategyCase(name, QUICKER.get(name, {}), modalities=3), check)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bmmal", {"modulate": "both", "from_labelled": True}),
        ("badge", {"seeding": "oversampled"}),
        ("badge", {"seeding": "partitioned"}),
        ("coreset", {"features": "audio", "unit": True}),
        ("typiclust", {"clusters": 6}),
        ("probcover", {"radius": 0.4}),
        ("core_gcn", {"chunk": 40, "steps": 5}),
        ("modality_uncertainty", {"measure": "margin", "combine": "max"}),
        ("modality_uncertainty", {"measure": "least_confidence", "combine": "min"}),
        ("by_modality", {"inner": "coreset"}),
        ("by_modality", {"inner": "deepfool", "shares": {"audio": 3.0, "video": 1.0}}),
        ("by_modality", {"inner": "bald"}),
        ("entropy", {"explain": False}),
        ("bmmal", {"quota": QuotaSettings(dominated=0.6)}),
    ],
    ids=str,
)
@pytest.mark.parametrize("check", STRATEGY_CHECKS)
def test_other_settings_keep_the_contract(name, options, check):
    check_strategy_once(StrategyCase(name, options), check)


def test_strategies_need_no_ray():
    """The pure core runs where Ray is not installed."""
    program = (
        "import sys; sys.modules['ray'] = None\n"
        "from raybal.querying.base import STRATEGIES; from raybal.querying.local import LocalScorers\n"
        "from raybal.balancing.base import METHODS; import raybal.testing\n"
        "print(len(STRATEGIES.names()), len(METHODS.names()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["16", "17"]


@pytest.mark.parametrize("name", ["badge", "bmmal"])
def test_reasons_say_what_is_known_of_an_item(name):
    """Ten items are exact duplicates: the last to be taken, with their own norm and no distance."""
    strategy = make_strategy(name)
    columns = scored_columns(strategy)
    norm = dict(
        zip(ITEMS.ids, squared_norms(*(torch.from_numpy(columns[c]) for c in "qh")).sqrt().tolist(), strict=True)
    )
    query = strategy.select(candidates(columns, np.array_split(np.arange(120), 3)), Request(120, seed=4))
    for position, (i, reason) in enumerate(zip(query.ids, query.reason, strict=True)):
        assert reason.startswith(f"gradient norm {norm[i]:.2f}, ")
        assert ("the largest" in reason) == (position == 0)
        assert ("equal to an item chosen before; at random" in reason) == (position >= 110)
        assert ("away from all that was chosen before it" in reason) == (0 < position < 110)


@pytest.mark.parametrize("name", ["random", "badge", "bmmal"])
def test_the_seed_decides(name):
    strategy = make_strategy(name)
    columns = scored_columns(strategy)
    queries = [strategy.select(candidates(columns, [np.arange(120)]), Request(20, seed=s)).ids for s in (1, 1, 2)]
    assert queries[0] == queries[1] != queries[2]


def test_entropy_and_margin_choose_the_least_certain():
    probabilities = torch.tensor([[0.98, 0.01, 0.01], [1.0, 0.0, 0.0], [0.34, 0.33, 0.33], [0.5, 0.5, 0.0]])
    np.testing.assert_allclose(entropy(probabilities), scipy_entropy(probabilities.numpy(), axis=1), rtol=1e-6)
    for name, expected in (("entropy", [2, 3, 0, 1]), ("margin", [3, 2, 0, 1])):
        strategy = make_strategy(name)
        scored = Scored(None, probabilities, probabilities.argmax(1), None)
        columns = {k: v.numpy() for k, v in strategy.columns(None, scored).items()}
        holder = Holder(list("abcd"), hashing.hash_ids("abcd"), columns)
        assert strategy.select(LocalCandidates([holder]), Request(4, 0)).ids == ["abcd"[i] for i in expected]


def test_random_is_uniform_over_seeds():
    strategy = make_strategy("random")
    held = candidates({}, [np.arange(120)])
    counts = np.zeros(120)
    for seed in range(2000):
        for i in strategy.select(held, Request(12, seed)).ids:
            counts[int(i.split("-")[1])] += 1
    # Each is chosen 200 times; five standard deviations.
    assert abs(counts - 200).max() < 5 * np.sqrt(200 * 0.9)


def test_descriptions_and_totals_do_not_depend_on_shards():
    strategy = make_strategy("random")
    columns = scored_columns(strategy)
    one, many = (candidates(columns, np.array_split(np.arange(120), k)) for k in (1, 5))
    ids = ["item-005", "item-119"]
    assert describe_items(one, ids) == describe_items(many, ids)
    whole, parts = summarise_pool(one), summarise_pool(many)
    assert whole["candidates"] == parts["candidates"] == 120
    np.testing.assert_allclose(whole["contribution"], columns["contribution"].mean(0), rtol=1e-6)
    np.testing.assert_allclose(whole["contribution"], parts["contribution"])
    assert whole["predicted"] == parts["predicted"]
    assert sum(whole["predicted"].values()) == 120
    assert pa.array(whole["dominated"]).to_pylist() == pytest.approx(
        [(columns["contribution"].argmax(1) == k).mean() for k in (0, 1)]
    )


@pytest.mark.parametrize("fusion", ["concat", "transformer"])
def test_scoring_runs_the_fusion_once_for_each_mask(monkeypatch, tmp_path, fusion):
    make_pool(str(tmp_path / "pool"), 12, shards=1)
    pool = Pool(str(tmp_path / "pool"))
    predictor = Predictor(make_classifier(pool.info.modalities, fusion=fusion).eval())
    masks, logits = [], predictor.logits

    def counted(fusion_inputs, mask):
        masks.append(mask)
        return logits(fusion_inputs, mask)

    monkeypatch.setattr(predictor, "logits", counted)
    monkeypatch.setattr(predictor.classifier, "forward", None)
    table = score_shard(
        pool, np.arange(12), predictor, make_strategy("bmmal"), device=torch.device("cpu"), batch_size=8
    )
    assert len(table) == 12
    assert len(masks) == 2 * 4
