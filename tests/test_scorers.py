"""Actors that score and hold, without Ray: which ones are used, and what happens when they are lost."""

import types

import numpy as np
import pytest
import ray.exceptions
from toy import make_spec

from raybal import scorers as actors
from raybal.bench.toy import make_pool
from raybal.data.pool import Pool
from raybal.errors import DataError, RaybalError
from raybal.predictor import save_predictor
from raybal.querying import selection
from raybal.querying.base import STRATEGIES, Request
from raybal.resources import ResourceSettings
from raybal.scorers import PoolActor, Scorers
from raybal.store import Store

LOST = ray.exceptions.ActorDiedError


class FakeRay:
    """Actors in this process. A method runs when it is called; what it gives or raises waits in its reference."""

    exceptions = ray.exceptions

    def __init__(self):
        self.actors = []

    def remote(self, kind):
        def start(*args):
            self.actors.append(FakeActor(kind(*args), dead=len(self.actors) in self.dead_on_arrival))
            return self.actors[-1]

        return types.SimpleNamespace(options=lambda **options: types.SimpleNamespace(remote=start))

    dead_on_arrival = ()

    def get(self, refs):
        return [ref() for ref in refs] if isinstance(refs, list) else refs()

    def wait(self, refs, num_returns, timeout=None):
        assert refs, "waiting for nothing"
        return refs[:num_returns], refs[num_returns:]

    def kill(self, actor):
        actor.dead = True

    def get_gpu_ids(self):
        return []


class FakeActor:
    def __init__(self, actor, dead):
        self.actor, self.dead, self.calls = actor, dead, []

    def __getattr__(self, name):
        def call(*args):
            self.calls.append(name)
            if self.dead:
                return Reference(error=LOST())
            try:
                return Reference(getattr(self.actor, name)(*args))
            except RaybalError as error:
                return Reference(error=error)

        return types.SimpleNamespace(remote=call)


class Reference:
    def __init__(self, value=None, error=None):
        self.value, self.error = value, error

    def __call__(self):
        if self.error is not None:
            raise self.error
        return self.value


def make_strategy(name):
    return STRATEGIES.get(name)(STRATEGIES.get(name).Settings(strategy=name))


