"""Masks for your own words on your own photos.

    python -m clipseg_jax.predict photo.jpg --classes "cat, sofa, tv monitor" --weights ViT-B-16.pt

takes files and whole folders, and writes for each image an index PNG (0 is background, 1 the first
class), an overlay with a legend, and a line in `summary.jsonl` with each class's share and score.
Images already done are skipped when the command runs again; unreadable ones are named and counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

import weights_convert
from clipseg_jax.core.files import check_writable, write_json
from clipseg_jax.core.mesh import make_mesh, replicate, shard_batch
from clipseg_jax.core.pictures import overlay, palette, save_labels, save_picture, with_legend
from clipseg_jax.demo import TINY_CLIP
from clipseg_jax.inference import (
    InferenceConfig,
    network_shapes,
    network_size,
    network_sizes,
    segmenter,
)
from clipseg_jax.models.maskclip import PLAIN, MaskCLIPConfig
from clipseg_jax.ops.image import CLIP_MEAN, CLIP_STD
from clipseg_jax.prompts import check_class_names, class_embeddings, templates, text_encoder
from clipseg_jax.tasks import maskclip
from input_pipeline.images import BadImage, image_size, read_image
from input_pipeline.layout import PICTURES
from input_pipeline.plan import Batch, plan_batches


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """Masks of one image."""

    labels: np.ndarray  # (h, w) uint8: 0 background, i the i-th class
    scores: np.ndarray  # (h, w) float32: probability of the winning class
    names: tuple[str, ...]  # names[labels] is each pixel's class; names[0] is "background"

    def summary(self) -> dict[str, dict[str, float]]:
        """For each name in the image: its share of the pixels and its mean score there."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names))
        sums = np.bincount(self.labels.ravel(), self.scores.ravel(), minlength=len(self.names))
        return {
            name: {"share": round(count / self.labels.size, 4), "score": round(total / count, 4)}
            for name, count, total in zip(self.names, counts, sums, strict=True)
            if count
        }


class Segmenter:
    """A CLIP and a class list, ready for images; made once, used for many."""

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        weights: str | Path,
        background: float | Sequence[str] | None = None,
        prompt_templates: str = "maskclip_85",
        short_side_px: int = 512,
        refine: MaskCLIPConfig = PLAIN,
        batch_size: int = 4,
        dtype: str = "float32",
        devices: int | None = None,
        **inference: object,
    ):
        """See `segment` for the arguments; `inference` are further `InferenceConfig` fields.

        Raises:
          ValueError: class names that are missing or repeated, or weights that are no CLIP.
        """
        words = [] if background is None or isinstance(background, float) else list(background)
        _check_words(class_names, words)
        if len(class_names) > 254:
            raise ValueError(f"{len(class_names)} classes; an index PNG holds at most 254")
        loaded = weights_convert.load_clip(weights, dtype=dtype)
        if loaded.model.cfg.text is None or loaded.tokenizer is None:
            raise ValueError(f"{weights} has no text tower, so it cannot read class names")
        rows = class_embeddings(
            [*class_names, *words],
            text_encoder(loaded.model.text),
            loaded.tokenizer,
            prompt_templates=templates(prompt_templates),
            context_length=loaded.model.cfg.text.context_length,
        )
        self.names = ("background", *class_names)
        self.config = InferenceConfig(
            mean=CLIP_MEAN,
            std=CLIP_STD,
            scale_px=(4 * short_side_px, short_side_px),
            row_labels=(*range(1, len(class_names) + 1), *(0 for _ in words)),
            background_thresh=background if isinstance(background, float) else 0.0,
            **inference,  # type: ignore[arg-type]
        )
        self._mesh = make_mesh(devices)
        self._batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        task = maskclip.build(loaded.model, rows, refine)
        state, segment = segmenter(task, self.config)
        self._state = replicate(self._mesh, state)
        self._segment = jax.jit(segment, static_argnums=4)

    def __call__(
        self, images: Sequence[np.ndarray | str | Path]
    ) -> Iterator[tuple[int, Segmentation | BadImage]]:
        """Yields (index, result) for every image, in batches of like size, not in order.

        Images are arrays (h, w, 3) uint8 RGB or files. One that cannot be read gives the error as
        its result, so that a folder is not lost to one bad file.
        """
        sizes: list[tuple[int, int]] = []
        good: list[int] = []
        for i, image in enumerate(images):
            try:
                size = (
                    _check_array(image, i) if isinstance(image, np.ndarray) else image_size(image)
                )
                network_sizes(size, self.config)
            except (BadImage, ValueError) as error:
                if isinstance(image, np.ndarray):
                    raise
                yield i, error if isinstance(error, BadImage) else BadImage(f"{image}: {error}")
                continue
            sizes.append(size)
            good.append(i)
        if not good:
            return
        at_network = functools.partial(network_size, cfg=self.config)
        for batch in plan_batches(sizes, self._batch_size, network_size=at_network):
            yield from self._batch(batch, [images[i] for i in good], good, sizes)

    def _batch(
        self,
        batch: Batch,
        images: Sequence[np.ndarray | str | Path],
        numbers: Sequence[int],
        sizes: Sequence[tuple[int, int]],
    ) -> Iterator[tuple[int, Segmentation | BadImage]]:
        pixels = np.zeros((len(batch.indices), *batch.bucket_hw, 3), np.uint8)
        failed: dict[int, BadImage] = {}
        for row, index in enumerate(batch.indices):
            if not batch.valid[row]:
                continue
            image = images[index]
            try:
                array = image if isinstance(image, np.ndarray) else read_image(image)
                pixels[row, : array.shape[0], : array.shape[1]] = array
            except BadImage as error:
                failed[row] = error
        image_sizes = np.asarray([sizes[i] for i in batch.indices], np.int32)
        at_network = [network_sizes(sizes[i], self.config) for i in batch.indices]
        arrays = shard_batch(
            self._mesh,
            {"images": pixels, "sizes": image_sizes, "network": np.asarray(at_network, np.int32)},
        )
        labels, scores = jax.device_get(
            self._segment(
                self._state,
                arrays["images"],
                arrays["sizes"],
                arrays["network"],
                network_shapes(batch.network_hw, self.config),
            )
        )
        for row, index in enumerate(batch.indices):
            if not batch.valid[row]:
                continue
            if row in failed:
                yield numbers[index], failed[row]
                continue
            h, w = sizes[index]
            yield (
                numbers[index],
                Segmentation(labels[row, :h, :w].astype(np.uint8), scores[row, :h, :w], self.names),
            )


