"""Compares query strategies in simulated active learning: python jobs/study.py [--config FILE] [...]"""

from raybal.config import parse
from raybal.job import run_job
from raybal.study.config import StudyConfig
from raybal.study.run import run_study


def main() -> None:
    run_study(parse(StudyConfig))


if __name__ == "__main__":
    run_job(main)
