"""The command `python -m input_pipeline.prepare`: checks a dataset and makes its label files.

Exit status: 0 if the dataset is complete and correct, 1 if it is not, 2 after an error, which
prints one line `error: ...`, 130 after Ctrl-C.
"""

from __future__ import annotations

if __name__ == "__main__":
    from input_pipeline import commands

    commands.begin()  # before the imports below

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from input_pipeline import commands
from input_pipeline.prepare.checks import check
from input_pipeline.prepare.conversions import Converted, convert
from input_pipeline.prepare.expected import Checked, Expected, Problem
from input_pipeline.prepare.preparations import PREPARATIONS, Preparation
from input_pipeline.prepare.workers import Run, in_processes
from input_pipeline.text_lists import printable
from input_pipeline.writing import write_atomic

_SHOWN = 5  # printed names of each kind of problem; --report has all

_EXAMPLES = """\
examples:
  python -m input_pipeline.prepare voc --root /data/VOCdevkit/VOC2012
  python -m input_pipeline.prepare voc_aug --root /data/VOCdevkit/VOC2012 --write --source /data/SBD
  python -m input_pipeline.prepare coco14 --root /data/COCO2014 --write
  python -m input_pipeline.prepare coco_stuff_27 --root /data/coco_stuff164k --write
  python -m input_pipeline.prepare cityscapes --root /data/cityscapes --deep --report city.json
"""


def prepare(
    preparation: Preparation,
    root: Path,
    *,
    write: bool = False,
    deep: bool = False,
    source: Path | None = None,
    run: Callable[[str], Run] = lambda _: map,
) -> tuple[Checked, Converted | None]:
    """Makes label files on request, then checks the dataset.

    Args:
      write: make the label files that are missing.
      deep: see `check`.
      source: folder of raw maps, if it is not in its usual place.
      run: name of a step -> a function like `map` that processes the chunks of files.

    Raises:
      ValueError: `root` is not a folder, or `source` is not valid for this dataset.
      CannotWrite: disk full, no permission.
    """
    root = preparation.expected.record.layout.resolve(root)
    if not root.is_dir():
        raise ValueError(f"--root {root} is not a folder")
    if source is not None and not preparation.takes_source:
        raise ValueError("--source is for voc_aug and context; omit it")
    converted = Converted() if write else None
    if write and preparation.jobs is not None and preparation.label_of is not None:
        jobs = preparation.jobs(root, source)
        converted = convert(jobs, preparation.label_of(), run=run("convert"))
    checked = check(root, preparation.expected, deep=deep, run=run("check"))
    if converted is not None and converted.failures:
        problem = Problem("not converted", converted.failures, preparation.remedy)
        checked.problems.insert(0, problem)
    return checked, converted


def report(name: str, expected: Expected, checked: Checked, converted: Converted | None) -> str:
    """The report as text, with the first few names of each kind of problem."""
    lines = [f"{name} in {checked.root}"]
    for split, published in expected.counts:
        counts = " or ".join(str(number) for number in published)
        lines.append(f"  {split}: {checked.images[split]} images (published: {counts})")
    present = sum(bool(checked.histogram[label]) for label in expected.classes)
    shares = "".join(f", {checked.share(i):.1%} of the pixels {i}" for i, _, _ in expected.shares)
    lines.append(
        f"  labels: {checked.labels} read, {present} of {len(expected.classes)} classes{shares}"
    )
    if converted is not None:
        lines.append(
            f"  converted: {converted.written}, already there: {converted.kept}, "
            f"failed: {len(converted.failures)}"
        )
    for problem in checked.problems:
        lines += ["", f"{problem.kind}: {len(problem.items)}"]
        lines += [f"  {printable(item)}" for item in problem.items[:_SHOWN]]
        if len(problem.items) > _SHOWN:
            lines.append("  ...")
        lines.append(f"  -> {problem.remedy}")
    kinds = len(checked.problems)
    lines += ["", f"not ok: {kinds} kind{'s' * (kinds > 1)} of problem" if kinds else "ok"]
    return "\n".join(lines)


def as_json(
    name: str, expected: Expected, checked: Checked, converted: Converted | None
) -> dict[str, Any]:
    """The report with all names, for JSON."""
    return {
        "dataset": name,
        "root": str(checked.root),
        "ok": not checked.problems,
        "pictures": {
            split: {"found": checked.images[split], "published": list(published)}
            for split, published in expected.counts
        },
        "labels": checked.labels,
        "pixels": {str(i): int(n) for i, n in enumerate(checked.histogram[:256]) if n},
        "converted": None
        if converted is None
        else {"written": converted.written, "kept": converted.kept},
        "problems": [
            {"kind": p.kind, "count": len(p.items), "items": p.items, "remedy": p.remedy}
            for p in checked.problems
        ],
    }


def _parser() -> argparse.ArgumentParser:
    parser = commands.parser(
        "input_pipeline.prepare",
        "Check that a dataset is complete and its label maps are correct;\n"
        "make label files from the published maps and annotations.",
        _EXAMPLES,
    )
    parser.add_argument("name", metavar="NAME", choices=PREPARATIONS, help=", ".join(PREPARATIONS))
    parser.add_argument(
        "--root",
        type=commands.local_path,
        required=True,
        help="the dataset's folder, or a folder of datasets",
    )
    parser.add_argument("--write", action="store_true", help="first make missing label files")
    parser.add_argument(
        "--source",
        type=commands.local_path,
        help="with --write, for voc_aug and context: folder of raw label maps",
    )
    parser.add_argument(
        "--deep", action="store_true", help="decode all images, not only their headers"
    )
    parser.add_argument(
        "--report", metavar="FILE", type=commands.local_path, help="write the report as JSON"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.source is not None and not args.write:
        parser.error("--source needs --write")
    if args.report is not None and (args.report.is_dir() or not args.report.parent.is_dir()):
        parser.error(f"--report {args.report} must be a file in a folder that exists")
    return commands.exit_code(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    preparation = PREPARATIONS[args.name]
    checked, converted = prepare(
        preparation,
        args.root,
        write=args.write,
        deep=args.deep,
        source=args.source,
        run=in_processes,
    )
    print(report(args.name, preparation.expected, checked, converted))
    if args.report is not None:
        content = as_json(args.name, preparation.expected, checked, converted)
        encoded = (json.dumps(content, indent=2) + "\n").encode()
        write_atomic(args.report, lambda file: file.write(encoded))
    return 1 if checked.problems else 0


if __name__ == "__main__":
    sys.exit(main())
