"""Running a sweep, of training runs or of whole loops."""

from __future__ import annotations

import logging

from raybal.start import at_work, say_where
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
    summary: SweepSummary | LoopsSummary
    if config.loop.label_budget:
        with at_work(BEGUN, config, LoopSweep) as loops:
            loops.begin()
            summary = loops.run()
        store, report = loops.store, write_loops_page(loops.store, summary, loops.config)
    else:
        with at_work(BEGUN, config, Sweep) as sweep:
            sweep.begin()
            summary = sweep.run()
        store, report = sweep.store, write_page(sweep.store, summary, sweep.config)
    for line in summary.lines():
        log.info("%s", line)
    say_where(store, report)
    return summary
