"""A sweep as files."""

from raybal.report.data import place
from raybal.store import Store
from raybal.tuning.config import TuneConfig
from raybal.tuning.summary import SweepSummary


def write_page(store: Store, summary: SweepSummary, config: TuneConfig) -> str:
    store.write_bytes("trials.csv", summary.trials_csv().encode())
    return place(store, "report.html")
