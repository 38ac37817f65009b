"""WeCLIP's training step: images/s, compared with the published method in PyTorch.

    python -m benchmarks.weclip_step [--batch 4] [--size 320] [--early] [--out FILE]

From crops on the device to the updated head: frozen ViT-B/16, pseudo labels (Grad-CAM, refinement,
PAR), losses, gradient, AdamW. Ours is `train.py`'s update, one program for the whole batch; the
peer (torch_weclip.py) labels one image at a time. Weights, text and images are random. Dropout is
off, so that both sides can be compared. Without torch only ours is measured.
"""

from __future__ import annotations

import argparse
import statistics

import jax

from benchmarks import report, sides, weclip_sides
from benchmarks.report import Metrics, console
from clipseg_jax.methods.weclip import task as weclip


def measure(work: weclip_sides.Work, args: argparse.Namespace, metrics: Metrics) -> None:
    """Adds a section: both sides, run alternately, and the shares of time of their parts."""
    task = weclip.build(work.model, work.task_config)
    ours = sides.Ours(task, work.batch, optim=weclip_sides.OPTIM)
    steps: dict[str, sides.Side] = {"ours": ours}
    differences, net = None, None
    if sides.HAS_TORCH:
        peer, net = weclip_sides.make_peer(work)
        steps["peer"] = peer
        if args.dtype == "float32" and jax.default_backend() == "cpu":
            differences = sides.agreement(ours(), peer(norm=True))
    flops = weclip_sides.flops(work)
    rows = report.compare(
        steps, args.batch, args.repeats, compiled=ours.compiled,
        flops={"ours": sum(flops.values())}, dtype=args.dtype,
    )  # fmt: skip
    rows[0] |= {
        "flops": flops,
        "shares": _shares_of_our_parts(work, rows[0]["median"], args.repeats),
    }
    if net is not None:
        timed = net.seconds[-args.repeats :]
        parts = {name: statistics.median(ids[name] for ids in timed) for name in timed[0]}
        rows[1]["shares"] = _shares(parts, rows[1]["median"], "gradient, update")
    report.add(
        metrics, f"{'early' if args.early else 'late'} phase, {args.dtype}", rows,
        differences=differences, classes_per_image=[len(ids) for ids in work.ids],
    )  # fmt: skip
    for row in rows:
        shares = ", ".join(f"{part} {share:.0%}" for part, share in row["shares"].items())
        console.print(f"{row['side']}: {shares}")


def _shares_of_our_parts(work: weclip_sides.Work, whole: float, repeats: int) -> dict[str, float]:
    """Shares of our step's parts, each compiled separately."""
    steps = weclip_sides.parts(work)
    sides.in_turn(steps, 1)  # compiles
    parts = {name: statistics.median(s) for name, s in sides.in_turn(steps, repeats).items()}
    return _shares(parts, whole, "loss, gradient, update")


def _shares(parts: dict[str, float], whole: float, rest: str) -> dict[str, float]:
    """Shares of a step's seconds; the remainder is called `rest`."""
    result = {name: seconds / whole for name, seconds in parts.items()}
    return result | {rest: 1 - sum(result.values())}


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison; `--out` also writes it as JSON."""
    parser = report.parser(__doc__, batch=4, size=320)
    add = parser.add_argument
    add("--early", action="store_true", help="the phase without learned affinity")
    add("--classes-per-image", type=int, default=0, help="0: 1, 2, 3, 2, repeated")
    args = parser.parse_args(argv)
    work = weclip_sides.make_work(args)
    counts = [len(ids) for ids in work.ids]
    metrics = report.begin(
        args,
        f"{args.batch} crops of {args.size} px with {sum(counts) / len(counts):.2g} classes",
    )
    measure(work, args, metrics)
    report.finish(metrics, args.out)


if __name__ == "__main__":
    main()