def segment(
    images: Sequence[np.ndarray | str | Path] | np.ndarray | str | Path,
    class_names: Sequence[str],
    *,
    weights: str | Path,
    **options: object,
) -> list[Segmentation]:
    """Masks of `class_names` in `images`, with a frozen CLIP (MaskCLIP).

    Args:
      images: one or several; arrays (h, w, 3) uint8 RGB of any size, or files.
      class_names: any words, most frequent names work best ("tv monitor", not "tvmonitor").
      weights: a CLIP checkpoint as released (OpenAI .pt, Hugging Face directory, OpenCLIP), or
        `clipseg_jax.demo.TINY_CLIP`, which knows a painted toy world only.
      options: background: None (every pixel gets a class), a probability below which a pixel is
        background, or words that stand for background (["sky", "wall"]); prompt_templates: a set's
        name; short_side_px: size at the network; refine: a `MaskCLIPConfig`; batch_size; dtype
        "bfloat16"; mode="slide", ratios, flip (see `InferenceConfig`).

    Returns:
      One `Segmentation` for each image, in order.

    Raises:
      ValueError: class names that are missing or repeated, arrays that are no images, weights that
        are no CLIP.
      BadImage: a file that is no readable image.
    """
    if isinstance(images, (str, Path)) or (isinstance(images, np.ndarray) and images.ndim == 3):
        images = [images]
    results: dict[int, Segmentation] = {}
    run = Segmenter(class_names, weights=weights, **options)  # type: ignore[arg-type]
    for i, result in run(images):  # type: ignore[arg-type]
        if isinstance(result, BadImage):
            raise result
        results[i] = result
    return [results[i] for i in range(len(results))]


def _check_words(class_names: Sequence[str], words: Sequence[str]) -> None:
    """Both lists by themselves, then together: no word may mean a class and the background."""
    check_class_names(class_names)
    check_class_names([*class_names, *words])


def _check_array(image: np.ndarray, index: int) -> tuple[int, int]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(
            f"image {index} is {image.dtype} {image.shape}; give uint8 RGB of shape (h, w, 3)"
        )
    return image.shape[0], image.shape[1]


