"""The oracle: the manifest's labels, hidden until they are asked for. For simulations."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from raybal.data.pool import Sidecar
from raybal.labelling.journal import Answer, Labels

_WHY = "the oracle answers from the manifest's labels (people would, with --labelling.labeller table)"


class Oracle:
    """Answers every query at once from the pool's label sidecar.

    Args:
        sidecar: of the pool.
        classes: class names.
        candidates: ids that may be asked for.

    Raises:
        DataError: a candidate has no label.
    """

    def __init__(self, sidecar: Sidecar, classes: Sequence[str], candidates: Sequence[str]) -> None:
        self.sidecar = sidecar
        self.classes = classes
        # Now rather than in the middle of a run.
        sidecar.class_indices(candidates, classes, _WHY)

    def ask(self, round_number: int, ids: Sequence[str]) -> None:
        """Nothing to do."""

    def collect(self, asked: Collection[str]) -> list[Answer]:
        return [Answer(i, label, "oracle") for i, label in self.sidecar.labels(sorted(asked)).items()]

    def where(self, round_number: int) -> str:
        return "the manifest's label column"

    def report_conflicts(self, labels: Labels) -> None:
        """A manifest does not contradict itself."""
