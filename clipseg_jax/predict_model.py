"""The model of `predict`: a CLIP with the names of the command line, or a trained network."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import Any

from clipseg_jax.predict_options import (
    background_of,
    check_common,
    class_names,
    refinement_of,
    segmenter_options,
    settings_of,
)
from clipseg_jax.segmenter import Segmenter
from clipseg_jax.segmenters.load import DTYPES, is_trained, load_trained
from clipseg_jax.segmenters.runner import Runner


def find_model(args: argparse.Namespace) -> tuple[dict[str, Any], Callable[[], Segmenter | Runner]]:
    """What masks depend on, and what makes the network when it is needed for the first time.

    A trained model is read at once: it says what its classes are.

    Raises:
      ValueError, OSError: wrong options, or no model.
    """
    if is_trained(args.weights):
        of_trained = _trained_options(args)
        names = class_names(args) or None
        model = load_trained(
            args.weights, clip=args.clip, classes=names, batch_size=args.batch_size
        )
        settings = _trained_settings(args, of_trained, model.classes)
        return settings, functools.partial(model.runner, **of_trained)
    options = segmenter_options(args)

    @functools.cache
    def segmenter() -> Segmenter:
        return Segmenter(weights=args.weights, batch_size=args.batch_size, **options)

    return settings_of(args, options), segmenter


def check_of_trained(args: argparse.Namespace, model: str, of_clips: Sequence[str]) -> None:
    """Checks that no option that only a CLIP has is given with a trained model.

    `of_clips`: names of those options, beside --dtype.

    Raises:
      ValueError: one is.
    """
    given = [name for name in of_clips if getattr(args, name)]
    if args.dtype != DTYPES[0]:
        given.append("dtype")
    if given:
        raise ValueError(
            f"--{given[0].replace('_', '-')} is of CLIPs, and {model} is a trained model, "
            "which has its classes and its own protocol; leave it out"
        )


def _trained_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `Trained.runner`, checked.

    Raises:
      ValueError: a value without meaning, or an option that only a CLIP has.
    """
    of_clips = (
        *("background_words", "method", "dino", "templates", "short_side", "pd", "ks", "slide"),
        *("flip", "activation", "heads"),
    )
    check_of_trained(args, args.weights, of_clips)
    check_common(args)
    return {"words": None, "background": background_of(args), "refine": refinement_of(args)}


def _trained_settings(
    args: argparse.Namespace, options: dict[str, Any], classes: Sequence[str]
) -> dict[str, Any]:
    """What masks of a trained model depend on, as settings.json has it."""
    named = {"classes": [*classes], "background": options["background"], "method": "trained"}
    clip = {"clip": args.clip} if args.clip else {}
    return named | clip | {"weights": str(args.weights), "refine": str(args.refine)}
