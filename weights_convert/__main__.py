"""The command `python -m weights_convert`: convert a checkpoint, look into it, export it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from clipseg_jax.models.clip import CLIPConfig, ViTConfig
from weights_convert.clip import layouts as names
from weights_convert.clip.cache import config_from_dict
from weights_convert.clip.convert import convert, fit, released, sha256
from weights_convert.clip.export import LAYOUTS, export
from weights_convert.clip.huggingface import weights_file
from weights_convert.errors import CheckpointError
from weights_convert.formats.converted import (
    Converted,
    is_converted,
    load_converted,
    save_converted,
)
from weights_convert.formats.reader import read
from weights_convert.trained.deeplab import stored_arrays
from weights_convert.trained.kinds import TRAINED, kind_of
from weights_convert.trained.reclip.files import REVISIONS

_EXAMPLES = """\
SRC is any of: OpenAI's .pt, a PyTorch .pth or .bin (zip or legacy), .safetensors, a Hugging Face or
open_clip directory, MaskCLIP's *_clip_weights.pth, a trained MaskCLIP+, ReCLIP's best_weight.pth,
WeCLIP's or WTCLIP's *_model_iter_*.pth, CLIP-RC's iter_*.pth, deeplab-pytorch's deeplabv2_*.pth,
DeepLab's .caffemodel, or a file that this command wrote. Neither PyTorch nor Caffe is needed, and
nothing that a file contains is run.

examples:
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
"""

_LAYOUTS = (*LAYOUTS, *TRAINED)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see python -m weights_convert --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m weights_convert",
        description="Convert checkpoints of CLIP and of what is trained on it, look "
        "into them, export them for PyTorch.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SRC", type=Path, help="a checkpoint or a directory")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-o", "--output", metavar="DST", type=Path, help="convert to this file")
    what.add_argument(
        "--inspect", action="store_true", help="print what SRC is and every key; any checkpoint"
    )
    what.add_argument("--export", metavar="DST", type=Path, help="write for PyTorch, with --to")
    parser.add_argument(
        "--to",
        choices=_LAYOUTS,
        help="layout of --export: a state dict (openai), a directory (huggingface), the "
        "*_clip_weights.pth of MaskCLIP, the best_weight.pth of ReCLIP, the checkpoint of "
        "deeplab-pytorch, MaskCLIP+ (mmseg), CLIP-RC, or of WeCLIP and WTCLIP",
    )
    parser.add_argument(
        "--vision-only", action="store_true", help="convert or export the image tower alone"
    )
    parser.add_argument(
        "--revision",
        choices=REVISIONS,
        help="of the code that trained ReCLIP's SRC, which the file doesn't tell; goes on record",
    )
    parser.add_argument(
        "--clip",
        metavar="CLIP",
        type=Path,
        help="with --to reclip: the CLIP that SRC belongs to, which it needs; with weclip, clip_rc "
        "or maskclip_plus (for further training) one that is written with it",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 after one line `error: ...` for what a user can mend."""
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.export is None) != (args.to is None):
        parser.error(f"--export DST and --to {{{','.join(_LAYOUTS)}}} go together")
    takes_clip = args.to in TRAINED and TRAINED[args.to].with_clip
    if (args.to == "reclip" and args.clip is None) or (args.clip is not None and not takes_clip):
        parser.error("--to reclip and --clip CLIP go together; other layouts may or can't have it")
    try:
        if args.inspect:
            print("\n".join(inspect(args.source)))
            sys.stdout.flush()
            return 0
        target = args.output or args.export
        if target.resolve() in (args.source.resolve(), weights_file(args.source).resolve()):
            raise CheckpointError(f"{target} is the source itself; choose another name")
        if target.is_dir() and args.to != "huggingface":
            raise CheckpointError(f"{target} is a directory; name a file to write")
        print(f"{target}: {_run(args, target)}")
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except CheckpointError as error:
        return _failed(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}")
    return 0


def _run(args: argparse.Namespace, target: Path) -> str:
    """Converts or exports; returns what was done."""
    name = args.to or kind_of(args.source)
    if args.revision and name != "reclip":
        raise CheckpointError(f"--revision is for ReCLIP's weights; {args.source} holds others")
    if name in TRAINED:
        kind, more = TRAINED[name], {"revision": args.revision} if args.revision else {}
        trained = kind.load(args.source, **more)
        if args.output:
            save_converted(target, trained)
        else:
            kind.export(trained, target, args.clip)
        return kind.summary(trained.record)
    converted = convert(args.source, vision_only=args.vision_only)
    if args.output:
        save_converted(target, converted)
    else:
        export(converted, target, args.to)
    return _summary(converted)


def _failed(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
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
    if isinstance(vision, ViTConfig):
        towers = (
            f"ViT, patch {vision.patch_px}, width {vision.width}, {vision.layers} layers, "
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
    """Lines that tell what a checkpoint is, whether a CLIP or not, with a table of its keys.

    Raises:
      CheckpointError, FileNotFoundError: it cannot be read.
    """
    path = weights_file(source)
    if (name := kind_of(path)) is not None:
        known = TRAINED[name]
        arrays, record = known.load(path)
        kind, layout = record.get("kind", "converted"), known.layout.format_map(record)
        model, sizes = "no released model", known.summary(record)
        if name == "reclip":
            model = f"revision {record['revision'] or 'not recorded'}"
        stored = arrays if is_converted(path) else stored_arrays(path)[0]
        digest = sha256(path)
    elif is_converted(path):
        stored, record = load_converted(path)
        kind, layout = "converted", f"clipseg_jax, from {record['source']} ({record['layout']})"
        model = record["model"] or "no released model"
        sizes = describe(config_from_dict(record["config"]))
        digest = sha256(path)
    else:
        checkpoint = read(path)
        kind, content = checkpoint.kind, checkpoint.content
        whole = {"(the file itself)": content} if isinstance(content, np.ndarray) else None
        stored = whole or names.unwrap(content)
        digest = sha256(path)
        model = released(digest, path) or "no released model (sha256 unknown)"
        try:
            named, config, _ = fit(checkpoint, source, path)
            layout, sizes = named.layout, describe(config)
        except CheckpointError as error:
            layout, sizes = "not a whole CLIP", " ".join(str(error).split())
    rows: list[tuple[str, Any]] = [
        ("file", path),
        ("bytes", f"{path.stat().st_size:,}"),
        ("sha256", digest),
        ("kind", kind),
        ("layout", layout),
        ("model", model),
        ("sizes", sizes),
        ("tensors", _counted(stored)),
    ]
    width = max([len(key) for key in stored], default=0)
    table = [f"  {key:{width}}  {v.dtype!s:8}  {list(v.shape)}" for key, v in stored.items()]
    return [f"{name:8} {value}" for name, value in rows] + table


def _counted(stored: dict[str, np.ndarray]) -> str:
    numbers = sum(array.size for array in stored.values())
    size = sum(array.nbytes for array in stored.values())
    kinds = Counter(str(array.dtype) for array in stored.values())
    listed = ", ".join(f"{count} {dtype}" for dtype, count in kinds.most_common())
    return f"{len(stored)} ({listed or 'none'}), {numbers:,} numbers, {size:,} bytes"


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    sys.exit(main())
