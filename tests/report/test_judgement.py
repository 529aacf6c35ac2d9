"""Whether a modality is called starved."""

from __future__ import annotations

import pytest
from report_tools import AUDIO, OMICS, VIDEO, MadeStore, make_pool, metrics

from raybal.report.data import read_experiment
from raybal.report.judgement import even_shares, judge
from raybal.store import Store


@pytest.fixture
def judged(tmp_path):
    """Judges a pool's store: `share` is the contribution over the pool to the model whose test metrics are given."""

    def run(test, share=None, *, modalities=(VIDEO, AUDIO), newer=None, own=None, **pool_options):
        pool = make_pool(tmp_path / "pool", modalities, **pool_options)
        made = MadeStore(Store(tmp_path / "store"), pool)
        made.round(0, test)
        if share is not None:
            made.query(1)
            facts = made.facts[1, "select"]
            facts["pool"]["contribution"] = share
            made.write(1, "select", facts)
        if newer is not None:
            made.train(1)
            made.evaluate(1, newer, own)
        return judge(read_experiment(made.store), pool)

    return run


def test_both_signals_together_are_starving(judged):
    verdict = judged(metrics(fused=0.9, video=0.9, audio=0.4), [0.9, 0.1])
    assert verdict.kind == "warning"
    assert "signs that audio was being starved in round 0" in verdict.sentence
    assert "40.0%" in verdict.sentence
    assert "took 10.0% of the decision" in verdict.sentence
    assert any("tells less" in note for note in verdict.notes)


@pytest.mark.parametrize(
    ("test", "share", "words"),
    [
        ({"video": 0.9, "audio": 0.4}, [0.6, 0.4], "audio was behind but not ignored"),
        ({"video": 0.9, "audio": 0.85}, [0.9, 0.1], "audio was left out"),
        ({"video": 0.9, "audio": 0.4}, None, "audio was being starved"),
        ({"video": 0.9, "audio": 0.8}, [0.6, 0.4], "no sign"),
        # Of a lead of 0.57 over guessing, 0.28 is a little less than half.
        ({"video": 0.9, "audio": 0.61}, [0.9, 0.1], "behind|starved"),
        ({"video": 0.9, "audio": 0.63}, [0.8, 0.2], "left out"),
    ],
)
def test_each_signal_alone_is_named_for_what_it_is(judged, test, share, words):
    verdict = judged(metrics(fused=0.9, **test), share)
    assert any(word in verdict.sentence for word in words.split("|"))
    assert verdict.kind == ("good" if words == "no sign" else "warning")


def test_nothing_is_judged_before_a_head_is_better_than_guessing(judged):
    verdict = judged(metrics(fused=0.5, video=0.35, audio=0.33), [0.95, 0.05])
    assert verdict.kind == "unknown"
    assert "Too early" in verdict.sentence


def test_a_gap_within_luck_is_not_behind(judged):
    few = metrics(fused=0.7, video=0.6, audio=0.45) | {"items": 30}
    assert judged(few, [0.5, 0.5]).kind == "good"


def test_a_newer_model_without_contributions_is_named_but_not_judged(judged):
    newer = metrics(fused=0.9, video=0.9, audio=0.88)
    verdict = judged(metrics(fused=0.9, video=0.9, audio=0.4), [0.9, 0.1], newer=newer)
    assert "starved in round 0" in verdict.sentence
    assert any("Round 1 is newer" in note and "88.0% for audio" in note for note in verdict.notes)


def test_a_newer_model_is_judged_by_its_own_contributions_where_they_were_measured(judged):
    old, newer = metrics(fused=0.9, video=0.9, audio=0.4), metrics(fused=0.9, video=0.9, audio=0.88)
    own = {"validation": [0.7, 0.3], "test": [0.56, 0.44]}
    verdict = judged(old, [0.9, 0.1], newer=newer, own=own)
    assert verdict.kind == "good"
    assert "no sign in round 1" in verdict.sentence
    assert "share of the decision on the test items 56.0% for video and 44.0% for audio" in verdict.sentence
    assert verdict.notes == []


