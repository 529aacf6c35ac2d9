"""Finds coefficients, pace and training settings: python jobs/tune.py [--config FILE] [...]"""

from raybal.config import parse
from raybal.job import run_job
from raybal.tuning.config import TuneConfig
from raybal.tuning.run import run_sweep


def main() -> None:
    run_sweep(parse(TuneConfig))


if __name__ == "__main__":
    run_job(main)
