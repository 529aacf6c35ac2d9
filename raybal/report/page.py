"""The report: one HTML file that shows what an experiment did, from what its store holds."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from typing import TYPE_CHECKING, Any

import yaml

from raybal.data.pool import Pool, Sidecar
from raybal.report import figures
from raybal.report.data import FUSED, PHASES, Experiment, place, public, read_experiment
from raybal.report.events import write_events
from raybal.report.items import choose_items
from raybal.report.judgement import judge, standard_error
from raybal.report.labels import class_counts, conflicts_of, label_rounds
from raybal.report.state import state_of, why_no_accuracy
from raybal.report.svg import MARKERS, MODALITY_COLOURS
from raybal.store import Store

if TYPE_CHECKING:
    import jinja2

NAME = "report.html"
METRICS = ("accuracy", "balanced_accuracy", "nll")
QUARANTINE_ROWS = 50
REASONS = 12


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


def render(experiment: Experiment, store: Store, pool: Pool, sidecar: Sidecar) -> str:
    """Returns the report as HTML; the same store gives the same text on the same machine."""
    heads = {FUSED: -1} | {m: k for k, m in enumerate(pool.info.names)}
    return _template().render(
        name=_last_part(store),
        state=state_of(experiment, pool, store),
        verdict=judge(experiment, pool),
        heads=heads,
        about=_about(experiment, pool),
        budget=_budget(experiment),
        rounds=experiment.rounds,
        newest=next(reversed(experiment.tested()), None),
        accuracy=_accuracy(experiment, pool),
        modalities=_modalities(experiment, pool),
        training=_training(experiment, pool),
        labels=_labels(experiment, store),
        items=choose_items(experiment, pool, sidecar),
        time=_time(experiment),
        quarantine=_quarantine(pool),
        settings=public(yaml.safe_dump(experiment.settings, sort_keys=False, allow_unicode=True)),
        versions=_versions(experiment),
        store=place(store),
    )


@functools.cache
def _template() -> jinja2.Template:
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
        "public": public,
        "colour": lambda k: f"var(--modality-{k % MODALITY_COLOURS})" if k >= 0 else "var(--ink)",
        "marker": lambda k: MARKERS[k % len(MARKERS)] if k >= 0 else "o",
    }
    return environment.get_template("report.html.jinja")


def _seconds(value: float) -> str:
    """Returns a time as people say it, e.g. "0.84 s", "12.3 s", "4 min 05 s", "2 h 07 min"."""
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _last_part(store: Store) -> str:
    return place(store).rpartition("/")[2]


def _budget(experiment: Experiment) -> dict[str, int]:
    # A store may be continued with a larger budget than it was begun with.
    budget = max(experiment.settings.get("label_budget", 0), experiment.asked)
    return {"asked": experiment.asked, "of": budget, "initial": len(experiment.initial)}


def _about(experiment: Experiment, pool: Pool) -> list[tuple[str, str]]:
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
    pace = balancing["pace"]["kind"]
    return [
        *rows,
        ("Balancing", f"{balancing['method']}, {pace} pace"),
        ("Query strategy", f"{query['strategy']}, {query['size']:,} items a round"),
        ("Model", f"{settings['model']['fusion']} fusion"),
        ("Labels from", {"oracle": "the manifest (oracle)", "table": "query sheets"}.get(
            settings["labelling"]["labeller"], settings["labelling"]["labeller"])),
        ("Seed", str(settings["seed"])),
    ]  # fmt: skip


def _accuracy(experiment: Experiment, pool: Pool) -> dict[str, Any]:
    names, tested = pool.info.names, experiment.tested()
    if not tested:
        return {"why": why_no_accuracy(experiment, pool), "charts": []}
    level = None
    if experiment.classes:
        level = (1 / len(experiment.classes), f"guessing (1 in {len(experiment.classes)})")
    charts = []
    for metric, title in (("accuracy", "Accuracy"), ("balanced_accuracy", "Balanced accuracy")):
        lines = figures.accuracy_lines(experiment, names, metric)
        charts.append(
            figures.line_chart(title, lines, names, x="labels", top=figures.top_of(lines, level), level=level)
        )
    newest = tested[-1].test or {}
    return {
        "charts": charts,
        "rounds": tested,
        "heads": [FUSED, *names],
        "metrics": METRICS,
        "items": newest["items"],
        "luck": 1.96 * standard_error(newest[FUSED]["accuracy"], newest["items"]),
    }


def _modalities(experiment: Experiment, pool: Pool) -> dict[str, Any]:
    names, charts = pool.info.names, []
    if len(names) < 2:
        return {"charts": [], "why": "the pool has one modality"}
    titles = {"contribution": "Mean contribution", "dominated": "Share of items that each modality dominates"}
    for of, title in titles.items():
        lines = figures.contribution_lines(experiment, names, of)
        if lines:
            level = (1 / len(names), "even") if of == "contribution" else None
            charts.append(figures.line_chart(title, lines, names, x="round", top=1.0, level=level))
    why = "the first query is chosen at random, before there is a model to look at the pool"
    return {"charts": charts, "why": why, "predicted": _predicted(experiment)}


def _predicted(experiment: Experiment) -> dict[str, Any] | None:
    """Returns what the newest model that scored the pool predicts there: a model that gives one answer shows here."""
    scored = [(r, r.pool["predicted"]) for r in experiment.rounds if r.pool and r.pool.get("predicted")]
    if not scored:
        return None
    r, counts = scored[-1]
    most = max(counts, key=lambda k: counts[k])
    return {
        "round": r.number - 1,
        "classes": len(counts),
        "of": len(experiment.classes),
        "most": experiment.class_name(int(most)),
        "share": counts[most] / sum(counts.values()),
    }


def _training(experiment: Experiment, pool: Pool) -> dict[str, Any]:
    names = pool.info.names
    trained = [r for r in experiment.rounds if r.history]
    if not trained:
        return {"charts": [], "ring": False, "notes": [], "newest": None, "overlaid": 0, "rounds": 0}
    notes = []
    validation = figures.validation_charts(experiment, names)
    if not validation:
        notes.append("There was no validation set, so the last epoch's model was used.")
    loss = figures.training_lines(experiment, names, "loss")
    charts = [figures.line_chart("Training loss", loss, names, x="epoch", small=True)]
    coefficients = figures.training_lines(experiment, names, "coefficient")
    if coefficients:
        level = (1.0, "no change")
        charts.append(
            figures.line_chart("Coefficient of each modality", coefficients, names, x="epoch", level=level, small=True)
        )
    else:
        method = experiment.settings.get("balancing", {}).get("method", "this method")
        notes.append(f"There are no coefficients to show: {method} does not scale gradients by modality.")
    pace = figures.training_lines(experiment, names, "pace")
    strengths = {v for line in pace for v in line.y}
    if len(strengths) > 1:
        charts.append(figures.line_chart("Pace", pace, names, x="epoch", top=1.0, small=True))
    elif strengths:
        notes.append(f"The pace is {strengths.pop():g} throughout (1: the method acts as published, 0: not at all).")
    return {
        "charts": validation + charts,
        "ring": bool(validation),
        "notes": notes,
        "newest": trained[-1],
        "overlaid": min(len(trained), figures.OVERLAID),
        "rounds": len(trained),
    }


def _labels(experiment: Experiment, store: Store) -> dict[str, Any]:
    return {
        "known": len(experiment.labels.known),
        "rounds": label_rounds(experiment),
        "counts": class_counts(experiment),
        "conflicts": conflicts_of(experiment),
        "sheets": place(store, "sheets") if experiment.sheets else None,
    }


def _time(experiment: Experiment) -> dict[str, Any]:
    rows = figures.phase_seconds(experiment)
    return {
        "rows": [(number, [*seconds, sum(v or 0.0 for v in seconds)]) for number, seconds in rows],
        "phases": PHASES,
        "total": [sum(seconds[k] or 0.0 for _, seconds in rows) for k in range(len(PHASES))],
        "chart": figures.time_chart(experiment) if rows else None,
    }


def _quarantine(pool: Pool) -> dict[str, Any]:
    """Returns the items that could not be prepared: their number by reason, and the first of them."""
    if not pool.store.exists("quarantine.parquet"):
        return {"items": 0, "reasons": [], "rows": [], "more": 0}
    table = pool.store.read_table("quarantine.parquet")
    found: dict[tuple[str, str], int] = {}
    for modality, reason in zip(table["modality"].to_pylist(), table["reason"].to_pylist(), strict=True):
        found[modality, reason] = found.get((modality, reason), 0) + 1
    reasons = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
    return {
        "items": len(table),
        "reasons": [(modality, reason, number) for (modality, reason), number in reasons[:REASONS]],
        "more": len(reasons) - REASONS,
        "rows": table.slice(0, QUARANTINE_ROWS).to_pylist(),
    }


def _versions(experiment: Experiment) -> list[tuple[str, str]]:
    """Returns the versions of what wrote the report, as (name, version)."""
    found = []
    for name in ("raybal", "ray", "torch"):
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    begun = experiment.begun.get("raybal")
    return [
        *([("store begun with raybal", begun)] if begun else []),
        *found,
        ("Python", platform.python_version()),
        ("platform", platform.platform()),
    ]