def find_images(paths: Iterable[str | Path]) -> list[tuple[Path, str]]:
    """(file, name of its results) for files and, recursively, folders; names are unique.

    Raises:
      FileNotFoundError: a path that is not there, or a folder without images.
    """
    found: list[tuple[Path, Path]] = []
    for given in map(Path, paths):
        if given.is_dir():
            inside = sorted(p for p in given.rglob("*") if p.suffix.lower() in PICTURES)
            if not inside:
                raise FileNotFoundError(f"no images ({', '.join(PICTURES)}) in folder {given}")
            found += [(path, path.relative_to(given)) for path in inside]
        elif given.is_file():
            found.append((given, Path(given.name)))
        else:
            raise FileNotFoundError(f"{given} is neither a file nor a folder")
    stems = [str(relative.with_suffix("")) for _, relative in found]
    names = [
        stem if stems.count(stem) == 1 else str(relative).replace(".", "_")
        for stem, (_, relative) in zip(stems, found, strict=True)
    ]
    taken: dict[str, int] = {}
    for i, name in enumerate(names):  # the same relative name in two given folders
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            names[i] = f"{name}_{taken[name]}"
    return [(path, name) for (path, _), name in zip(found, names, strict=True)]


def run(args: argparse.Namespace) -> int:
    """Segments everything the command line names; returns the number of images skipped."""
    files = find_images(args.images)
    class_names = [name.strip() for name in args.classes.split(",") if name.strip()]
    words = [word.strip() for word in args.background_words.split(",") if word.strip()]
    background = words or (args.background if args.background > 0 else None)
    _check_words(class_names, words)
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
        print(f"{len(files) - len(todo)} of {len(files)} images were done before")
    if not todo:
        return 0
    segmenter = Segmenter(
        class_names,
        weights=TINY_CLIP if args.weights == "demo" else args.weights,
        background=background,
        prompt_templates=args.templates,
        short_side_px=args.short_side,
        refine=MaskCLIPConfig(pd_thresh=args.pd, ks_thresh=args.ks),
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
    """Writes `stem`_overlay.jpg and, last, `stem`.png: the mask's presence says it is all there."""
    colours = palette()
    picture = overlay(read_image(image), result.labels, colours, opacity, clear=(0,))
    ranked = sorted(result.summary().items(), key=lambda item: -item[1]["share"])
    entries = [
        (f"{name} {part['share']:.0%} ({part['score']:.2f})", colours[result.names.index(name)])
        for name, part in ranked
        if name != "background" and part["share"] >= 0.005
    ]
    save_picture(stem.with_name(f"{stem.name}_overlay.jpg"), with_legend(picture, entries))
    save_labels(stem.with_name(f"{stem.name}.png"), result.labels)


def _same_settings(path: Path, settings: dict, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        before = json.loads(path.read_text("utf-8"))
        if before != json.loads(json.dumps(settings)):
            changed = sorted(k for k in settings if before.get(k) != settings[k])
            raise ValueError(
                f"{path.parent} holds masks made with other settings ({', '.join(changed)}); "
                "choose another --out, or pass --overwrite to make them again"
            )
    write_json(path, settings)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m clipseg_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("images", nargs="+", help="image files, or folders searched for images")
    made.add_argument("--classes", required=True, help='what to look for: "cat, sofa, tv monitor"')
    made.add_argument(
        "--weights",
        required=True,
        help="a CLIP checkpoint: OpenAI .pt, Hugging Face directory, OpenCLIP; or `demo`",
    )
    made.add_argument("--out", default="masks", help="folder for the results (default: masks)")
    made.add_argument(
        "--background", type=float, default=0.0, help="pixels less sure than this are background"
    )
    made.add_argument(
        "--background-words", default="", help='words that mean background: "sky, wall, grass"'
    )
    made.add_argument("--templates", default="maskclip_85", help="set of prompt templates")
    made.add_argument("--short-side", type=int, default=512, help="pixels at the network")
    made.add_argument("--pd", type=float, default=0.0, help="prompt denoising threshold (0: off)")
    made.add_argument("--ks", type=float, default=0.0, help="key smoothing threshold (0: off)")
    made.add_argument("--slide", action="store_true", help="sliding windows of 512 pixels")
    made.add_argument("--flip", action="store_true", help="average with the mirror image")
    made.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    made.add_argument("--batch-size", type=int, default=4)
    made.add_argument("--opacity", type=float, default=0.5, help="of the overlay's colours")
    made.add_argument("--overwrite", action="store_true", help="make all masks again")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 with one line of explanation on bad input."""
    args = parser().parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
