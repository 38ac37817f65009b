"""The command `python -m clipseg_jax.compile`: what a recipe needs of hardware that is not there.

Exit codes: 0 all programs fit; 1 one does not fit; 2 wrong input; 74 a disk or memory failed; 130
and 143 stopped by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

if __name__ == "__main__":
    from input_pipeline import commands

    commands.begin()  # before the imports below

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from input_pipeline import commands

_DESCRIPTION = """\
Compile each training, evaluation and annotation program of a recipe ahead of time for TPUs or GPUs
that are not there, and print what each needs: memory, FLOPs, collectives, time by the compiler's
estimate, and the costliest operations. Neither weights nor datasets are needed. A program takes a
minute or more, on this machine's CPU.
"""
_EXAMPLES = """\
examples:
  python -m clipseg_jax.compile --config=configs/voc_reclippp.py --topology v5e:4x4 \\
      --images-per-device 8 --dtype bfloat16
  python -m clipseg_jax.compile --config=configs/voc_clip_rc.py:inductive --topology h100:8
  python -m clipseg_jax.compile --config=configs/voc_weclip.py --topology v5e:1x1 \\
      --programs train --config.head.batch_size=16 --json -

TPUs need the extra aot-tpu, GPUs aot-gpu: pip install 'clipseg_jax[aot-tpu]'
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; see above."""
    parser, given = _parser(), [*(sys.argv[1:] if argv is None else argv)]
    of_config = [each for each in given if re.match(r"--?config[.=]", each)]
    options = parser.parse_args([each for each in given if each not in of_config])
    os.environ["JAX_PLATFORMS"] = "cpu"  # this machine's own accelerators stay free
    from clipseg_jax.core.command import exit_code

    fits = []
    code = exit_code(lambda: fits.append(_run(options, of_config)))
    return code or int(not all(fits))


def _run(options: argparse.Namespace, of_config: Sequence[str]) -> bool:
    import jax

    from clipseg_jax.compile import report
    from clipseg_jax.compile.programs import (
        TooLarge,
        compile_program,
        prepared,
        programs_of,
        what_fits,
    )
    from clipseg_jax.compile.topologies import find_topology
    from clipseg_jax.core.config_arguments import resolve
    from clipseg_jax.core.files import json_text, write_json
    from clipseg_jax.main import RECIPES

    jax.config.update("jax_enable_compilation_cache", False)  # what runs here is not this
    config = resolve(of_config, RECIPES)
    topology = find_topology(options.topology, hosts=options.hosts, slices=options.slices)
    config = prepared(
        config,
        images_per_device=options.images_per_device,
        devices=len(topology.devices),
        dtype=options.dtype,
    )
    say = (lambda line: None) if options.json == "-" else commands.say
    say(f"{topology.name}: {len(topology.devices)} devices")
    records: list[dict[str, Any]] = []
    for program in programs_of(config, options.image_px, options.programs):
        result = compile_program(program, config, topology)
        say("\n".join(report.lines(program.name, result)))
        tried = []
        if isinstance(result, TooLarge) and options.advice:
            for variant in what_fits(program, config, topology, options.image_px):
                tried.append(variant)
                say("\n".join(report.advice([variant])))
        records.append(report.record(program.name, result, tried))
    if options.json:
        costs = {"topology": topology.name, "programs": records}
        if options.json == "-":
            commands.say(json_text(costs, indent=2))
        else:
            write_json(options.json, costs)
    return all(each["fits"] for each in records)


def _parser() -> argparse.ArgumentParser:
    parser = commands.parser("clipseg_jax.compile", _DESCRIPTION, _EXAMPLES)
    parser.add_argument(
        "--config", metavar="FILE", help="a recipe; --config.KEY=VALUE sets a value of it"
    )
    parser.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="v5e:4x4, v5p:2x2x2, v6e:8x8 (chips of a slice); a100, h100, h200:8 (of a host)",
    )
    parser.add_argument("--hosts", type=_count, default=1, help="of GPUs (default: 1)")
    parser.add_argument("--slices", type=_count, default=1, help="of TPUs (default: 1)")
    parser.add_argument(
        "--images-per-device",
        type=_count,
        metavar="N",
        help="sets all batch sizes; default: the recipe's, on as many devices as divide them",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of all networks; default: the recipe's"
    )
    parser.add_argument(
        "--programs", type=lambda text: text.split(","), default=[], metavar="NAME,...",
        help="some of the programs, by their stages; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--image-px", type=_size, default=(375, 500), metavar="HxW",
        help="of evaluated images (default: 375x500)",
    )  # fmt: skip
    parser.add_argument(
        "--no-advice", dest="advice", action="store_false",
        help="try nothing to make a program fit that does not",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="all numbers; - for standard output")
    return parser


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give 1 or more")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{1,4})x([1-9]\d{1,4})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give HEIGHTxWIDTH, such as 375x500")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    sys.exit(main())
