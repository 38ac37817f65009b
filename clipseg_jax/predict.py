"""Segments image files with the class names given on the command line.

    python -m clipseg_jax.predict photo.jpg --classes "cat, sofa, tv monitor" --weights ViT-B-16.pt

takes files and folders. For each image it writes an index PNG (0 is background, 1 the first class),
an overlay with a legend, and a line of `summary.jsonl` with each class's share of the pixels and
mean score. Images that already have a mask are skipped when the command runs again; unreadable ones
are skipped and listed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from clipseg_jax.core.command import exit_code
from clipseg_jax.core.files import check_writable, write_json
from clipseg_jax.core.label_images import overlay, palette, save_image, save_labels, with_legend
from clipseg_jax.demo import TINY_CLIP
from clipseg_jax.methods.maskclip.model import MaskCLIPConfig
from clipseg_jax.segmenter import Segmentation, Segmenter, check_words
from input_pipeline.datasets.images import BadImage, read_image
from input_pipeline.datasets.layout import IMAGE_SUFFIXES


def find_images(paths: Iterable[str | Path]) -> list[tuple[Path, str]]:
    """(file, name of its results) of files and, recursively, folders; names are unique.

    Raises:
      FileNotFoundError: a path that does not exist, or a folder without images.
    """
    files: list[tuple[Path, Path]] = []  # (file, path relative to the folder it was found in)
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise FileNotFoundError(f"no images ({', '.join(IMAGE_SUFFIXES)}) in folder {path}")
            files += [(image, image.relative_to(path)) for image in inside]
        elif path.is_file():
            files.append((path, Path(path.name)))
        else:
            raise FileNotFoundError(f"{path} is neither a file nor a folder")
    stems = [str(relative.with_suffix("")) for _, relative in files]
    names = [
        stem if stems.count(stem) == 1 else str(relative).replace(".", "_")
        for stem, (_, relative) in zip(stems, files, strict=True)
    ]
    counts: dict[str, int] = {}
    for i, name in enumerate(names):  # the same relative name in two folders
        counts[name] = counts.get(name, 0) + 1
        if counts[name] > 1:
            names[i] = f"{name}_{counts[name]}"
    return [(path, name) for (path, _), name in zip(files, names, strict=True)]


def run(args: argparse.Namespace) -> int:
    """Segments the images of the command line; returns the number of skipped ones."""
    files = find_images(args.images)
    class_names = [name.strip() for name in args.classes.split(",") if name.strip()]
    words = [word.strip() for word in args.background_words.split(",") if word.strip()]
    background = words or (args.background if args.background > 0 else None)
    check_words(class_names, words)
    out = check_writable(args.out)
    settings = {"classes": class_names, "background": background} | {
        key: str(getattr(args, key))
        for key in ("weights", "templates", "short_side", "pd", "ks", "slide", "flip", "dtype")
    }
    _same_settings(out / "settings.json", settings, args.overwrite)
    todo = [
        (path, name) for path, name in files if args.overwrite or not (out / f"{name}.png").exists()
    ]
    if len(todo) < len(files):
        print(f"{len(files) - len(todo)} of {len(files)} images already have masks")
    if not todo:
        return 0
    segmenter = Segmenter(
        class_names,
        weights=TINY_CLIP if args.weights == "demo" else args.weights,
        background=background,
        prompt_templates=args.templates,
        short_side_px=args.short_side,
        refine=MaskCLIPConfig(pd_threshold=args.pd, ks_threshold=args.ks),
        batch_size=args.batch_size,
        dtype=args.dtype,
        mode="slide" if args.slide else "whole",
        flip=args.flip,
    )
    skipped = []
    with (
        (out / "summary.jsonl").open("a", encoding="utf-8") as summary,
        tqdm(total=len(todo), unit="image", disable=None) as bar,
    ):
        for i, result in segmenter([path for path, _ in todo]):
            path, name = todo[i]
            if isinstance(result, BadImage):
                skipped.append(str(result))
            else:
                save(result, path, out / name, args.opacity)
                row = {"image": str(path), "mask": f"{name}.png", "classes": result.summary()}
                summary.write(json.dumps(row) + "\n")
                summary.flush()
            bar.update()
    for message in skipped:
        print(f"skipped: {message}", file=sys.stderr)
    print(f"{len(todo) - len(skipped)} masks in {out}, {len(skipped)} images skipped")
    return len(skipped)


def save(result: Segmentation, image: Path, stem: Path, opacity: float = 0.5) -> None:
    """Writes `stem`_overlay.jpg and then `stem`.png, whose existence marks the image as done."""
    colours = palette()
    blended = overlay(read_image(image), result.labels, colours, opacity, clear=(0,))
    ranked = sorted(result.summary().items(), key=lambda item: -item[1]["share"])
    entries = [
        (f"{name} {part['share']:.0%} ({part['score']:.2f})", colours[result.names.index(name)])
        for name, part in ranked
        if name != "background" and part["share"] >= 0.005
    ]
    save_image(stem.with_name(f"{stem.name}_overlay.jpg"), with_legend(blended, entries))
    save_labels(stem.with_name(f"{stem.name}.png"), result.labels, coloured=True)


def _same_settings(path: Path, settings: dict, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        before = json.loads(path.read_text("utf-8"))
        if before != json.loads(json.dumps(settings)):
            changed = sorted(k for k in settings if before.get(k) != settings[k])
            raise ValueError(
                f"{path.parent} holds masks of a run with other settings ({', '.join(changed)}); "
                "choose another --out, or pass --overwrite to replace them"
            )
    write_json(path, settings)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m clipseg_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("images", nargs="+", help="image files, or folders searched for images")
    result.add_argument("--classes", required=True, help='class names: "cat, sofa, tv monitor"')
    result.add_argument(
        "--weights",
        required=True,
        help="a CLIP checkpoint: OpenAI .pt, Hugging Face directory, OpenCLIP; or `demo`",
    )
    result.add_argument("--out", default="masks", help="output folder (default: masks)")
    result.add_argument(
        "--background",
        type=float,
        default=0.0,
        help="pixels whose best class probability is lower are background (0: off)",
    )
    result.add_argument(
        "--background-words",
        default="",
        help='class names that count as background: "sky, wall, grass"',
    )
    result.add_argument(
        "--templates", default="maskclip_85", help="name of a set of prompt templates"
    )
    result.add_argument(
        "--short-side",
        type=int,
        default=512,
        help="short side in pixels at which images reach the network",
    )
    result.add_argument("--pd", type=float, default=0.0, help="prompt denoising threshold (0: off)")
    result.add_argument("--ks", type=float, default=0.0, help="key smoothing threshold (0: off)")
    result.add_argument("--slide", action="store_true", help="sliding windows of 512 pixels")
    result.add_argument("--flip", action="store_true", help="average with the mirror image")
    result.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    result.add_argument(
        "--batch-size", type=int, help="images per batch (default: 4; on CPUs one per device)"
    )
    result.add_argument(
        "--opacity", type=float, default=0.5, help="opacity of the overlay's colours, 0 to 1"
    )
    result.add_argument("--overwrite", action="store_true", help="replace existing masks")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or prints one line and returns 2 on invalid input."""
    args = parser().parse_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
