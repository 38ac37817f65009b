"""The command `python -m clipseg_jax.reports`: report.html of a work directory."""

from __future__ import annotations

if __name__ == "__main__":
    from input_pipeline import commands

    commands.begin()  # before the imports below

import sys
from collections.abc import Sequence
from pathlib import Path

from input_pipeline import commands
from input_pipeline.places import bucket_errors

_EXAMPLES = """\
examples:
  python -m clipseg_jax.reports workdir/demo_maskclip
  python -m clipseg_jax.reports workdir/voc_weclip --out weclip.html
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; user errors end in one line."""
    parser = commands.parser(
        "clipseg_jax.reports",
        "Writes the numbers, pictures, curves and settings of a work directory into one HTML page. "
        "Every run of a recipe does so; this command does it again, also of an unfinished run.",
        _EXAMPLES,
    )
    parser.add_argument("workdir", type=commands.any_path, help="folder that a recipe wrote")
    parser.add_argument(
        "--out", type=commands.local_path, metavar="FILE", help="default: WORKDIR/report.html"
    )
    arguments = parser.parse_args(argv)
    return commands.exit_code(lambda: _run(arguments.workdir, arguments.out))


def _run(workdir: Path, out: Path | None) -> int:
    from clipseg_jax.reports.report import write_report
    from input_pipeline.text_lists import escaped

    def tell(damage: str) -> None:
        commands.say(escaped(f"warning: {workdir}/{damage}"), error=True)

    with bucket_errors(workdir):
        written = write_report(workdir, out, tell)
    commands.say(f"report: {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
