"""The command `python -m weights_convert`: convert, inspect or export a checkpoint."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipseg_jax.models.clip import CLIPConfig, SigLIPVisionConfig, ViTConfig
from input_pipeline import commands
from input_pipeline.text_lists import escaped
from weights_convert.clip import layouts
from weights_convert.clip.cache import config_from_dict
from weights_convert.clip.choices import ACTIVATIONS, parse_heads
from weights_convert.clip.convert import convert, fit, released, sha256
from weights_convert.clip.export import LAYOUTS, export, to_state_dict
from weights_convert.clip.huggingface import weights_file
from weights_convert.clip.record import load_converted_clip
from weights_convert.clip.shards import read_weights
from weights_convert.dino import command as dino
from weights_convert.errors import CheckpointError
from weights_convert.formats.converted import (
    Converted,
    is_converted,
    save_converted,
)
from weights_convert.named import command as named
from weights_convert.named.find import find_weights
from weights_convert.trained.files import export_trained, load_trained, read_published
from weights_convert.trained.format import Format
from weights_convert.trained.kinds import FORMATS, format_of
from weights_convert.trained.reclip.format import RECLIP, REVISIONS

_EXAMPLES = """\
SRC is a name as below, or one of: OpenAI's .pt, a PyTorch .pth or .bin (zip or legacy),
.safetensors, a Hugging Face or open_clip directory, MaskCLIP's *_clip_weights.pth, a trained
MaskCLIP+, ReCLIP's best_weight.pth, WeCLIP's or WTCLIP's *_model_iter_*.pth, CLIP-RC's iter_*.pth,
deeplab-pytorch's deeplabv2_*.pth, DeepLab's .caffemodel, DINO's or DINOv2's .pth or Hugging Face
directory, or a file written by this command. Neither PyTorch nor Caffe is needed, and no code
contained in a file is run.

Names: known ones (ViT-B/16, dino_vitb8, ...), hf:owner/name[@revision], https://...#sha256=HEX.
`list` prints those that are known; `download NAME ...` fills the cache where there is a network.

examples:
  python -m weights_convert download ViT-B/16
  python -m weights_convert --inspect ViT-B-16.pt
  python -m weights_convert ViT-B-16.pt -o vit_b16.safetensors
  python -m weights_convert vit_b16.safetensors --export ViT16_clip_weights.pth --to maskclip
  python -m weights_convert ViT-B-16.pt --export clip-vit-base-patch16 --to huggingface
  python -m weights_convert best_weight.pth -o reclip_voc.safetensors --revision 2024
  python -m weights_convert reclip_voc.safetensors --export best_weight.pth --to reclip \\
      --clip ViT-B-16.pt
  python -m weights_convert deeplab.safetensors --export checkpoint_final.pth --to deeplab
  python -m weights_convert WeCLIP_model_iter_30000.pth -o weclip.safetensors
  python -m weights_convert weclip.safetensors --export WeCLIP_model_iter_30000.pth --to weclip \\
      --clip ViT-B-16.pt
  python -m weights_convert clip_rc_last.safetensors --export iter_40000.pth --to clip_rc \\
      --clip ViT-B-16.pt
  python -m weights_convert student.safetensors --export iter_4000.pth --to maskclip_plus \\
      --clip RN50.pt
  python -m weights_convert dino_vitbase8_pretrain.pth -o dino_b8.safetensors
  python -m weights_convert dino_b8.safetensors --export dino-vitb8 --to dino_huggingface
"""

_SHORT = """\
`list` prints the weights that have names, `download NAME ...` fills the cache with them.

examples:
  python -m weights_convert download ViT-B/16
  python -m weights_convert --inspect ViT-B-16.pt
  python -m weights_convert ViT-B-16.pt -o vit_b16.safetensors
  python -m weights_convert ViT-B-16.pt --export clip-vit-base-patch16 --to huggingface
