"""Prepares a pool: python jobs/prepare.py --input MANIFEST --output POOL

A data set as it is distributed needs no manifest: --input DATASET --layout.name crema_d --layout.split fold-1
"""

from raybal.config import parse
from raybal.data.plan import PrepareConfig
from raybal.data.prepare import prepare
from raybal.job import run_job
from raybal.resources import ResourceSettings, check_place, cluster


def main() -> None:
    config = parse(PrepareConfig)
    check_place("output", config.output)
    with cluster(ResourceSettings()):
        prepare(config)
    print(f"pool: {config.output}")


if __name__ == "__main__":
    run_job(main)
