"""WeCLIP's training step: images/s of ours next to the published way in PyTorch.

    python -m benchmarks.weclip_step [--batch 4] [--size 320] [--early] [--out FILE]

From crops on the device to the updated head: frozen ViT-B/16, pseudo labels (Grad-CAM, refinement,
PAR), losses, gradient, AdamW. Ours is `train.py`'s update, one program for the whole batch; the
peer (torch_weclip.py) labels one image after the other. Weights, text and images are random, and no
channel is dropped, so that both sides must agree. Without torch only ours is measured.
"""

from __future__ import annotations

import argparse
import statistics

import jax

from benchmarks import report, sides, weclip_sides
from benchmarks.report import Figures, console
from clipseg_jax.methods.weclip import task as weclip


def measure(given: weclip_sides.Work, args: argparse.Namespace, figures: Figures) -> None:
    """Adds a section: both sides in turn, and the shares of their parts."""
    task = weclip.build(given.model, given.task_config)
    ours = sides.Ours(task, given.batch, optim=weclip_sides.OPTIM)
    steps: dict[str, sides.Side] = {"ours": ours}
    found, net = None, None
    if sides.HAS_TORCH:
        peer, net = weclip_sides.make_peer(given)
        steps["peer"] = peer
        if args.dtype == "float32" and jax.default_backend() == "cpu":
            found = sides.agreement(ours(), peer(norm=True))
    flops = weclip_sides.flops(given)
    rows = report.compare(
        steps, args.batch, args.repeats, compiled=ours.compiled,
        flops={"ours": sum(flops.values())}, dtype=args.dtype,
    )  # fmt: skip
    rows[0] |= {"flops": flops, "shares": _own_shares(given, rows[0]["median"], args.repeats)}
    if net is not None:
        timed = net.seconds[-args.repeats :]
        parts = {name: statistics.median(own[name] for own in timed) for name in timed[0]}
        rows[1]["shares"] = _shares(parts, rows[1]["median"], "gradient, update")
    report.add(
        figures, f"{'early' if args.early else 'late'} phase, {args.dtype}", rows,
        differences=found, classes_per_image=[len(own) for own in given.ids],
    )  # fmt: skip
    for row in rows:
        told = ", ".join(f"{part} {share:.0%}" for part, share in row["shares"].items())
        console.print(f"{row['side']}: {told}")


def _own_shares(given: weclip_sides.Work, whole: float, repeats: int) -> dict[str, float]:
    """Our parts', as programs of their own."""
    steps = weclip_sides.parts(given)
    sides.in_turn(steps, 1)  # compiles
    parts = {name: statistics.median(s) for name, s in sides.in_turn(steps, repeats).items()}
    return _shares(parts, whole, "loss, gradient, update")


def _shares(parts: dict[str, float], whole: float, rest: str) -> dict[str, float]:
    """Shares of a step's seconds; what no part took is `rest`."""
    found = {name: seconds / whole for name, seconds in parts.items()}
    return found | {rest: 1 - sum(found.values())}


def main(argv: list[str] | None = None) -> None:
    """Prints the comparison; `--out` also writes it as JSON."""
    parser = report.parser(__doc__, batch=4, size=320)
    add = parser.add_argument
    add("--early", action="store_true", help="the phase without learned affinity")
    add("--classes-per-image", type=int, default=0, help="0: 1, 2, 3, 2 in turn")
    args = parser.parse_args(argv)
    given = weclip_sides.work(args)
    counts = [len(own) for own in given.ids]
    figures = report.begin(
        args,
        f"{args.batch} crops of {args.size} px with {sum(counts) / len(counts):.2g} classes",
    )
    measure(given, args, figures)
    report.finish(figures, args.out)


if __name__ == "__main__":
    main()
