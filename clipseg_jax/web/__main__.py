"""Serves a web page on which photos are segmented by words.

    python -m clipseg_jax.web --model ViT-B/16

Only this machine sees the page unless --host says otherwise. Without --model it has the built-in
demo, a tiny CLIP that knows painted toys. Whoever reaches the page may use it: put a reverse proxy
with a password in front of it where that is too many. Ctrl-C ends it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from input_pipeline import commands

    commands.begin()  # before the imports below

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

# What needs JAX is imported where it is used: --help and mistakes are answered without it.
from clipseg_jax.core import compile_cache
from clipseg_jax.core.checks import check_number, check_whole
from clipseg_jax.web.photos import Limits
from input_pipeline import commands
from input_pipeline.datasets.images import MAX_PIXELS

_MOST_MEGAPIXELS = MAX_PIXELS // 10**6


def offered(names: Sequence[str], folder: Path | None) -> dict[str, str | Path]:
    """What the page offers: name -> what `load` takes; the demo comes last unless it is named.

    Weights that are known by name are downloaded here, so that no visitor waits for them.

    Raises:
      ValueError, OSError: a model that isn't there; see `find_weights` and `find_models`.
    """
    from clipseg_jax.web.models import DEMO, find_models
    from weights_convert import find_weights

    found: dict[str, str | Path] = {}
    for name in names:
        path = find_weights(name)
        if not path.exists():
            raise FileNotFoundError(f"--model {name} does not exist; give a name, file or folder")
        own = Path(name).resolve()
        shown = own.name if own.exists() and own.name not in found else name
        found[shown] = name if shown == name else own
    if folder is not None:
        found |= {name: path for name, path in find_models(folder).items() if name not in found}
    return {**found, **({} if DEMO in found else {DEMO: DEMO})}


def run(args: argparse.Namespace) -> None:
    """Serves the page until it is interrupted.

    Raises:
      ValueError, OSError: a wrong command, or an address that is taken.
      Interrupted: Ctrl-C or SIGTERM.
    """
    limits = Limits(
        check_whole("--max-megabytes", args.max_megabytes),
        check_number("--max-megapixels", args.max_megapixels, 0.01, _MOST_MEGAPIXELS),
    )
    check_whole("--port", args.port, 0, 65535)
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs gradio; pip install 'clipseg_jax[web]'")
    compile_cache.enable()
    from clipseg_jax.web import server

    server.serve(offered(args.model, args.models), args.host, args.port, limits)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    description, _, details = (__doc__ or "").partition("\n\n")
    details = f"{details}\n{compile_cache.help_lines()}\n"
    result = commands.parser("clipseg_jax.web", description, details)
    result.add_argument(
        "--model",
        action="append",
        default=[],
        type=commands.given,
        metavar="X",
        help="a CLIP by name (ViT-B/16), a file, or a work directory; may be repeated",
    )
    result.add_argument(
        "--models",
        type=commands.local_path,
        metavar="FOLDER",
        help="offer all weights and work directories of a folder",
    )
    result.add_argument("--host", default="127.0.0.1", help="0.0.0.0: other machines may use it")
    result.add_argument("--port", type=int, default=7860, help="0: any free one (default: 7860)")
    result.add_argument(
        "--max-megabytes",
        type=int,
        default=Limits.megabytes,
        help="of a photo's file (default: 64)",
    )
    result.add_argument(
        "--max-megapixels",
        type=float,
        default=Limits.megapixels,
        help=f"of a photo (default: {Limits.megapixels:g}; at most {_MOST_MEGAPIXELS})",
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, after one line of an error if that is not 0."""
    args = parser().parse_args(argv)
    from clipseg_jax.core.command import exit_code
    from clipseg_jax.core.interrupt import signals

    with signals():
        return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
