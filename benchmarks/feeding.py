"""What a training is fed: rows a second and CPU time of a row, by threads and by worker processes.

    python -m benchmarks.feeding [--views reclip,weclip] [--processes 0,1,2] [--lock]

A row is read, decoded, scaled, cropped and coloured as the recipes do, from JPEGs of 500 x 375 px
and label PNGs that are made of this package's photos. 0 processes are threads. CPU time hardly
depends on what else runs; rows a second do. `--lock` samples, by py-spy (`pip install py-spy`,
Linux), what share of a row's time one thread holds Python's lock: the threads of a process make no
more rows than one in that time.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from rich.table import Table

from benchmarks import report
from benchmarks.clip_es_memory import resident_mb
from benchmarks.report import console
from input_pipeline.batches.deeplab_views import multi_scale_batches
from input_pipeline.batches.training import TrainingBatches, random_view_batches
from input_pipeline.batches.weclip_views import random_placement_batches
from input_pipeline.batches.zero_shot import hide_unseen
from input_pipeline.datasets import catalog

PHOTOS = Path(__file__).resolve().parent.parent / "clipseg_jax/web/photos"
VIEWS = ("reclip", "maskclip_plus", "clip_rc", "weclip", "deeplab")
CLASSES = tuple(f"class {i}" for i in range(20))
UNSEEN = (15, 16, 17, 18, 19)
SIZES = ((375, 500), (500, 375), (333, 500))  # as VOC's
_CROPS: dict[str, Any] = {"scale": (2048, 512), "crop_hw": (512, 512)}
_AT_SCALES: dict[str, Any] = {
    "scales": (0.5, 0.75, 1.0, 1.25, 1.5), "crop_hw": (321, 321), "colour": (122.7, 116.7, 104.0),
}  # fmt: skip
NEEDED = 1700  # rows a second: rectification on eight TPU v5e at 45 % of their peak
_SAMPLES_A_SECOND, _SAMPLED_S = 250, 8
_TICKS = os.sysconf("SC_CLK_TCK")


def write_photos(root: Path, count: int) -> None:
    """Parts of the photos, mirrored at their edges and at their own sharpness, with labels."""
    rng = np.random.default_rng(0)
    photos = [np.asarray(Image.open(path)) for path in sorted(PHOTOS.glob("*.jpg"))]
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for i in range(count):
        height, width = SIZES[i % len(SIZES)]
        around = cv2.BORDER_REFLECT
        large = cv2.copyMakeBorder(photos[i % len(photos)], 0, height, 0, width, around)
        top, left = (int(rng.integers(side)) for side in photos[i % len(photos)].shape[:2])
        part = np.ascontiguousarray(large[top : top + height, left : left + width])
        Image.fromarray(part).save(root / f"images/{i:03}.jpg", quality=92)
        coarse = rng.integers(0, len(CLASSES), (5, 6)).astype(np.uint8)
        label = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
        Image.fromarray(label).save(root / f"labels/{i:03}.png")


def views(root: Path, batch: int) -> dict[str, Callable[[], TrainingBatches]]:
    """The batches of each recipe, as published on VOC."""
    dataset = catalog.folder(root, CLASSES)
    labelled, plain = dataset.index(""), dataset.index("", labels=False)

    def crops(unlabelled: Any = False, **options: Any) -> TrainingBatches:
        return random_view_batches(
            dataset, labelled, batch_size=batch, unlabelled=unlabelled, **_CROPS, **options
        )

    return {
        "reclip": lambda: crops(unlabelled=True, saturation_wrap=True),
        "maskclip_plus": lambda: crops(unlabelled=UNSEEN),
        "clip_rc": lambda: hide_unseen(crops(), "inductive", UNSEEN, before_crop=False),
        "weclip": lambda: random_placement_batches(
            dataset, plain, crop_hw=(320, 320), batch_size=batch
        ),
        "deeplab": lambda: multi_scale_batches(dataset, labelled, batch_size=batch, **_AT_SCALES),
    }


def workers() -> list[int]:
    """The worker processes of this one. Linux only."""
    tasks = Path("/proc/self/task").iterdir()
    children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    return [pid for pid in children if b"row_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def measure(data: TrainingBatches, processes: int, repeats: int) -> dict[str, float]:
    """Rows a second; CPU ms of a row here and in workers; largest memory of a worker."""
    stream = data.batches(processes=processes)
    for _ in range(4 + 8 * processes // data.batch_size):  # what was made ahead while they started
        next(stream)
    pids = workers()
    before, here, started = sum(map(cpu_seconds, pids)), time.process_time(), time.perf_counter()
    for _ in range(repeats):
        next(stream)
    rows, seconds = repeats * data.batch_size, time.perf_counter() - started
    result = {
        "processes": processes,
        "rows_per_s": rows / seconds,
        "consumer_ms": 1e3 * (time.process_time() - here) / rows,
        "worker_ms": 1e3 * (sum(map(cpu_seconds, pids)) - before) / rows,
        "worker_mb": max(map(resident_mb, pids), default=0.0),
    }
    stream.close()
    return result


def lock(name: str, root: Path, batch: int) -> dict[str, Any]:
    """How much of a row's time one thread holds Python's lock, and what follows for a process."""
    ms = one_row_ms(views(root, batch)[name](), 48)
    command = [sys.executable, "-m", "benchmarks.feeding", "--make", name, str(root)]
    samples = root / "samples.txt"
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout
        try:
            child.stdout.readline()  # once it makes rows
            subprocess.run(
                ["py-spy", "record", "--gil", "--format=raw", f"--pid={child.pid}",
                 f"--output={samples}", f"--rate={_SAMPLES_A_SECOND}", f"--duration={_SAMPLED_S}"],
                check=True, capture_output=True,
            )  # fmt: skip
        finally:
            child.kill()
    held = sum(int(line.rpartition(" ")[2]) for line in samples.read_text().splitlines())
    share = held / (_SAMPLES_A_SECOND * _SAMPLED_S)
    return {"views": name, "share": share, "ms": ms, "ceiling": 1e3 / (share * ms)}


def make_rows(data: TrainingBatches) -> None:
    """Makes rows in this thread, without end; says so after some."""
    cv2.setNumThreads(0)
    for number in itertools.count():
        data._numbered_row(number)
        if number == data.batch_size:
            print("making rows", flush=True)


def one_row_ms(data: TrainingBatches, rows: int) -> float:
    """CPU time of a row in this thread."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    for number in range(2 * rows):
        if number == rows:
            before = time.thread_time()
        data._numbered_row(number)
    cv2.setNumThreads(threads)
    return 1e3 * (time.thread_time() - before) / rows


