"""Memory of CLIP-ES's stage `cams` over many images with varying numbers of classes.

    python -m benchmarks.clip_es_memory [--images 500] [--classes-per-image 12] [--sides 128,224]

Runs the stage as a user does, in a process of its own, on generated photos and a ViT-B/16 with
random weights, and records resident memory and the number of compiled programs (one per image shape
and bound of class counts) after every tenth of the images. Memory must depend on the programs only,
not on the number of images. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import inputs
from benchmarks.report import several
from clipseg_jax.core.modules import initialised
from clipseg_jax.models.clip import CLIP, CLIPConfig
from input_pipeline.datasets.class_sets import prompt_set
from weights_convert import clip_to_state_dict
from weights_convert.formats.torch_writer import write_torch

_COMPILED = "Finished XLA compilation of jit(refine)"  # logged by JAX per program


def write_inputs(folder: Path, args: argparse.Namespace) -> list[str]:
    """Writes photos, image labels, text embeddings and weights; returns the command's settings."""
    rng = np.random.default_rng(0)
    names = prompt_set("voc", synonyms=True)
    (folder / "data/train/images").mkdir(parents=True)
    lines = []
    for i in range(args.images):
        height, width = rng.integers(args.sides[0], args.sides[1] + 1, 2)
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        photo = Image.fromarray(coarse).resize((int(width), int(height)))
        photo.save(folder / f"data/train/images/{i:05d}.jpg")
        classes = rng.permutation(len(names.names))[: 1 + i % args.classes_per_image]
        lines.append(f"{i:05d} " + " ".join(map(str, sorted(classes))))
    (folder / "labels.txt").write_text("\n".join(lines) + "\n")
    vision = inputs.vision("float32", args.tiny)
    clip = initialised(lambda rngs: CLIP(CLIPConfig(vision, text=None), rngs=rngs))
    write_torch(folder / "clip.pt", clip_to_state_dict(clip))
    (folder / "run").mkdir()
    embeddings = inputs.random_embeddings(
        rng, len(names.names) + len(names.background), vision.embed_dim
    )
    np.save(folder / "run/text_embeddings.npy", embeddings)
    settings = {
        "clip.weights": folder / "clip.pt",
        "dataset.name": "folder",
        "dataset.root": folder / "data",
        "dataset.class_names": repr(("background", *names.names)),
        "dataset.train_split": "train",
        "labels.file": folder / "labels.txt",
        "stages": "('cams',)",
        "run.batch_size": args.batch,
        "cams.affinity_blocks": tuple(range(max(vision.layers - 8, 0), vision.layers)),
    }
    return [f"--config.{name}={value}" for name, value in settings.items()]


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB; 0 when it has ended."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line[0].split()[1]) / 1024 if line else 0.0


def measure(args: argparse.Namespace) -> list[dict[str, float]]:
    """Programs compiled, resident memory and seconds after every tenth of the images."""
    samples: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = write_inputs(folder, args)
        command = [sys.executable, "-m", "clipseg_jax.main", "--config=configs/voc_clip_es.py"]
        with (folder / "log").open("w") as log:
            run = subprocess.Popen(
                [*command, f"--workdir={folder / 'run'}", *settings],
                stdout=log,
                stderr=log,
                env=os.environ | {"JAX_LOG_COMPILES": "1"},
            )
            start = time.perf_counter()
            while run.poll() is None:
                time.sleep(0.5)
                done = len(list((folder / "run/cams").glob("*")))
                if done * 10 >= args.images * (len(samples) + 1):
                    sample = {
                        "images": done,
                        "programs": (folder / "log").read_text().count(_COMPILED),
                        "resident_mb": resident_mb(run.pid),
                        "seconds": time.perf_counter() - start,
                    }
                    samples.append(sample)
                    print(
                        f"{done:6d} images  {sample['programs']:3d} programs  "
                        f"{sample['resident_mb']:7.0f} MB  {sample['seconds']:6.0f} s",
                        flush=True,
                    )
        if run.returncode:
            text = (folder / "log").read_text()
            raise RuntimeError(f"the stage ended with {run.returncode}:\n{text}")
    return samples


def main(argv: list[str] | None = None) -> None:
    """Prints memory over the run; `--out` also writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument(
        "--classes-per-image", type=int, default=12, help="images have 1 to this number of classes"
    )
    parser.add_argument(
        "--sides", type=several(), default=(128, 224), help="least,most pixels of a side"
    )
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, for a quick trial")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args(argv)
    samples = measure(args)
    if args.out:
        args.out.write_text(json.dumps(samples, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