class Asking:
    """Scorers that are always asked for the same strategy."""

    def __init__(self, scorers, strategy):
        self.scorers, self.strategy = scorers, strategy

    def __getattr__(self, name):
        return getattr(self.scorers, name)

    def score(self, *args):
        self.scorers.score(*args, self.strategy)

    def select(self, *args):
        return self.scorers.select(*args, self.strategy)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pool of 30 items in 3 shards, and a store with a model."""
    folder = tmp_path_factory.mktemp("scored")
    make_pool(str(folder / "pool"), 30, shards=3, classes=3)
    pool = Pool(str(folder / "pool"))
    spec = make_spec("mlb", pool.info.modalities)
    model = {f"model.{k}": v for k, v in spec.build()[0].state_dict().items()}
    save_predictor(Store(str(folder / "store")), "model.safetensors", spec, model)
    return folder


@pytest.fixture
def start(folder, monkeypatch):
    """Starts scoring actors; `dead` ones fail before they are ready."""

    def start(strategy, count, dead=()):
        fake = FakeRay()
        fake.dead_on_arrival = dead
        monkeypatch.setattr(actors, "ray", fake)
        monkeypatch.setattr(actors, "scoring_options", lambda shards, resources: (count, {}))
        scorers = Scorers(str(folder / "pool"), str(folder / "store"), 3, ResourceSettings())
        return Asking(scorers, make_strategy(strategy)), fake

    return start


def join_all(scorers):
    for ref in list(scorers._starting):
        scorers._join(ref)


def score(scorers, folder, name):
    pool = Pool(str(folder / "pool"))
    shards = {s: np.flatnonzero(pool.shard_of == i) for i, s in enumerate(pool.shards)}
    scorers.score(name, shards, "model.safetensors")
    return list(shards)


@pytest.mark.parametrize("strategy", STRATEGIES.names())
def test_more_actors_than_shards_that_have_candidates(folder, start, strategy):
    queries = []
    for count in (1, 5):
        scorers, _ = start(strategy, count)
        shards = score(scorers, folder, f"{strategy}-{count}")
        join_all(scorers)
        selection = scorers.select(f"{strategy}-{count}", shards[:2], Request(6, seed=1))
        assert len(selection.query.ids) == 6
        assert selection.pool["candidates"] == 20
        assert set(selection.items) == set(selection.query.ids)
        queries.append(selection.query.ids)
    assert queries[0] == queries[1]


@pytest.mark.parametrize("strategy", STRATEGIES.names())
def test_no_shard_at_all_is_an_empty_query(start, strategy):
    scorers, _ = start(strategy, 2)
    selection = scorers.select("nothing", [], Request(6, seed=1))
    assert (selection.query.ids, selection.items, selection.pool) == ([], {}, {})


def test_an_actor_lost_for_good_is_left_out_of_selection(folder, start):
    scorers, fake = start("bmmal", 3)
    shards = score(scorers, folder, "lost")
    join_all(scorers)
    expected = scorers.select("lost", shards, Request(8, seed=1)).query.ids
    fake.actors[1].dead = True
    assert scorers.select("lost", shards, Request(8, seed=1)).query.ids == expected
    assert len(scorers.actors) == 2
    assert fake.actors[1] not in scorers.actors

    for actor in fake.actors:
        actor.dead = True
    with pytest.raises(RaybalError, match="all scoring actors are lost"):
        scorers.select("lost", shards, Request(8, seed=1))


def test_a_restarted_actor_reads_again_what_it_held(folder, start):
    scorers, fake = start("bmmal", 2)
    shards = score(scorers, folder, "restarted")
    join_all(scorers)
    expected = scorers.select("restarted", shards, Request(8, seed=1)).query.ids
    first = fake.actors[0].actor
    hold, held = first.hold, []

    def hold_and_restart(*args):
        held.append(hold(*args))
        if len(held) == 1:
            first.holder = None
        return held[-1]

    first.hold = hold_and_restart
    assert scorers.select("restarted", shards, Request(8, seed=1)).query.ids == expected
    assert held == [20, 20]


@pytest.mark.parametrize("step", ["describe_items", "summarise_pool"])
def test_an_actor_lost_after_the_choice_starts_the_selection_over(folder, start, monkeypatch, step):
    scorers, _ = start("bmmal", 2)
    shards = score(scorers, folder, f"late-{step}")
    join_all(scorers)
    expected = scorers.select(f"late-{step}", shards, Request(8, seed=1))
    first, original = scorers.actors[0].actor, getattr(selection, step)
    lost = [True]

    def lose_once(*args):
        if lost:
            lost.clear()
            first.holder = None
        return original(*args)

    monkeypatch.setattr(selection, step, lose_once)
    assert scorers.select(f"late-{step}", shards, Request(8, seed=1)) == expected
    assert not lost


def test_actors_that_fail_to_start_leave_the_work_to_others(folder, start):
    scorers, fake = start("entropy", 3, dead=(0, 2))
    shards = score(scorers, folder, "starts")
    assert scorers.actors == [fake.actors[1]]
    assert len(scorers.select("starts", shards, Request(30, seed=1)).query.ids) == 30
    scorers, _ = start("entropy", 2, dead=(0, 1))
    with pytest.raises(RaybalError, match="all scoring actors are lost"):
        scorers.select("starts", shards, Request(5, seed=1))


def test_an_actor_opens_nothing_before_it_is_asked(tmp_path):
    actor = PoolActor(str(tmp_path / "nowhere"), str(tmp_path))
    with pytest.raises(DataError, match="nowhere"):
        actor.ready()


@pytest.mark.ray
def test_what_an_actor_raises_on_purpose_arrives_as_itself(cluster, tmp_path):
    scorers = Scorers(str(tmp_path / "nowhere"), str(tmp_path), 1, ResourceSettings(scoring_actors=1))
    with pytest.raises(DataError, match="nowhere"):
        scorers.select("scores", ["0000"], Request(5, seed=1), make_strategy("random"))
    scorers.stop()
