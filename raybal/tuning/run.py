"""Running a sweep, of training runs or of whole loops."""

from __future__ import annotations

import logging
from collections.abc import Callable

from raybal.lease import Lease
from raybal.start import at_work, say_where
from raybal.store import Store
from raybal.tuning.config import BEGUN, TuneConfig
from raybal.tuning.loops import LoopSweep
from raybal.tuning.page import write_loops_page, write_page
from raybal.tuning.summary import LoopsSummary, SweepSummary
from raybal.tuning.sweep import Sweep

log = logging.getLogger(__name__)


def run_sweep(config: TuneConfig) -> SweepSummary | LoopsSummary:
    """Runs what is left of a sweep, writes its files and prints its tables.

    Raises:
        RaybalError: the sweep cannot begin or continue.
    """
    begin: Callable[[TuneConfig, Store, Lease], Sweep | LoopSweep] = LoopSweep if config.loop.label_budget else Sweep
    with at_work(BEGUN, config, begin) as sweep:
        sweep.begin()
        summary = sweep.run()
    if isinstance(summary, LoopsSummary):
        report = write_loops_page(sweep.store, summary, sweep.config)
    else:
        report = write_page(sweep.store, summary, sweep.config)
    for line in summary.lines():
        log.info("%s", line)
    say_where(sweep.store, report)
    return summary
