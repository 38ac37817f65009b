"""The command line of `predict`: its options, checked before any work."""

from __future__ import annotations

import argparse
from typing import Any

from clipseg_jax.core import compile_cache
from clipseg_jax.core.cache_folder import cache_folder
from clipseg_jax.core.checks import check_number, check_whole
from clipseg_jax.inference_config import REFINEMENTS
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.prompts import read_words, templates
from clipseg_jax.segment_options import (
    DEFAULT_METHOD,
    FEEDBACK,
    MASKCLIP,
    METHODS,
    PROXY,
)
from clipseg_jax.segmenters.load import DTYPES
from input_pipeline import commands
from input_pipeline.text_lists import numbered_lines, printable
from weights_convert.clip.choices import ACTIVATIONS, parse_heads

# An apostrophe may end a name, and so may a bracket: "mens'", "crane (bird)".
_OPENING, _CLOSING = "'\"`([{\u2018\u201c", '"`\u201d'


def parser(text: str) -> argparse.ArgumentParser:
    """The parser of the command line.

    `text` describes the command: a line, an example, and what only long help tells.
    """
    description, details = text.split("\n\n", 1)
    example = details.partition("\n\n")[0]
    short, long = compile_cache.help_line(), compile_cache.help_lines()
    result = commands.parser(
        "clipseg_jax.predict", description, f"{example}\n\n{short}", f"{details}\n{long}"
    )
    more = result.more
    cache = str(cache_folder()).replace("%", "%%")  # argparse formats help
    result.add_argument(
        "images",
        nargs="+",
        type=commands.given,
        help="image files, or folders searched for images",
    )
    result.add_argument(
        "--classes", default="", metavar="NAMES", help='class names: "cat, sofa, tv monitor"'
    )
    result.add_argument(
        "--class",
        dest="class_",
        action="append",
        default=[],
        metavar="NAME",
        help="one more class, whose name may have commas; may be repeated",
    )
    result.add_argument(
        "--classes-file", type=commands.given, metavar="FILE", help="more classes, one a line"
    )
    result.add_argument(
        *("--model", "--weights"),
        dest="weights",
        metavar="MODEL",
        type=commands.given,
        required=True,
        help="a CLIP: a name such as ViT-B/16 or hf:owner/name, downloaded once into "
        f"{cache} ($CLIPSEG_JAX_CACHE); a file or folder of OpenAI, Hugging Face or "
        "OpenCLIP; or `demo`. Or a work directory or a trained file, which has its own classes",
    )
    more.add_argument(
        "--clip",
        type=commands.given,
        metavar="WEIGHTS",
        help="the CLIP that a trained model was trained with, if it is not where it was",
    )
    result.add_argument(
        "--out", type=commands.given, default="masks", help="output folder (default: masks)"
    )
    result.add_argument(
        "--format",
        action="append",
        default=[],
        metavar="LIST",
        help="written besides masks (png): overlay, html (a contact sheet), coco, "
        "coco-objects, coco-polygons, npz (default: png,overlay,html); may be repeated",
    )
    more.add_argument(
        "--scores-px",
        type=int,
        default=512,
        metavar="N",
        help="longer side at most of the scores that npz stores (default: %(default)s)",
    )
    result.add_argument(
        "--background",
        type=float,
        metavar="P",
        default=0.0,
        help="pixels whose best probability, 0 to 1, is lower are background (0: off)",
    )
    result.add_argument(
        "--background-words",
        default="",
        metavar="NAMES",
        help='class names that count as background: "sky, wall, grass"',
    )
    result.add_argument(
        "--method",
        choices=METHODS,
        metavar="NAME",
        help=f"how CLIP is read: {', '.join(METHODS)} (default: {DEFAULT_METHOD}; {MASKCLIP} of a "
        f"ResNet or SigLIP); {FEEDBACK} takes twice as long with many classes",
    )
    more.add_argument(
        "--dino",
        type=commands.given,
        metavar="FILE",
        help=f"the DINO of {PROXY}: a name such as dino_vitb8, or a file or folder of weights",
    )
    result.add_argument(
        "--refine",
        choices=("auto", *REFINEMENTS, "none"),
        metavar="NAME",
        default="auto",
        help=f"what makes masks follow the image's edges: auto, {', '.join(REFINEMENTS)}, none "
        "(auto: pamr; with maskclip none)",
    )
    more.add_argument(
        "--templates", help="name of a set of prompt templates (default: the method's)"
    )
    more.add_argument(
        "--short-side",
        type=int,
        help="short side in pixels at which images reach the network (default: the method's)",
    )
    more.add_argument(
        "--pd", type=float, default=0.0, help=f"prompt denoising threshold of {MASKCLIP} (0: off)"
    )
    more.add_argument(
        "--ks", type=float, default=0.0, help=f"key smoothing threshold of {MASKCLIP} (0: off)"
    )
    more.add_argument(
        "--slide",
        action="store_true",
        help=f"sliding windows of 512 pixels with {MASKCLIP}; the others always have windows",
    )
    more.add_argument("--flip", action="store_true", help="average with the mirror image")
    more.add_argument(
        "--activation", choices=ACTIVATIONS, help="of the weights, where their file does not say it"
    )
    more.add_argument(
        "--heads",
        help="of the weights' image and text towers, where their file does not say them: 12,8",
    )
    more.add_argument("--dtype", choices=DTYPES, default="float32")
    more.add_argument(
        "--batch-size", type=int, help="images per batch (default: 4; on CPUs one per device)"
    )
    more.add_argument(
        "--opacity", type=float, default=0.5, help="opacity of the overlay's colours, 0 to 1"
    )
    result.add_argument("--overwrite", action="store_true", help="replace existing masks")
    return result


