"""One training run, or a table of balancing methods and seeds: python jobs/train.py [--config FILE] [...]"""

from raybal.config import parse
from raybal.job import run_job
from raybal.table.config import TableConfig
from raybal.table.run import run_table


def main() -> None:
    run_table(parse(TableConfig))


if __name__ == "__main__":
    run_job(main)