def test_contributions_over_test_items_are_held_against_what_those_lack(judged):
    test = metrics(fused=0.9, video=0.9, audio=0.85)
    own = {"validation": None, "test": [0.9, 0.1]}
    lacking = [f"test-{i:03d}" for i in range(8)]
    # An even share over these test items is 10 %; over the pool, where nothing is missing, it would be 50 %.
    assert judged(test, [0.5, 0.5], newer=test, own=own, absent={"audio": lacking}).kind == "good"


def test_a_gap_within_luck_of_the_few_items_that_have_a_modality_is_not_behind(judged):
    test, lacking = metrics(fused=0.9, video=0.9, audio=0.6) | {"items": 100}, [f"test-{i:03d}" for i in range(9)]
    assert judged(test, [0.5, 0.5]).kind == "warning"
    assert judged(test, [0.5, 0.5], absent={"audio": lacking}).kind == "good"


def test_a_head_tested_on_few_items_is_not_compared_with_the_fused_prediction(judged):
    test, lacking = metrics(fused=0.6, video=0.6, audio=0.95), [f"test-{i:03d}" for i in range(5)]
    assert any("worse than audio alone" in note for note in judged(test, [0.5, 0.5]).notes)
    assert not any("worse than" in note for note in judged(test, [0.5, 0.5], absent={"audio": lacking}).notes)


def test_a_model_that_had_learned_nothing_yields_to_a_newer_one(judged):
    newer = metrics(fused=0.9, video=0.9, audio=0.88)
    verdict = judged(metrics(fused=0.3, video=0.33, audio=0.33), [0.9, 0.1], newer=newer)
    assert verdict.kind == "good"
    assert "round 1" in verdict.sentence


def test_missing_modalities_lower_what_counts_as_even(judged, tmp_path):
    half = [f"item-{i:03d}" for i in range(24)]
    test = metrics(fused=0.9, video=0.9, audio=0.85)
    verdict = judged(test, [0.9, 0.1], absent={"audio": half})
    # Audio is there in 6 of 30 items: an even share is 10 %, and it has that.
    assert verdict.kind == "good"


def test_even_shares_count_what_each_item_has(tmp_path):
    pool = make_pool(tmp_path / "pool", train=4, absent={"audio": ["item-000", "item-001"], "video": ["item-002"]})
    assert even_shares(pool, "train") == pytest.approx([(1 + 1 + 0 + 0.5) / 4, (0 + 0 + 1 + 0.5) / 4])
    assert even_shares(pool, "test") == pytest.approx([0.5, 0.5])


def test_a_fused_prediction_below_one_head_is_noted(judged):
    verdict = judged(metrics(fused=0.6, video=0.9, audio=0.8), [0.5, 0.5])
    assert any("worse than video alone" in note for note in verdict.notes)


def test_several_starved_modalities_are_all_named(judged):
    verdict = judged(metrics(fused=0.9, mrna=0.9, meth=0.4, mirna=0.5), [0.9, 0.05, 0.05], modalities=OMICS)
    assert "meth was being starved" in verdict.sentence
    assert "The same holds for mirna." in verdict.sentence


def test_a_head_without_test_items_is_not_judged(judged):
    verdict = judged(metrics(fused=0.9, video=0.9, audio=None), [0.5, 0.5])
    assert any("No labelled test item has audio" in note for note in verdict.notes)


def test_one_modality_cannot_be_starved(judged):
    assert "one modality, video" in judged(metrics(fused=0.9, video=0.9), modalities=(VIDEO,)).sentence


def test_without_test_labels_nothing_is_invented(judged):
    verdict = judged(None, [0.7, 0.3])
    assert verdict.kind == "unknown"
    assert "accuracy is unknown" in verdict.sentence
    assert "none of the pool's 10 test items has a label" in verdict.sentence
    assert verdict.notes == [
        "Contributions need no test labels: the newest model's share of the decision in the pool is 70.0% for video "
        "and 30.0% for audio."
    ]


def test_without_test_labels_the_newest_models_own_contributions_are_told(tmp_path):
    made = MadeStore(Store(tmp_path / "newer"), make_pool(tmp_path / "pool"))
    made.round(0, None, {"validation": [0.8, 0.2], "test": None})
    verdict = judge(read_experiment(made.store), made.pool)
    assert verdict.kind == "unknown"
    assert "on the validation items is 80.0% for video and 20.0% for audio" in verdict.notes[0]
