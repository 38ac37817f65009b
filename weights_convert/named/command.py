"""`python -m weights_convert download NAME ...` and `list`: weights by name, on a login node."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from clipseg_jax.core.cache_folder import VARIABLE, cache_folder
from input_pipeline import commands
from input_pipeline.text_lists import escaped
from weights_convert.errors import CheckpointError
from weights_convert.named.cache import location
from weights_convert.named.find import content_files, find_weights, is_name
from weights_convert.named.names import KNOWN, Weights

WORDS = ("download", "list")
_EXAMPLES = """\
examples:
  python -m weights_convert list
  python -m weights_convert download ViT-B/16 dino_vitb8
  python -m weights_convert download hf:openai/clip-vit-base-patch16
"""


def cache_line() -> str:
    """Where names are downloaded to, for `--help`."""
    return f"Names are downloaded once, into {cache_folder() or 'no folder'} (set {VARIABLE})."


def main(argv: Sequence[str]) -> int:
    """Runs `download` or `list`; returns its exit status.

    0, 2 if a name or what arrived is at fault, 74 if the network or the disk is, 130 after Ctrl-C.
    """
    word, *rest = argv
    parser = commands.parser(
        f"weights_convert {word}",
        {"download": "Download weights by name.", "list": "List the known names."}[word]
        + f" {cache_line()}",
        _EXAMPLES,
    )
    if word == "download":
        parser.add_argument(
            "names",
            metavar="NAME",
            nargs="+",
            type=commands.given,
            help="a known name, hf:owner/name[@revision], or https://HOST/FILE#sha256=HEX",
        )
    args = parser.parse_args(rest)
    return commands.exit_code(lambda: _list() if word == "list" else _download(args))


def _download(args: argparse.Namespace) -> int:
    for name in args.names:
        if not is_name(name):
            find_weights(name)  # says what was meant
            raise CheckpointError(
                f"{name} is no known name; `python -m weights_convert list` has them"
            )
    for name in args.names:
        path = find_weights(name)
        size = sum(each.stat().st_size for each in content_files(path))
        commands.say(escaped(f"{name}: {path} ({size:,} bytes)"))
    return 0


def _list() -> int:
    width = max(map(len, KNOWN))
    for weights in KNOWN.values():
        size = "size not known" if weights.size is None else f"{weights.size:,} bytes"
        here = "here" if _is_here(weights) else ""
        source = f"{weights.publisher:11}  {weights.licence:12}"
        line = f"{weights.name:{width}}  {size:>19}  {checked_by(weights):20}  {source}  {here}"
        commands.say(line.rstrip())
    commands.say(cache_line())
    return 0


def checked_by(weights: Weights) -> str:
    """What a download is compared with, in a few words."""
    if len(weights.sha256) == 64:
        return "sha256"
    return "8 digits of sha256" if weights.sha256 else "first download's sum"


def _is_here(weights: Weights) -> bool:
    return cache_folder() is not None and location(weights).is_file()
