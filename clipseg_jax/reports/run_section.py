"""The sections of a report on the run: curves, stages, what is left out, versions, config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from clipseg_jax.core.html import escape
from clipseg_jax.core.metrics import percent_text
from clipseg_jax.reports.charts import curve
from clipseg_jax.reports.logs import Series
from clipseg_jax.reports.paper import Recipe
from clipseg_jax.reports.results import Results
from clipseg_jax.reports.tables import folded, table
from clipseg_jax.stages.work_directory import names_path
from input_pipeline.walk import open_regular

STYLE = """
.curves { display: grid; gap: .5rem 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
.curves figure { margin: 0; break-inside: avoid; }
code { font: .85em/1.4 ui-monospace, monospace; }
"""

_EVALUATIONS = "_evaluations"
_FIRST = ("loss", "rate", "images_per_second", "data_wait")  # of a log; the others are folded
_CALLED = {
    "rate": "learning rate",
    "images_per_second": "images per second",
    "data_wait": "share of time spent waiting for data",
    "step_seconds": "seconds per step",
    "checkpoint_seconds": "seconds of checkpoints",
}
_UNSAID = ("seconds", "prompts", "published_metric")  # of a stage's record
_NAMED = 20  # reasons that are listed
_LONGEST = 160  # characters of a value


def curves(results: Results) -> str:
    """The logs of all trainings, each with the evaluations during it."""
    parts = []
    names = dict.fromkeys(name.removesuffix(_EVALUATIONS) for name in results.logs)
    metrics = {each.metric for each in results.evaluations} | {"mIoU"}
    for name in names:
        log, scored = results.logs.get(name), results.logs.get(f"{name}{_EVALUATIONS}")
        shown: dict[str, Series] = {}
        more: dict[str, Series] = {}
        for key, series in (log.series if log else {}).items():
            (shown if key in _FIRST else more)[_CALLED.get(key, key)] = series
        for key, series in (scored.series if scored else {}).items():
            (shown if key in metrics else more)[f"{key} of evaluations"] = series
        parts.append(f"<h2>Training: {escape(name)}</h2>{_charts(shown)}")
        if more:
            parts.append(folded(f"{len(more)} more curves", _charts(more)))
    return "\n".join(parts)


def _charts(series: Mapping[str, Series]) -> str:
    charts = (
        f"<figure><figcaption>{escape(name)}</figcaption>{curve(each, name)}</figure>"
        for name, each in series.items()
    )
    return f'<div class="curves">{"".join(charts)}</div>'


def robustness(results: Results) -> str:
    """Metrics under corruptions, one row for each kind."""
    metric = results.done.get("robustness", {}).get("published_metric", "mIoU")
    levels = sorted({level for each in results.robustness.values() for level in each})
    if not levels:
        return ""

    def cell(figures: Mapping[str, Any], level: str) -> str:
        found = figures.get(level)
        value = found.get(metric) if isinstance(found, dict) else None
        return percent_text(value) if isinstance(value, int | float) else "-"

    rows = [
        [escape(kind), *(cell(figures, level) for level in levels)]
        for kind, figures in results.robustness.items()
    ]
    head = (f"{metric} at level", *levels)
    return "<h2>Robustness</h2>" + table(head, rows, numbers=len(levels))


def stages(results: Results) -> str:
    """Seconds of each stage, and what it says of itself."""
    rows = []
    for name in results.stages:
        record = results.done.get(name)
        if record is None:
            rows.append([escape(name), "not finished", "-"])
            continue
        seconds = record.get("seconds")
        said = ", ".join(
            f"{key} {_text(value)}"
            for key, value in record.items()
            if key not in _UNSAID and not isinstance(value, dict | list)
        )
        took = f"{seconds:,.1f}" if type(seconds) in (int, float) else "-"
        rows.append([escape(name), escape(said), took])
    remark = '<p class="soft">Of a stage that was interrupted: seconds of its last part.</p>'
    return "<h2>Stages</h2>" + table(("stage", "record", "seconds"), rows, numbers=1) + remark


def left_out(results: Results) -> str:
    """Images without which the run went on, with the reasons of some."""
    parts = []
    for each in results.evaluations:
        skipped = each.figures.get("skipped")
        if isinstance(skipped, list) and skipped:
            parts.append(_reasons(each.file, [str(reason) for reason in skipped]))
    for file, reasons in results.problems.items():
        if reasons:
            parts.append(_reasons(file, [f"{name}: {why}" for name, why in reasons.items()]))
    return "<h2>Left out</h2>" + "\n".join(parts) if parts else ""


def _reasons(file: str, reasons: list[str]) -> str:
    lines = "".join(f"<li>{escape(reason)}</li>" for reason in reasons[:_NAMED])
    more = len(reasons) - _NAMED
    rest = f'<p class="soft">{more} more are in {escape(file)}.</p>' if more > 0 else ""
    return folded(f"{len(reasons)} images, {escape(file)}", f"<ul>{lines}</ul>{rest}")


def ran_with(results: Results, recipe: Recipe) -> str:
    """Devices, versions, seeds and weights."""
    rows: list[tuple[str, object]] = []
    if results.runs:
        newest, starts = results.runs[-1], len(results.runs)
        last = f", the last of {starts} starts" if starts > 1 else ""
        rows += [
            ("recipe", recipe.name or "not recorded"),
            ("started", f"{moment(newest['started'])}{last}"),
            ("devices", newest.get("devices")),
            ("system", f"{newest.get('system')}, Python {newest.get('python')}"),
        ]
        packages = newest.get("packages")
        if isinstance(packages, dict):
            rows.append(("versions", ", ".join(f"{name} {v}" for name, v in packages.items())))
        if any(_same(run) != _same(newest) for run in results.runs):
            rows.append(("earlier starts", "with other versions or devices, see runs.jsonl"))
    seeds = {n: v for n, v in recipe.values.items() if n.rpartition(".")[2] == "seed"}
    if seeds:
        rows.append(("seeds", ", ".join(f"{name} {value}" for name, value in seeds.items())))
    cells = [[escape(name), escape(value)] for name, value in rows]
    return "<h2>Ran with</h2>" + table(("", ""), cells) + _weights(results, recipe)


def moment(iso: str) -> str:
    """ "2026-11-30 02:31 UTC" of a time as `run_record` writes it."""
    return f"{iso[:10]} {iso[11:16]} UTC" if iso.endswith("+00:00") else iso


def _same(run: Mapping[str, Any]) -> list[Any]:
    return [run.get(key) for key in ("devices", "python", "system", "packages")]


def _weights(results: Results, recipe: Recipe) -> str:
    """The files that the config names, and those that the run wrote."""
    rows = []
    for name, value in recipe.values.items():
        if names_path(name) and name != "dataset.root" and isinstance(value, str) and value:
            content = results.content.get(name, {})
            digest = content.get("sha256")
            if digest is None and content:
                digest = f"{content.get('digest')} (of its files and their sha256)"
            rows.append([name, value, digest or "not recorded"])
    for path in sorted(results.workdir.glob("*.safetensors")):
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        rows.append(["written by the run", path.name, digest])
    if not rows:
        return ""
    cells = [[escape(name), escape(_text(value)), _code(digest)] for name, value, digest in rows]
    return "<h3>Weights</h3>" + table(("config value", "file", "sha256"), cells)


def config(recipe: Recipe) -> str:
    """Every value; those that are not the recipe's own are marked, and come first."""
    defaults = recipe.defaults
    nothing = object()

    def is_changed(name: str) -> bool:
        if defaults is None:
            return False
        return recipe.values[name] != defaults.get(name, nothing)

    def row(name: str) -> list[str]:
        cells = [_code(name), _code(_text(recipe.values[name])), ""]
        if is_changed(name):
            own = _text(defaults[name]) if defaults and name in defaults else "no such value"
            cells = [f"<b>{cells[0]}</b>", f"<b>{cells[1]}</b>", _code(own)]
        return cells

    names = [*recipe.values]
    changed = [name for name in names if is_changed(name)]
    if defaults is None:
        remark = "The recipe's own values are not known here, so that changes are not marked."
    elif changed:
        remark = f"Not the recipe's own: {len(changed)} of {len(names)} values."
    else:
        remark = "All values are the recipe's own."
    head = ("name", "value", "the recipe's own")
    parts = [f'<h2>Config</h2><p class="soft">{escape(remark)}</p>']
    if changed:
        parts.append(table(head, [row(name) for name in changed]))
    parts.append(folded(f"All {len(names)} values", table(head, [row(name) for name in names])))
    return "\n".join(parts)


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
