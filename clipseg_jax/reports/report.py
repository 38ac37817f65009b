"""report.html of a work directory: one file, readable offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from clipseg_jax.core.html import escape, page
from clipseg_jax.reports import charts, evaluation_section, run_section, tables
from clipseg_jax.reports.paper import Comparison, Recipe, comparisons, doubts
from clipseg_jax.reports.results import Results, read_results
from clipseg_jax.stages.work_directory import REPORT
from input_pipeline.writing import write_atomic

_STYLE = tables.STYLE + charts.STYLE + evaluation_section.STYLE + run_section.STYLE
_CALLED = {
    "maskclip": "MaskCLIP",
    "maskclip_plus": "MaskCLIP+",
    "readouts": "Read-out of CLIP",
    "reclip": "ReCLIP",
    "clip_es": "CLIP-ES",
    "weclip": "WeCLIP",
    "clip_rc": "CLIP-RC",
}


def write_report(
    workdir: Path, out: Path | None = None, tell: Callable[[str], object] = lambda damage: None
) -> Path:
    """Writes the report of a work directory, finished or not, atomically; returns its path.

    Args:
      workdir: of a recipe.
      out: the file; None: report.html in the work directory.
      tell: called with a sentence for each damaged file, which the report has as well.

    Raises:
      ValueError: `workdir` is no work directory, or nothing in it can be read.
      OSError: the report cannot be written.
    """
    results = read_results(workdir)
    text = report(results)
    for damage in results.damaged:
        tell(damage)
    return write_atomic(out or workdir / REPORT, lambda file: file.write(text.encode("utf-8")))


def report(results: Results) -> str:
    """The whole page."""
    recipe = Recipe(results)
    found = comparisons(results, recipe)
    title = _title(results, recipe, found)
    open_ = results.evaluations[-1:]  # the last stage's
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_summary(results, recipe))}</p>',
        evaluation_section.headlines(results.evaluations) if results.evaluations else "",
        evaluation_section.against_paper(found, doubts(results, recipe, found)),
        *(
            evaluation_section.section(each, open_=each in open_)
            for each in reversed(results.evaluations)
        ),
        run_section.robustness(results),
        run_section.curves(results),
        run_section.stages(results),
        run_section.left_out(results),
        run_section.ran_with(results, recipe),
        run_section.config(recipe),
        _missing(results),
    ]
    return page(title, "\n".join(filter(None, parts)), _STYLE)


def _title(results: Results, recipe: Recipe, found: Sequence[Comparison]) -> str:
    name = "dataset.name"
    dataset = recipe.values.get(name)
    if found and recipe.defaults and dataset == recipe.defaults.get(name):
        return f"{found[0].row.method} on {found[0].row.dataset}"
    if "method" not in recipe.values:  # its config is damaged
        return recipe.name or results.workdir.absolute().name
    method = str(recipe.values["method"])
    return f"{_CALLED.get(method, method)} on {dataset or 'an unknown dataset'}"


def _summary(results: Results, recipe: Recipe) -> str:
    parts = [f"recipe {recipe.name}"] if recipe.name else []
    if results.runs:
        parts.append(run_section.moment(results.runs[-1]["started"]))
        parts.append(str(results.runs[-1].get("devices") or "devices not recorded"))
    unfinished = [name for name in results.stages if name not in results.done]
    if not results.config:
        parts.append("its config cannot be read")
    parts.append(f"not finished: {', '.join(unfinished)}" if unfinished else "finished")
    return " · ".join(parts)


def _missing(results: Results) -> str:
    gone = [*results.damaged, *results.missing]
    if not gone:
        return ""
    lines = "".join(f"<li>{escape(each)}</li>" for each in gone)
    return f"<h2>Not in this report</h2><ul>{lines}</ul>"
