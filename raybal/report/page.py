"""The report: one HTML file that shows what an experiment did, from what its store holds."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import yaml

from raybal.costs import ITEMS
from raybal.data.pool import Pool, Sidecar
from raybal.report import figures, lines
from raybal.report.data import FUSED, ExperimentRecord, place, read_experiment
from raybal.report.events import write_events
from raybal.report.items import choose_items
from raybal.report.judgement import even_shares, judge, standard_error
from raybal.report.labels import class_counts, conflicts_of, label_rounds
from raybal.report.quarantine import read_quarantine
from raybal.report.recorded import recorded_charts
from raybal.report.state import state_of, why_no_accuracy, why_no_model
from raybal.report.svg import MARKERS, MODALITY_COLOURS
from raybal.rounds import PHASES
from raybal.store import Store
from raybal.tuning.values import changes

if TYPE_CHECKING:
    import jinja2

NAME = "report.html"
METRICS = ("accuracy", "balanced_accuracy", "nll")


def write_report(store: Store, pool: Pool, sidecar: Sidecar) -> str:
    """Writes `report.html` into a store, and its numbers as event files for TensorBoard.

    Works on a store that is part way, and on an empty one.

    Args:
        store: of the experiment.
        pool: that it chooses from.
        sidecar: of the pool; only the uris of items are read from it.

    Returns:
        Where the report is.
    """
    experiment = read_experiment(store)
    page = render(experiment, store, pool, sidecar)
    store.write_bytes(NAME, page.encode())
    write_events(store, experiment)
    return place(store, NAME)


def render(experiment: ExperimentRecord, store: Store, pool: Pool, sidecar: Sidecar) -> str:
    """Returns the report as HTML; the same store gives the same text on the same machine."""
    heads = {FUSED: -1} | {m: k for k, m in enumerate(pool.info.names)}
    return _template().render(
        name=_last_part(store),
        state=state_of(experiment, store),
        verdict=judge(experiment, pool),
        heads=heads,
        about=_about(experiment, pool),
        budget=_budget(experiment),
        rounds=experiment.rounds,
        newest=next(reversed(experiment.tested()), None),
        accuracy=_accuracy(experiment, pool),
        modalities=_modalities(experiment, pool),
        training=_training(experiment, pool),
        tunings=_tunings(experiment),
        labels=_labels(experiment, store),
        items=choose_items(experiment, pool, sidecar),
        time=_time(experiment),
        quarantine=read_quarantine(pool),
        settings=yaml.safe_dump(experiment.settings, sort_keys=False, allow_unicode=True),
        versions=_versions(experiment),
        store=place(store),
    )


@functools.cache
def _template() -> jinja2.Template:
    return template("report.html.jinja")


def template(name: str, **filters: Callable[[Any], str]) -> jinja2.Template:
    """Returns a page's template, with filters of its own beside those that all pages have."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raybal.report"),
        # Ids, labels, uris and class names are what people wrote.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda share: f"{100 * share:.1f}%",
        "count": lambda number: f"{number:,}",
        "seconds": _seconds,
        "colour": lambda k: f"var(--modality-{k % MODALITY_COLOURS})" if k >= 0 else "var(--ink)",
        "marker": lambda k: MARKERS[k % len(MARKERS)] if k >= 0 else "o",
    } | filters
    return environment.get_template(name)


def _seconds(value: float) -> str:
    """Returns a time as people say it, e.g. "0.84 s", "12.3 s", "4 min 05 s", "2 h 07 min"."""
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _last_part(store: Store) -> str:
    return place(store).rpartition("/")[2]


def _budget(experiment: ExperimentRecord) -> dict[str, Any]:
    settings = experiment.settings
    return {
        "spent": experiment.cost,
        "of": settings.get("label_budget", 0),
        "unit": settings.get("cost", {}).get("unit", ITEMS),
        "asked": experiment.asked,
        "initial": len(experiment.initial),
    }


def _about(experiment: ExperimentRecord, pool: Pool) -> list[tuple[str, str]]:
    """Returns what was run, as (term, description)."""
    settings, counts = experiment.settings, pool.info.counts
    parts = {part: len(pool.positions_in(part)) for part in ("train", "val", "test")}
    names = {"train": "training", "val": "validation", "test": "test"}
    split = ", ".join(f"{n:,} {names[part]}" for part, n in parts.items() if n)
    missing = pool.present.shape[0] - pool.present.sum(0)
    modalities = ", ".join(
        f"{m.name} ({'' if m.kind == m.name else f'{m.kind} '}{'x'.join(map(str, m.shape))}"
        + (f", {n:,} items lack it)" if n else ")")
        for m, n in zip(pool.info.modalities, missing.tolist(), strict=True)
    )
    rows = [
        ("Pool", _last_part(pool.store)),
        ("Items", f"{len(pool):,} ({split})" + (f", {n:,} in quarantine" if (n := counts.get("quarantined")) else "")),
        ("Modalities", modalities),
    ]
    if experiment.classes:
        rows.append(("Classes", f"{len(experiment.classes):,}"))
    if not settings:
        return rows
    balancing, query = settings["balancing"], settings["query"]
    pace = f", {balancing['pace']['kind']} pace" if "pace" in balancing else ""
    return [
        *rows,
        ("Balancing", balancing["method"] + pace),
        ("Query strategy", f"{query['strategy']}, {query['size']:,} items a round"),
        ("Model", f"{settings['model']['fusion']} fusion"),
        ("Labels from", {"oracle": "the manifest (oracle)", "table": "query sheets"}.get(
            settings["labelling"]["labeller"], settings["labelling"]["labeller"])),
        ("Seed", str(settings["seed"])),
    ]  # fmt: skip


