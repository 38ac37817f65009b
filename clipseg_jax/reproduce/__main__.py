"""The command `python -m clipseg_jax.reproduce`: the rows of the papers' tables, and our numbers.

Exit codes: 0 all rows that could run are done; 2 a row failed, nothing could run, or wrong input;
74 a disk failed; 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

if __name__ == "__main__":
    from input_pipeline import commands

    commands.begin()  # before the imports below

import argparse
import difflib
import fnmatch
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipseg_jax.core import compile_cache
from input_pipeline import commands
from input_pipeline.text_lists import printable

# All else is imported where it is used: --help and mistakes are answered without JAX.
if TYPE_CHECKING:
    from clipseg_jax.stages.published_rows import PublishedRow

_DESCRIPTION = """\
Run the rows of the papers' tables for which datasets and weights are there, one after the other,
each a recipe of its own in OUT/ROW, and compare the numbers in OUT/table.md, table.html and
table.json. Finished rows are not run again, an interrupted one resumes, a row that fails stops no
other.
"""
_EXAMPLES = """\
examples:
  python -m clipseg_jax.reproduce --datasets data --weights weights --out repro --dry-run
  python -m clipseg_jax.reproduce --datasets data --weights weights --out repro --rows 'voc_*'
  python -m clipseg_jax.reproduce --datasets data --weights weights --out repro -- \\
      --config.run.devices=1
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; `argv` without the program, default: those of the process."""
    args = _parser().parse_args(argv)
    return commands.exit_code(lambda: _reproduce(args))


def _reproduce(args: argparse.Namespace) -> int:
    from clipseg_jax.core.run_lock import RunLock
    from clipseg_jax.reproduce.loop import look, reproduce, tell
    from clipseg_jax.reproduce.plan import Folders, check_given

    folders = Folders(args.datasets, args.weights, args.out)
    chosen = choose(args.rows)
    check_given(args.config, chosen)
    if args.dry_run:
        tell(look(folders, [row.row for row in chosen], args.config))
        return 0
    for option in ("datasets", "weights"):
        if not getattr(args, option).is_dir():
            raise ValueError(f"--{option} {getattr(args, option)} is not a folder")
    with RunLock(args.out):
        board = look(folders, [row.row for row in chosen], args.config)
        return reproduce(board)


def choose(patterns: Sequence[str]) -> list[PublishedRow]:
    """The rows whose names match one of the globs; all of them without a glob.

    Raises:
      ValueError: a glob that matches nothing; names the nearest rows.
    """
    from clipseg_jax.stages.published_rows import rows

    names = [row.row for row in rows()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            near = difflib.get_close_matches(re.sub(r"[][*?!]", "", pattern), names, 3, 0.4)
            hint = f"; near are {', '.join(near)}" if near else ""
            raise ValueError(
                f"no row matches --rows {printable(pattern)}{hint}; --dry-run without --rows lists "
                "all"
            )
    found = {name for pattern in patterns for name in fnmatch.filter(names, pattern)}
    return [row for row in rows() if not patterns or row.row in found]


def _parser() -> argparse.ArgumentParser:
    parser = commands.parser(
        "clipseg_jax.reproduce", _DESCRIPTION, f"{_EXAMPLES}\n{compile_cache.help_lines()}\n"
    )
    parser.add_argument(
        "--datasets",
        type=commands.local_path,
        required=True,
        metavar="DIR",
        help="folder of datasets, each in its usual folder (docs/data.md) or as records in a "
        "folder called as configs call it, such as voc12_20",
    )
    parser.add_argument(
        "--weights",
        type=commands.local_path,
        required=True,
        metavar="DIR",
        help="folder of released files under their names, such as ViT-B-16.pt",
    )
    parser.add_argument(
        "--out",
        type=commands.local_path,
        required=True,
        metavar="DIR",
        help="folder of the table, and of a work directory for each row",
    )
    parser.add_argument(
        "--rows",
        action="append",
        default=[],
        metavar="GLOB",
        help="only rows whose names match, such as 'voc_*'; may be repeated (default: all)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the rows and what they lack; run nothing"
    )
    parser.add_argument(
        "config",
        nargs="*",
        metavar="-- --config.KEY=VALUE",
        help="more values for the rows that have them; all but --config.run.* make numbers that "
        "are not comparable",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
