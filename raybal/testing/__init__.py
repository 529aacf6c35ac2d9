"""Checks that any balancing method and any query strategy must pass, raybal's own and a user's.

    from raybal.testing import Case, check, check_strategy

    def test_my_method():
        check(Case("my_method", {"alpha": 2.0}, baseline="joint"))

    def test_my_strategy():
        check_strategy("my_strategy")

A method for which a check is mathematically untrue names it in `BalancingMethod.exceptions`; then it must indeed fail.
Nothing here needs Ray or pytest; a failed check is an AssertionError that names the check and the method.
"""

from raybal.testing.methods import CHECKS, check, check_one
from raybal.testing.runs import CLASSES, EPOCHS, MODALITIES, SEED, THIRD, Case, items_of, run_of, trained
from raybal.testing.strategies import STRATEGY_CHECKS, StrategyCase, check_strategy, check_strategy_once
from raybal.testing.workers import WORKERS, check_workers

__all__ = [
    "CHECKS",
    "CLASSES",
    "EPOCHS",
    "MODALITIES",
    "SEED",
    "STRATEGY_CHECKS",
    "THIRD",
    "WORKERS",
    "Case",
    "StrategyCase",
    "check",
    "check_one",
    "check_strategy",
    "check_strategy_once",
    "check_workers",
    "items_of",
    "run_of",
    "trained",
]
