"""Writes the report of a store as it stands, also while its driver is at work: python jobs/report.py --store STORE"""

from dataclasses import dataclass

from raybal.config import parse
from raybal.data.pool import Pool, Sidecar
from raybal.errors import StoreError
from raybal.experiment import BEGUN
from raybal.job import run_job
from raybal.report.page import write_report
from raybal.settings import Settings, setting
from raybal.store import Store


@dataclass(frozen=True)
class ReportConfig(Settings):
    """Writes the report of a store as it stands, also while its driver is at work."""

    store: str = setting(help="folder or URI of the experiment")


def main() -> None:
    store = Store(parse(ReportConfig).store)
    begun = BEGUN.read(store)
    if begun is None:
        raise StoreError(f"{store.root} is not a store: it has no {BEGUN.file}")
    pool = begun["settings"].get("pool")
    if not isinstance(pool, str):
        raise StoreError(f"{store.path(BEGUN.file)} is damaged: its settings name no pool")
    print(f"report: {write_report(store, Pool(pool), Sidecar(pool))}")


if __name__ == "__main__":
    run_job(main)
