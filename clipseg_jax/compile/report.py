"""What `clipseg_jax.compile` prints of a program, and the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipseg_jax.compile.cost import Cost
from clipseg_jax.compile.programs import TooLarge, Variant


def lines(name: str, result: Cost | TooLarge) -> list[str]:
    """A program in a few lines of text."""
    if isinstance(result, TooLarge):
        return [f"{name}: does not fit: {_missing(result)}"]
    kinds = ", ".join(
        f"{kind} {count:.0f} x, {_size(total)}"
        for kind, (count, total) in sorted(result.collectives.items())
    )
    kernels = f", {_time(result.kernel_seconds)} of it kernels" if result.kernel_seconds else ""
    out = [
        f"{name}: {_count(result.images, 'image')} on {_count(result.devices, 'device')}",
        f"  memory       {_size(result.needed)} of {_size(result.memory)} "
        f"(arguments {_size(result.arguments)}, temporaries {_size(result.temporaries)}, "
        f"code {_size(result.code)})",
        f"  work         {result.flops / 1e12:.3g} TFLOP, {_size(result.bytes)} read and written, "
        "of a device",
        f"  time         {_time(result.seconds)} estimated{kernels}; "
        f"{result.images_per_second:.4g} images/s",
        f"  peak         {result.share_of_peak:.0%} ({_time(result.floor)} at the peak)",
    ]
    if kinds:
        out.append(f"  collectives  {kinds}; {_time(result.collective_seconds)} on the links")
    out.append("  costliest operations:")
    out += [f"    {share:6.1%}  {_short(op)}" for op, share in result.operations]
    return out


def advice(variants: Sequence[Variant]) -> list[str]:
    """What was tried to make a program fit."""
    out = []
    for options, result in variants:
        if isinstance(result, TooLarge):
            out.append(f"  {options}: {_missing(result)}")
        else:
            out.append(
                f"  {options}: fits, {_size(result.needed)} of {_size(result.memory)}, "
                f"{result.images_per_second:.4g} images/s"
            )
    return out


def record(name: str, result: Cost | TooLarge, variants: Sequence[Variant] = ()) -> dict[str, Any]:
    """A program as JSON has it; bytes, FLOPs and seconds are of a device."""
    out: dict[str, Any] = {"program": name, "fits": isinstance(result, Cost), **result._asdict()}
    if isinstance(result, Cost):
        out |= {
            "images_per_second": result.images_per_second,
            "share_of_peak": result.share_of_peak,
            "operations": [{"name": op, "share": share} for op, share in result.operations],
            "collectives": {
                kind: {"count": count, "bytes": total}
                for kind, (count, total) in result.collectives.items()
            },
        }
    if variants:
        out["tried"] = [record(options, tried) for options, tried in variants]
    return out


def _missing(result: TooLarge) -> str:
    if result.needed is None:
        return f"it needs more than the {_size(result.memory)} of a device"
    over = result.needed - result.memory
    return f"{_size(result.needed)} of {_size(result.memory)}, {_size(max(over, 0))} too much"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(count: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 2**10:.3g} KiB"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _short(name: str) -> str:
    """An operation's name without the wrappers that all have."""
    return name if len(name) <= 84 else f"...{name[-81:]}"
