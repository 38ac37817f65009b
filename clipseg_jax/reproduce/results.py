"""What a row's work directory says: whether it is done, our numbers, and what makes them differ.

Work directories are the only memory of which rows are done, and with what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from clipseg_jax.core.files import read_json
from clipseg_jax.core.json_lines import read_lines
from clipseg_jax.reproduce.plan import Plan
from clipseg_jax.reproduce.sources import WEIGHTS
from clipseg_jax.reproduce.verdicts import difference, verdict
from clipseg_jax.stages.published_rows import Figure, PublishedRow
from clipseg_jax.stages.run_record import RUNS
from clipseg_jax.stages.work_directory import CONFIG, checksums, differences
from input_pipeline.datasets.catalog import BY_NAME

DONE, READY, MISSING, FAILED, INTERRUPTED = "done", "ready", "missing", "failed", "interrupted"


@dataclass(frozen=True)
class Number:
    """A published number, ours, and what they say of each other."""

    what: str
    metric: str
    paper: float
    reported: dict[str, Any] | None  # low, high and source of what others than the paper report
    ours: float | None = None
    difference: float | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
      state: one of the words above.
      reason: why it is not done.
      notes: why its numbers are not those of the paper's run.
      seconds: of the stages; what an interrupted start computed in vain is not in it.
      devices, system, versions: where it ran and with what; empty where that is not known.
    """

    row: str
    method: str
    dataset: str
    source: str
    state: str
    reason: str
    numbers: tuple[Number, ...]
    notes: tuple[str, ...] = ()
    seconds: float | None = None
    devices: str = ""
    system: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As `table.json` has it."""
        return asdict(self)


def is_finished(plan: Plan) -> bool:
    """Whether the work directory has all stages and numbers, whatever values they are of."""
    stages = [plan.workdir / f"{name}.done.json" for name in plan.config.stages]
    files = [plan.workdir / figure.file for figure in plan.row.figures]
    return all(path.exists() for path in (plan.workdir / CONFIG, *stages, *files))


def is_done(plan: Plan) -> bool:
    """Whether the work directory is finished, and of the values that are asked for.

    Raises:
      ValueError: a damaged file.
    """
    return is_finished(plan) and not differences(plan.config, plan.workdir)


def not_run(row: PublishedRow, state: str, reason: str = "") -> Entry:
    """The entry of a row that has no numbers."""
    numbers = tuple(_published(figure) for figure in row.figures)
    return Entry(row.row, row.method, row.dataset, row.source, state, reason, numbers)


def done(plan: Plan) -> Entry:
    """The entry of a row that is finished.

    Raises:
      ValueError: a damaged file.
    """
    row, workdir = plan.row, plan.workdir
    records = {name: _read(workdir / f"{name}.done.json") for name in plan.config.stages}
    notes = (*_notes(plan, records), *_other_weights(plan))
    numbers = tuple(_number(figure, workdir, notes) for figure in row.figures)
    starts = read_lines(workdir / RUNS, devices=str, system=str, python=str, packages=dict)
    last: dict[str, Any] = starts[-1] if starts else {"devices": "", "system": "", "packages": {}}
    versions = {"python": last["python"]} if starts else {}
    return Entry(
        *(row.row, row.method, row.dataset, row.source, DONE, "", numbers, notes),
        seconds=round(sum(record.get("seconds") or 0.0 for record in records.values()), 1),
        devices=last["devices"],
        system=last["system"],
        versions=versions | {name: str(number) for name, number in last["packages"].items()},
    )


def _published(figure: Figure) -> Number:
    reported = None if figure.spread is None else asdict(figure.spread)
    return Number(figure.what, figure.metric, figure.paper, reported)


def _number(figure: Figure, workdir: Path, notes: Sequence[str]) -> Number:
    """The figure beside ours; `notes` are why they cannot be compared."""
    ours = _read(workdir / figure.file).get(figure.metric)
    if not isinstance(ours, int | float):  # no class of that mean occurs
        return replace(_published(figure), verdict="no number")
    says = "not comparable" if notes else verdict(figure, ours)
    return replace(_published(figure), ours=ours, difference=difference(figure, ours), verdict=says)


def _notes(plan: Plan, records: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """In what the run was another one than the paper's; `records` are those of its stages."""
    changed = differences(plan.published, plan.workdir)
    notes = [f"{name}={made} (published: {value})" for name, (made, value) in changed.items()]
    dataset = plan.config.dataset
    images = records.get("data", records.get("tags", {})).get("images")
    counts = images if isinstance(images, dict) else {dataset.split: images}
    if "data" not in records:
        counts = {dataset.train_split: images}
    elif "training_images" in records["data"]:
        counts = {**counts, dataset.train_split: records["data"]["training_images"]}
    for name, count in counts.items():
        split = BY_NAME[dataset.name].layout.split(name)
        if split.count is not None and count not in (split.count, *split.also):
            notes.append(f"{name} has {count} images (published: {split.count})")
    for name, record in records.items():
        left_out = record.get("left_out", record.get("skipped"))
        if isinstance(left_out, int) and left_out:
            notes.append(f"{left_out} images were left out in the stage {name}")
    return tuple(notes)


def _other_weights(plan: Plan) -> list[str]:
    """Files that had the name of released ones and were others."""
    digests = checksums(plan.workdir)
    read = {name: digests[key] for key, name in plan.row.files.items() if key in digests}
    return [
        f"{name} is not the released file (sha256 {digest or 'of a folder'})"
        for name, digest in read.items()
        if not digest.startswith(WEIGHTS[name].sha256)
    ]


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, "delete it and its stage's .done.json, and run again")