def main(argv: list[str] | None = None) -> None:
    """Prints a row for each recipe's views and number of processes; `--out` also writes JSON."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=report.several(VIEWS), default=VIEWS)
    parser.add_argument("--processes", type=report.several(), default=(0, 1, 2))
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--lock", action="store_true", help="also sample Python's lock, by py-spy")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    args = report.with_output(parser, repeats=30).parse_args(argv)
    if args.make:
        name, root = args.make
        make_rows(views(Path(root), args.batch)[name]())
    table = Table("views", "processes", "rows/s", "CPU ms: here", "workers", "MB of a worker")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), args.images)
        for name in args.views:
            make = views(Path(folder), args.batch)[name]
            for processes in args.processes:
                row = measure(make(), processes, args.repeats)
                results.append({"views": name, **row})
                cells = (f"{row[key]:.3g}" for key in ("rows_per_s", "consumer_ms", "worker_ms"))
                table.add_row(name, str(processes), *cells, f"{row['worker_mb']:.0f}")
        console.print(table)
        locks = [lock(name, Path(folder), args.batch) for name in args.views if args.lock]
    for each in locks:
        console.print(
            "{views}: a thread holds the lock {share:.0%} of a row's {ms:.3g} ms of CPU; one "
            "process makes {ceiling:.0f} rows/s at most".format(**each)
        )
    for row in results:
        if row["processes"]:
            cores = NEEDED * (row["worker_ms"] + row["consumer_ms"]) / 1e3
            row["cores_of_eight_v5e"] = cores
            of = f"{row['views']}, {row['processes']} processes"
            console.print(f"{of}: {NEEDED} rows/s take {cores:.0f} cores")
    if args.out:
        report.write({"settings": vars(args) | {"out": str(args.out)}, "rows": results,
                      "locks": locks}, args.out)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