def _accuracy(experiment: ExperimentRecord, pool: Pool) -> dict[str, Any]:
    names, tested = pool.info.names, experiment.tested()
    if not tested:
        return {"why": why_no_accuracy(experiment, pool), "charts": []}
    classes = len(experiment.classes)
    levels = [figures.Level(1 / classes)] if classes else []
    charts = []
    for metric, title in (("accuracy", "Accuracy"), ("balanced_accuracy", "Balanced accuracy")):
        found, level = lines.accuracy_lines(experiment, names, metric), f"guessing (1 in {classes:,})"
        top = figures.top_of(found, levels)
        charts.append(figures.line_chart(title, found, names, x="labels", top=top, levels=levels, level=level))
    newest = tested[-1].test or {}
    return {
        "charts": charts,
        "rounds": tested,
        "heads": [FUSED, *names],
        "metrics": METRICS,
        "items": newest["items"],
        "luck": 1.96 * standard_error(newest[FUSED]["accuracy"], newest["items"]),
    }


def _modalities(experiment: ExperimentRecord, pool: Pool) -> dict[str, Any]:
    if len(pool.info.names) < 2:
        return {"charts": [], "why": "the pool has one modality"}
    return {
        "charts": figures.contribution_charts(experiment, pool.info.names, even_shares(pool, "train")),
        "why": "there is no model yet whose predictions could be looked at",
        "names": pool.info.names,
        "balance": [r for r in experiment.rounds if r.balance],
        "predicted": _predicted(experiment),
        "measured_on": experiment.measured_on,
        "waiting": _not_queried_with(experiment),
    }


def _not_queried_with(experiment: ExperimentRecord) -> int | None:
    """Returns the round of the newest model if no query has been chosen with it."""
    newest = next((r.number for r in reversed(experiment.rounds) if r.has_model), None)
    asked = max((r.number for r, _ in experiment.queries()), default=-1)
    return None if newest is None or asked > newest else newest


def _predicted(experiment: ExperimentRecord) -> dict[str, Any] | None:
    """Returns what the newest model that scored the pool predicts there: a model that gives one answer shows here."""
    scored = [(r, r.pool["predicted"]) for r in experiment.rounds if r.pool and r.pool.get("predicted")]
    if not scored:
        return None
    r, counts = scored[-1]
    model = experiment.model_before(r)
    most = max(counts, key=lambda k: counts[k])
    return {
        "round": model.number if model else r.number - 1,
        "classes": len(counts),
        "of": len(experiment.classes),
        "most": experiment.class_name(int(most)),
        "share": counts[most] / sum(counts.values()),
    }


def _training(experiment: ExperimentRecord, pool: Pool) -> dict[str, Any]:
    names = pool.info.names
    trained, without = [r for r in experiment.rounds if r.history], why_no_model(experiment)
    if not trained:
        return {"charts": [], "why": without or "No training has finished yet."}
    notes = [without] if without else []
    validation = figures.validation_charts(experiment, names)
    if not validation:
        notes.append("There was no validation set, so the last epoch's model was used.")
    loss = lines.training_lines(experiment, names, "loss")
    charts = [figures.line_chart("Training loss", loss, names, x="epoch", small=True)]
    recorded, said = recorded_charts(
        [r.history for r in trained], lambda of: lines.training_lines(experiment, names, of), names
    )
    if not recorded:
        method = experiment.settings.get("balancing", {}).get("method", "this method")
        notes.append(f"There are no coefficients to show: {method} does not scale gradients by modality.")
    charts += recorded
    notes += said
    return {
        "charts": validation + charts,
        "ring": bool(validation),
        "notes": notes,
        "newest": trained[-1],
        "overlaid": min(len(trained), lines.OVERLAID),
        "rounds": len(trained),
    }


def _labels(experiment: ExperimentRecord, store: Store) -> dict[str, Any]:
    return {
        "known": len(experiment.labels.known),
        "rounds": label_rounds(experiment),
        "counts": class_counts(experiment),
        "conflicts": conflicts_of(experiment),
        "sheets": place(store, "sheets") if experiment.sheets else None,
    }


def _time(experiment: ExperimentRecord) -> dict[str, Any]:
    rows = lines.phase_seconds(experiment)
    return {
        "rows": [(number, [*seconds, sum(v or 0.0 for v in seconds)]) for number, seconds in rows],
        "phases": PHASES,
        "total": [sum(seconds[k] or 0.0 for _, seconds in rows) for k in range(len(PHASES))],
        "chart": figures.time_chart(experiment) if rows else None,
    }


def _tunings(experiment: ExperimentRecord) -> list[dict[str, Any]]:
    """Returns what the tunings between rounds changed, and what they cost."""
    found = []
    for r in experiment.rounds:
        facts = r.facts.get("tune", {})
        if "skipped" in facts or "trials" in facts:
            before, after = facts.get("before"), facts.get("after")
            changed = changes(before["values"], after["values"]) if before and after else ""
            why = facts.get("skipped", "nothing was better" if after else "no trial ended in time")
            found.append({"round": r.number, "facts": facts, "before": before, "after": after, "what": changed or why})
    return found


def _versions(experiment: ExperimentRecord) -> list[tuple[str, str]]:
    """Returns the versions of what wrote the report, as (name, version)."""
    started = experiment.begun.get("raybal")
    return [*([("store last started with raybal", started)] if started else []), *versions()]


def versions() -> list[tuple[str, str]]:
    """Returns the versions of what writes a page, as (name, version)."""
    found = []
    for name, package in (("report written by raybal", "raybal"), ("ray", "ray"), ("torch", "torch")):
        try:
            found.append((name, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return [*found, ("Python", platform.python_version()), ("platform", platform.platform())]
