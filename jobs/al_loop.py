"""Active learning over a prepared pool: python jobs/al_loop.py [--config FILE] [--pool POOL --store STORE ...]"""

from raybal.config import LoopConfig, parse
from raybal.job import run_job
from raybal.loop import run_loop


def main() -> None:
    run_loop(parse(LoopConfig))


if __name__ == "__main__":
    run_job(main)
