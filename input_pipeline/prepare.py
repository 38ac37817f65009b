"""The command `python -m input_pipeline.prepare`: is a dataset complete; make its label files.

It ends with 0 if all is well, 1 if something is wrong with the dataset, 2 after one line
`error: ...` if it could not do its work, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from input_pipeline.checks import Checked, Expected, Problem, Run, check
from input_pipeline.conversions import CannotWrite, Converted, convert, write_whole
from input_pipeline.preparations import PREPARATIONS, Preparation, find_jobs

_SHOWN = 5  # names of each kind of problem; --report has all
_MOST_PROCESSES = 32  # beyond it is the disk that is slow

_EXAMPLES = """\
examples:
  python -m input_pipeline.prepare voc --root /data/VOCdevkit/VOC2012
  python -m input_pipeline.prepare voc_aug --root /data/VOCdevkit/VOC2012 --write --source /data/SBD
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
    """Converts if it shall `write`, then checks.

    Args:
      source: the folder of raw maps, if it isn't in its usual place.
      run: gives, for the name of the step, what works on the chunks of files.

    Raises:
      ValueError: the folders are not what they should be. CannotWrite: disk full, no permission.
    """
    root = preparation.expected.record.layout.resolve(root)
    if not root.is_dir():
        raise ValueError(f"--root {root} is not a folder")
    converted = None
    if write:
        jobs = find_jobs(preparation, root, source)
        table = preparation.table() if preparation.table else np.zeros(0)
        converted = convert(jobs, table, run=run("convert"))
    checked = check(root, preparation.expected, deep=deep, run=run("check"))
    if converted is not None and converted.failures:
        remedy = "Unpack these again; then --write goes on where it stopped."
        checked.problems.insert(0, Problem("not converted", converted.failures, remedy))
    return checked, converted


def report(name: str, expected: Expected, checked: Checked, converted: Converted | None) -> str:
    """What was found, in words; of each kind of problem the first few names."""
    lines = [f"{name} in {checked.root}"]
    for split, published in expected.counts:
        known = " or ".join(str(number) for number in published)
        lines.append(f"  {split}: {checked.pictures[split]} pictures (published: {known})")
    present = sum(bool(checked.histogram[label]) for label in expected.classes)
    shares = "".join(f", {checked.share(i):.1%} of the pixels {i}" for i, _, _ in expected.shares)
    lines.append(
        f"  labels: {checked.labels} read, {present} of {len(expected.classes)} classes{shares}"
    )
    if converted is not None:
        lines.append(
            f"  converted: {converted.written}, there already: {converted.kept}, "
            f"failed: {len(converted.failures)}"
        )
    for problem in checked.problems:
        lines += ["", f"{problem.kind}: {len(problem.items)}"]
        lines += [f"  {item}" for item in problem.items[:_SHOWN]]
        if len(problem.items) > _SHOWN:
            lines.append("  ...")
        lines.append(f"  -> {problem.remedy}")
    kinds = len(checked.problems)
    lines += ["", f"not ok: {kinds} kind{'s' * (kinds > 1)} of problem" if kinds else "ok"]
    return "\n".join(lines)


def as_json(
    name: str, expected: Expected, checked: Checked, converted: Converted | None
) -> dict[str, Any]:
    """The report with every name."""
    return {
        "dataset": name,
        "root": str(checked.root),
        "ok": not checked.problems,
        "pictures": {
            split: {"found": checked.pictures[split], "published": list(published)}
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


def in_processes(step: str) -> Run:
    """Works on chunks as `map`, in one process a core, with a progress bar called `step`."""

    def run(function: Callable, chunks: Sequence) -> Iterator:
        with tqdm(total=sum(map(len, chunks)), unit="file", desc=step, disable=None) as bar:
            for chunk, made in zip(chunks, _results(function, chunks), strict=True):
                bar.update(len(chunk))
                yield made

    return run


def _results(function: Callable, chunks: Sequence) -> Iterator:
    processes = min(os.cpu_count() or 1, len(chunks), _MOST_PROCESSES)
    if processes <= 1:
        yield from map(function, chunks)
        return
    # Forking would copy the threads' locks.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, _follow_the_parent) as pool:
        yield from pool.map(function, chunks)


def _follow_the_parent() -> None:
    """Ctrl-C is for the parent, which waits for our chunk; if it is killed we end too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see python -m input_pipeline.prepare --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m input_pipeline.prepare",
        description="Check that a dataset is complete and its labels are what they should be; "
        "make label files from the published maps.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", choices=PREPARATIONS, help=", ".join(PREPARATIONS))
    parser.add_argument(
        "--root", type=Path, required=True, help="the dataset's folder, or the one it lies in"
    )
    parser.add_argument(
        "--write", action="store_true", help="first make the label files that are missing"
    )
    parser.add_argument(
        "--source", type=Path, help="with --write, for voc_aug and context: folder of raw maps"
    )
    parser.add_argument(
        "--deep", action="store_true", help="decode every picture, not only its header"
    )
    parser.add_argument("--report", metavar="FILE", type=Path, help="write the report as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.source is not None and not args.write:
        parser.error("--source goes with --write")
    if args.report is not None and (args.report.is_dir() or not args.report.parent.is_dir()):
        parser.error(f"--report {args.report} must be a file in a folder that exists")
    preparation = PREPARATIONS[args.name]
    try:
        checked, converted = prepare(
            preparation,
            args.root,
            write=args.write,
            deep=args.deep,
            source=args.source,
            run=in_processes,
        )
        told = (args.name, preparation.expected, checked, converted)
        print(report(*told))
        if args.report is not None:
            text = json.dumps(as_json(*told), indent=2) + "\n"
            write_whole(args.report, text.encode())
    except BrokenProcessPool:
        print(
            "error: a process was killed, perhaps for lack of memory; run it again", file=sys.stderr
        )
        return 2
    except (ValueError, OSError, CannotWrite) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 1 if checked.problems else 0


if __name__ == "__main__":
    sys.exit(main())
