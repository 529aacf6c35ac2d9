"""Measures raybal beside the plainest code that does the same work: python jobs/bench.py --what all --clips FOLDER"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from raybal.balancing.base import METHODS
from raybal.config import parse
from raybal.errors import ConfigError
from raybal.job import run_job
from raybal.settings import Settings, setting


@dataclass(frozen=True)
class BenchConfig(Settings):
    """Measures raybal beside the plainest code that does the same work, after start-up, as ratios in one run."""

    what: Literal["all", "prepare", "train", "score", "seeding", "rounds", "methods", "select", "tune"] = setting(
        "all",
        help="what is measured; methods: a training step of each balancing method beside one of joint; select: "
        "choosing from large pools, beside the dense form, on a GPU if there is one, and by approximations; tune: a "
        "sweep beside the same trainings without Ray Tune",
    )
    clips: str | None = setting(None, help="folder of clips for prepare (repeated as often as needed)")
    seconds: float = setting(60.0, gt=0, help="least duration of each measurement")
    items: int = setting(2000, ge=64, help="items that training and scoring go over again and again")
    methods: list[str] = setting(factory=lambda: METHODS.names(), help="balancing methods to measure")
    sizes: list[int] = setting(
        factory=lambda: [100_000, 1_000_000], help="numbers of items to select from; ten million take 11 GB of disk"
    )
    cores: int = setting(2, ge=1, help="cores that both sides use, of those that the machine has")


def main() -> None:
    from raybal.bench.machine import cores_of
    from raybal.bench.methods import bench_methods
    from raybal.bench.prepare import bench_prepare
    from raybal.bench.rounds import bench_rounds
    from raybal.bench.score import bench_score
    from raybal.bench.seeding import bench_seeding
    from raybal.bench.select import bench_approximations, bench_dense, bench_gpu, bench_select
    from raybal.bench.train import bench_train
    from raybal.bench.tune import bench_tune

    config = parse(BenchConfig)
    if config.what == "prepare" and config.clips is None:
        raise ConfigError("clips: this key is missing; give a folder of clips to prepare")
    measurements: dict[str, Callable[[], Iterator[tuple[str, float]]]] = {
        "seeding": lambda: bench_seeding(),
        "train": lambda: bench_train(config.items, config.seconds, config.cores),
        "score": lambda: bench_score(config.items, config.seconds, config.cores),
        "rounds, in process": lambda: bench_rounds(0),
        "rounds, two workers": lambda: bench_rounds(2),
        "methods": lambda: bench_methods(config.methods, config.seconds),
        "tune": lambda: bench_tune(config.items, config.seconds, config.cores),
        "select": lambda: bench_select(config.sizes, config.cores),
        "select, dense": lambda: bench_dense(),
        "select, GPU": bench_gpu,
        "select, approximations": lambda: bench_approximations(min(config.sizes), config.cores),
        "prepare": lambda: bench_prepare(config.clips or "", config.seconds, config.cores),
    }
    with cores_of(config.cores):
        for name, measure in measurements.items():
            wanted = config.what in ("all", name.split(",")[0])
            if not wanted or (name == "prepare" and config.clips is None):
                continue
            print(name, flush=True)
            for key, value in measure():
                print(f"  {key:40} {value:12.3f}", flush=True)


if __name__ == "__main__":
    run_job(main)