"""

_LAYOUTS = (*LAYOUTS, *FORMATS, *dino.LAYOUTS)


def _parser() -> commands.Parser:
    parser = commands.parser(
        "weights_convert",
        "Convert, inspect or export checkpoints of CLIP, of networks trained on it, and of DINO.",
        f"{_SHORT}\n{named.cache_line()}\n",
        f"{_EXAMPLES}\n{named.cache_line()}\n",
    )
    parser.add_argument(
        "source", metavar="SRC", type=_weights, help="a checkpoint, a directory or a name"
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument(
        "-o", "--output", metavar="DST", type=commands.local_path, help="convert to this file"
    )
    action.add_argument(
        "--inspect", action="store_true", help="print the kind of SRC, and all its keys"
    )
    action.add_argument(
        "--export", metavar="DST", type=commands.local_path, help="write for PyTorch, with --to"
    )
    parser.add_argument(
        "--to",
        choices=_LAYOUTS,
        metavar="LAYOUT",
        help=f"layout of --export: {', '.join(_LAYOUTS)}: "
        "a state dict (openai), a directory (huggingface), MaskCLIP's "
        "*_clip_weights.pth or *_clip_backbone.pth, ReCLIP's best_weight.pth, or a checkpoint of "
        "MaskCLIP+ (mmsegmentation), WeCLIP or WTCLIP, CLIP-RC, deeplab-pytorch; of a DINO its "
        "authors' state dict (dino) or a directory (dino_huggingface)",
    )
    parser.add_argument(
        "--vision-only", action="store_true", help="convert or export only the image tower"
    )
    parser.more.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        help="activation of SRC's CLIP, for files that don't say it, such as OpenCLIP's",
    )
    parser.more.add_argument(
        "--heads",
        metavar="N,N",
        help="heads of SRC's image and text towers, such as 12,8, for files that don't say them; "
        "of a DINO the first number",
    )
    parser.more.add_argument(
        "--revision",
        choices=REVISIONS,
        help="revision of the code that trained ReCLIP's SRC, to be recorded: published files "
        "don't contain it",
    )
    parser.add_argument(
        "--clip",
        metavar="CLIP",
        type=_weights,
        help="the CLIP that SRC was trained with, for exports that repeat it: required for reclip "
        "and for a clip_rc that was trained here, optional for weclip and maskclip_plus",
    )
    return parser


def _weights(text: str) -> str:
    """An argument that is a path on this machine or a name; an address needs its checksum."""
    if "://" in text and not text.startswith(("http://", "https://")):
        commands.local_path(text)
    return commands.given(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    0, 2 after one line `error: ...` if the input is at fault, 74 if the disk is, 130 after Ctrl-C.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s")
    argv = [*(sys.argv[1:] if argv is None else argv)]
    if argv and argv[0] in named.WORDS:
        return named.main(argv)
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.export is None) != (args.to is None):
        parser.error(f"--export DST and --to {{{','.join(_LAYOUTS)}}} go together")
    takes_clip = args.to in FORMATS and FORMATS[args.to].takes_clip
    if args.to == RECLIP.name and args.clip is None:
        parser.error("--to reclip needs --clip CLIP")
    try:
        args.heads = None if args.heads is None else parse_heads(args.heads)
    except ValueError as error:
        parser.error(str(error))
    if args.clip is not None and not takes_clip:
        names = ", ".join(name for name, fmt in FORMATS.items() if fmt.takes_clip)
        parser.error(f"--clip is only for --export with --to {names}")
    return commands.exit_code(lambda: _work(args), interrupted="stopped; nothing was written")


def _work(args: argparse.Namespace) -> int:
    try:
        args.source = find_weights(args.source)
        if args.inspect:
            print("\n".join(map(escaped, inspect(args.source))))
            sys.stdout.flush()
            return 0
        target = args.output or args.export
        sources = {os.path.realpath(path) for path in (args.source, weights_file(args.source))}
        if os.path.realpath(target) in sources:
            raise CheckpointError(f"{target} is the source itself; choose another name")
        if target.is_dir() and args.to not in ("huggingface", "dino_huggingface"):
            raise CheckpointError(f"{target} is a directory; name a file to write")
        print(escaped(f"{target}: {_run(args, target)}"))
    except BrokenPipeError:  # the reader of our output, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except CheckpointError as error:
        return _failed(str(error))
    except (MemoryError, RecursionError) as error:  # a readable file that this machine can't hold
        return _failed(f"{args.source}: {type(error).__name__}; there is not enough memory for it")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        if commands.passing(error):
            raise
        return _failed(f"{where}{error.strerror or error}")
    return 0


def _run(args: argparse.Namespace, target: Path) -> str:
    """Converts or exports; returns a summary of what was written."""
    if args.to in dino.LAYOUTS or (args.output and dino.holds_dino(args.source)):
        return dino.run(args, target)
    fmt = FORMATS.get(args.to) if args.to else format_of(args.source)
    if fmt is not None and (args.activation or args.heads):
        raise CheckpointError(f"--activation and --heads are for CLIPs, not for {fmt.name}")
    if args.revision and fmt is not RECLIP:
        raise CheckpointError(f"--revision is for ReCLIP's weights; {args.source} holds others")
    if fmt is not None:
        expected = {"revision": args.revision} if args.revision else None
        trained = load_trained(args.source, fmt, expected=expected)
        if args.output:
            save_converted(target, trained)
        else:
            clip = None if args.clip is None else to_state_dict(convert(args.clip))
            export_trained(trained, target, fmt, clip=clip)
        return fmt.summary(trained.record)
    converted = convert(
        args.source, vision_only=args.vision_only, activation=args.activation, heads=args.heads
    )
    if args.output:
        save_converted(target, converted)
    else:
        export(converted, target, args.to)
    return _summary(converted)


def _failed(message: str) -> int:
    print(f"error: {escaped(' '.join(message.split()))}", file=sys.stderr)
    return 2


def _summary(converted: Converted) -> str:
    record = converted.record
    model = record["model"] or describe(config_from_dict(record["config"]))
    return (
        f"{model}, from {record['source']} ({record['kind']}, {record['layout']}), "
        f"{record['parameters']:,} parameters, {record['bytes']:,} bytes of tensors"
    )


def describe(config: CLIPConfig) -> str:
    """A model's sizes in one line."""
    vision, text = config.vision, config.text
    if isinstance(vision, (ViTConfig, SigLIPVisionConfig)):
        name = "ViT" if isinstance(vision, ViTConfig) else "SigLIP's ViT"
        towers = (
            f"{name}, patch {vision.patch_px}, width {vision.width}, {vision.layers} layers, "
            f"{vision.heads} heads, {vision.activation}"
        )
    else:
        blocks = "-".join(map(str, vision.blocks))
        towers = f"ResNet, width {vision.width}, blocks {blocks}, {vision.heads} pool heads"
    towers += f", {vision.image_px} px, embedding {vision.embed_dim}"
    if text is None:
        return f"{towers}; no text tower"
    return (
        f"{towers}; text width {text.width}, {text.layers} layers, {text.heads} heads, "
        f"{text.vocabulary} tokens, context {text.context_length}"
    )


