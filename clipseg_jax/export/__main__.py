"""Writes a model as a file that runs without this library: StableHLO, or ONNX.

    python -m clipseg_jax.export ViT-B/16 --size 512 --words "cat, sofa" --out cats.stablehlo

MODEL is a CLIP, which needs --words; or a work directory or a trained file, which has its own
classes. The function takes uint8 RGB images of one size and returns labels and probabilities at
that size: resize, windows, softmax and refinement are inside. It is compared with the model before
it is written; beside it comes a record, FILE.json, with the names of the labels. A few lines of
Python run it: docs/export.md.
"""

from __future__ import annotations

if __name__ == "__main__":
    from input_pipeline import commands

    commands.begin()  # before the imports below

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipseg_jax.core import compile_cache
from clipseg_jax.core.checks import check_whole
from clipseg_jax.core.command import exit_code
from clipseg_jax.core.interrupt import signals
from clipseg_jax.export.files import check_path, record_path
from clipseg_jax.export.function import OUTPUTS
from clipseg_jax.export.model import FORMATS, export_model
from clipseg_jax.inference_config import REFINEMENTS
from clipseg_jax.predict_model import check_of_trained
from clipseg_jax.predict_options import background_of, refinement_of, split_names
from clipseg_jax.segment_options import DEFAULT_METHOD, METHODS, PROXY
from clipseg_jax.segmenters.load import DTYPES, is_trained, load, load_trained
from input_pipeline import commands


def run(args: argparse.Namespace) -> None:
    """Exports a model.

    Raises:
      ValueError, OSError: see `export_model`; or a file that exists already.
    """
    compile_cache.enable()
    check_path(args.out, overwrite=args.overwrite)  # before the model is read
    size = image_size(args.size)
    if args.batch is not None:
        check_whole("--batch", args.batch)
    background = background_of(args)
    words = split_names("--words", args.words) or None
    if is_trained(args.model):
        of_clips = ("words", "background_words", "method", "short_side")
        check_of_trained(args, args.model, of_clips)
        model: Any = load_trained(args.model, clip=args.clip, devices=1)
    else:
        if words is None:
            raise ValueError(f"{args.model} is a CLIP, for any words; name some: --words")
        model = load(args.model, clip=args.clip, dtype=args.dtype, devices=1)
    record = export_model(
        model,
        args.out,
        size=size,
        words=words,
        background=background,
        method=args.method,
        refine=refinement_of(args),
        short_side_px=args.short_side,
        outputs=args.outputs,
        batch=args.batch,
        fmt=args.format,
        overwrite=args.overwrite,
    )
    path = Path(args.out)
    commands.say(
        f"wrote {path} ({record['format']}, {path.stat().st_size / 1e6:.0f} MB) and "
        f"{record_path(path)}; checked: its probabilities differ by at most "
        f"{record['largest_difference']:.1g} from the model's"
    )


def image_size(text: str) -> tuple[int, int]:
    """(height, width) of "512" or "480x640".

    Raises:
      ValueError: it is neither.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(f"--size is {text!r}; give pixels, 512, or HEIGHTxWIDTH, 480x640")
    return int(sides[0]), int(sides[-1])


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    description, _, details = (__doc__ or "").partition("\n\n")
    example = details.partition("\n\n")[0]
    short, long = compile_cache.help_line(), compile_cache.help_lines()
    result = commands.parser(
        "clipseg_jax.export", description, f"{example}\n\n{short}", f"{details}\n{long}"
    )
    result.add_argument(
        "model", type=commands.given, metavar="MODEL", help="as --model of clipseg_jax.predict"
    )
    result.add_argument("--out", type=commands.given, required=True, metavar="FILE", help="written")
    result.add_argument(
        "--size", required=True, metavar="PX", help="of the images: 512, or HEIGHTxWIDTH"
    )
    result.add_argument(
        "--words", default="", metavar="NAMES", help='class names of a CLIP: "cat, sofa"'
    )
    result.add_argument(
        "--background-words", default="", metavar="NAMES", help='what else there is: "sky, wall"'
    )
    result.add_argument(
        "--background",
        type=float,
        default=0.0,
        metavar="P",
        help="pixels whose best probability, 0 to 1, is lower are background (0: off)",
    )
    methods = [name for name in METHODS if name != PROXY]
    result.add_argument(
        "--method",
        choices=methods,
        metavar="NAME",
        help=f"how CLIP is read: {', '.join(methods)} (default: {DEFAULT_METHOD})",
    )
    result.add_argument(
        "--refine",
        choices=("auto", *REFINEMENTS, "none"),
        default="auto",
        metavar="NAME",
        help=f"auto, {', '.join(REFINEMENTS)}, none (default: auto, the method's); no crf in ONNX",
    )
    result.add_argument(
        "--short-side",
        type=int,
        metavar="PX",
        help="at which images reach the network (default: the method's)",
    )
    result.add_argument(
        "--outputs",
        choices=OUTPUTS,
        default=OUTPUTS[0],
        help="labels and their scores, or all probabilities (default: labels)",
    )
    result.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="images at once (default: any number, one after the other; in ONNX 1)",
    )
    result.add_argument(
        "--format", choices=FORMATS, help="(default: onnx if FILE ends so, else stablehlo)"
    )
    result.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of a CLIP")
    result.add_argument(
        "--clip", type=commands.given, metavar="X", help="of a trained model, if it has moved"
    )
    result.add_argument("--overwrite", action="store_true", help="replace FILE")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, after one line of an error if that is not 0."""
    args = parser().parse_args(argv)
    with signals():
        status = exit_code(lambda: run(args))
    if status > 128:  # interrupted: compilers go on in threads that the interpreter would wait for
        sys.stdout.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