def class_names(args: argparse.Namespace) -> list[str]:
    """The names of the three options, in their order."""
    named = split_names("--classes", args.classes)
    return [*named, *args.class_, *_names_in(args.classes_file)]


def check_common(args: argparse.Namespace) -> None:
    """Checks the options that every model has.

    Raises:
      ValueError: a value without meaning.
    """
    if args.batch_size is not None:
        check_whole("--batch-size", args.batch_size)
    check_number("--opacity", args.opacity, 0, 1)
    check_whole("--scores-px", args.scores_px)


def background_of(args: argparse.Namespace) -> float | list[str] | None:
    """The words or the threshold of --background-words and --background.

    Raises:
      ValueError: a value without meaning, or both.
    """
    words = split_names("--background-words", args.background_words)
    threshold = check_number("--background", args.background, 0, 1)
    if words and threshold:
        raise ValueError(
            f"--background {threshold:g} and --background-words are given; give one of them"
        )
    return words or threshold or None


def refinement_of(args: argparse.Namespace) -> str | None:
    """What --refine names."""
    return None if args.refine == "none" else args.refine


def segmenter_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `Segmenter` but for weights and batch size, checked."""
    names = class_names(args)
    if args.clip:
        raise ValueError(f"--clip is of trained models, and {args.weights} is a CLIP; leave it out")
    if not names:
        raise ValueError(
            "the class list is empty; name at least one class: --classes, --class or --classes-file"
        )
    background = background_of(args)
    read_words(names, background)
    if args.templates is not None:
        templates(args.templates)
    if args.short_side is not None:
        check_whole("--short-side", args.short_side)
    check_common(args)
    check_number("--pd", args.pd, 0)
    check_number("--ks", args.ks, 0)
    maskclip = None
    if args.pd or args.ks:
        if args.method != MASKCLIP:
            option = "--pd" if args.pd else "--ks"
            raise ValueError(f"{option} is of {MASKCLIP} alone; add --method {MASKCLIP}")
        maskclip = MaskCLIPConfig(pd_threshold=args.pd, ks_threshold=args.ks)
    return {
        "class_names": names,
        "background": background,
        "method": args.method,
        "refine": refinement_of(args),
        "maskclip": maskclip,
        "dino": args.dino,
        "prompt_templates": args.templates,
        "short_side_px": args.short_side,
        "dtype": args.dtype,
        "activation": args.activation,
        "heads": None if args.heads is None else parse_heads(args.heads),
        "mode": "slide" if args.slide else None,
        "flip": args.flip,
    }


def split_names(option: str, text: str) -> list[str]:
    """The names of an option, separated by commas.

    Raises:
      ValueError: one has quotes or brackets around it.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    return _plain(option, names, "cat, sofa")


def _names_in(path: str | None) -> list[str]:
    """The names of a file, one a line; empty lines and those that start with # are none."""
    if path is None:
        return []
    option = f"--classes-file {path}"
    try:
        names = [line for _, line in numbered_lines(path) if not line.startswith("#")]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{option} does not exist") from error
    if not names:
        raise ValueError(f"{path} names no class; write one name a line")
    return _plain(option, names, "one a line")


def _plain(option: str, names: list[str], form: str) -> list[str]:
    """The names, if none has the quotes and brackets that Python, JSON or a shell put around it.

    Raises:
      ValueError: one has.
    """
    for name in names:
        if name[0] in _OPENING or name[-1] in _CLOSING:
            raise ValueError(
                f"{option} has {printable(name)} with a quote or bracket around it, which would be "
                f"part of the name; write plain names, {form}, and a name that has them with "
                "--class"
            )
    return names


def settings_of(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """What masks depend on, as settings.json has it."""
    keys = ("weights", "refine", "templates", "short_side", "pd", "ks", "slide", "flip", "dtype")
    chosen = ("activation", "heads", "dino")
    return (
        {"classes": options["class_names"], "background": options["background"]}
        | {"method": args.method or DEFAULT_METHOD}
        | {key: str(getattr(args, key)) for key in keys}
        | {key: options[key] for key in chosen if options[key] is not None}
    )