def inspect(source: Path) -> list[str]:
    """Lines that describe a checkpoint, of a CLIP or not, with a table of its keys.

    Raises:
      CheckpointError, FileNotFoundError: it cannot be read.
    """
    path = weights_file(source)
    if dino.holds_dino(path):
        arrays, facts = dino.inspect(path)
    elif (fmt := format_of(path)) is not None:
        arrays, facts = _inspect_trained(path, fmt)
    elif is_converted(path):
        arrays, record = load_converted_clip(path)
        facts = {
            "kind": "converted",
            "layout": f"clipseg_jax, from {record['source']} ({record['layout']})",
            "model": record["model"] or "no released model",
            "sizes": describe(config_from_dict(record["config"])),
        }
    else:
        arrays, facts = _inspect_other(path, source)
    rows = {
        "file": path,
        "bytes": f"{path.stat().st_size:,}",
        "sha256": sha256(path),
        **facts,
        "tensors": _counted(arrays),
    }
    width = max([len(key) for key in arrays], default=0)
    table = [f"  {key:{width}}  {v.dtype!s:8}  {list(v.shape)}" for key, v in arrays.items()]
    return [f"{name:8} {value}" for name, value in rows.items()] + table


def _inspect_trained(path: Path, fmt: Format) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays, record = load_trained(path, fmt)
    model = "no released model"
    if fmt is RECLIP:
        model = f"revision {record['revision'] or 'not recorded'}"
    facts = {
        "kind": record.get("kind", "converted"),
        "layout": fmt.title.format_map(record),
        "model": model,
        "sizes": fmt.summary(record),
    }
    return arrays if is_converted(path) else read_published(path).state_dict, facts


def _inspect_other(path: Path, source: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Of a CLIP in any layout, and of files that hold none."""
    checkpoint = read_weights(path)
    content = checkpoint.content
    arrays = layouts.unwrap(content)
    if isinstance(content, np.ndarray):
        arrays = {"(the file itself)": content}
    facts = {
        "kind": checkpoint.kind,
        "layout": "not a complete CLIP",
        "model": released(sha256(path), path) or "no released model (sha256 unknown)",
    }
    try:
        named, config, _, guessed = fit(checkpoint, source, path)
        facts |= {"layout": named.layout, "sizes": describe(config)}
        if guessed:
            facts["guessed"] = f"{' and '.join(guessed)}; no file says them"
    except CheckpointError as error:
        facts["sizes"] = " ".join(str(error).split())
    return arrays, facts


def _counted(arrays: dict[str, np.ndarray]) -> str:
    numbers = sum(array.size for array in arrays.values())
    size = sum(array.nbytes for array in arrays.values())
    dtypes = Counter(str(array.dtype) for array in arrays.values())
    listed = ", ".join(f"{count} {dtype}" for dtype, count in dtypes.most_common())
    return f"{len(arrays)} ({listed or 'none'}), {numbers:,} numbers, {size:,} bytes"


if __name__ == "__main__":
    sys.exit(main())
