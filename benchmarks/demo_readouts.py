"""mIoU of every read-out on the demo world, alone and refined; and a picture of their masks.

    python -m benchmarks.demo_readouts [--workdir workdir/demo_readouts] [--picture FILE]

Each cell is a run of `configs/demo_readout.py:<method>` with `--config.inference.refine=`; done
ones are not repeated. The picture has a column for each read-out: the first images of the demo
world, and, with `--photo`, one that is segmented into `--classes` by the same tiny CLIP.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from clipseg_jax import main as recipes
from clipseg_jax.core.label_images import overlay, palette
from clipseg_jax.demo import world
from clipseg_jax.segmenter import segment
from configs import demo_readout

METHODS = ("value", "clip", "sclip", "clearclip", "naclip", "resclip", "scclip")
REFINEMENTS = ("", "pamr", "crf")
DRAWN = tuple(name for name in METHODS if name != "clip")  # in the picture
SHOWN = (0, 3, 5)  # of the demo world's images
CELL_PX, GAP_PX, HEADER_PX = 112, 3, 14


def run(method: str, refine: str, workdir: Path) -> float:
    """mIoU of one cell, in percent; its label maps are in `predictions/`."""
    config = demo_readout.get_config(method)
    config.dataset.root = str(workdir / "demo_world")
    config.inference.refine = refine
    config.run.pictures, config.run.predictions = 0, True
    return recipes.run(config, folder(method, refine, workdir))["evaluate"]["mIoU"]


def folder(method: str, refine: str, workdir: Path) -> Path:
    """The work directory of one cell."""
    return workdir / (f"{method}_{refine}" if refine else method)


def table(cells: Mapping[tuple[str, str], float]) -> str:
    """Markdown of mIoU by method and refinement."""
    lines = ["| read-out | alone | PAMR | CRF |", "|---|---|---|---|"]
    for method in METHODS:
        row = " | ".join(f"{cells[method, refine]:.1f}" for refine in REFINEMENTS)
        lines.append(f"| {method} | {row} |")
    return "\n".join(lines)


def painted_rows(workdir: Path) -> list[list[np.ndarray]]:
    """For each image shown: itself, its truth, and the mask of each read-out with PAMR."""
    world_folder = workdir / "demo_world"
    images = sorted((world_folder / "images").iterdir())
    rows = []
    for path in (images[i] for i in SHOWN):
        image = np.asarray(Image.open(path))
        masks = [world_folder / "labels" / f"{path.stem}.png"]
        masks += [folder(name, "pamr", workdir) / f"predictions/{path.stem}.png" for name in DRAWN]
        rows.append([image, *(painted(image, np.asarray(Image.open(mask))) for mask in masks)])
    return rows


def photo_row(photo: Path, classes: Sequence[str]) -> list[np.ndarray]:
    """A photo, an empty cell, for nobody labelled it, and the masks by the demo's tiny CLIP."""
    image = np.asarray(Image.open(photo).convert("RGB"))
    row = [image, np.full_like(image, 255)]
    for name in DRAWN:
        masks = segment(
            image, classes, weights="demo", method=name, refine="pamr", background=world.SCENERY
        )
        row.append(painted(image, masks[0].labels))
    return row


def painted(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """An image (h, w, 3) under its labels (h, w)."""
    return overlay(image, labels, palette(), 0.7, clear=(0, 255))


def draw(rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """Cells of equal width with the columns' names above."""
    scaled = []
    for row in rows:
        height = round(CELL_PX * row[0].shape[0] / row[0].shape[1])
        scaled.append([Image.fromarray(cell).resize((CELL_PX, height)) for cell in row])
    columns = ("image", "truth", *DRAWN)
    heights = [row[0].height + GAP_PX for row in scaled]
    size = len(columns) * (CELL_PX + GAP_PX), HEADER_PX + sum(heights)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for i, name in enumerate(columns):
        pen.text((i * (CELL_PX + GAP_PX), 0), name, fill="black")
    top = HEADER_PX
    for row, height in zip(scaled, heights, strict=True):
        for i, cell in enumerate(row):
            sheet.paste(cell, (i * (CELL_PX + GAP_PX), top))
        top += height
    return sheet


def main(argv: list[str] | None = None) -> None:
    """Prints the table; writes the picture if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("workdir/demo_readouts"))
    parser.add_argument("--picture", type=Path, help="PNG file of masks side by side")
    parser.add_argument("--photo", type=Path, help="one more image of the picture")
    parser.add_argument("--classes", default="duck,sheep,boat,cow", help="of the photo")
    args = parser.parse_args(argv)
    cells = {(m, r): run(m, r, args.workdir) for m in METHODS for r in REFINEMENTS}
    print(table(cells))
    if args.picture:
        rows = painted_rows(args.workdir)
        if args.photo:
            rows.append(photo_row(args.photo, args.classes.split(",")))
        draw(rows).save(args.picture)


if __name__ == "__main__":
    main()
