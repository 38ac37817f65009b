"""What a program needs and how long it takes on a chip, from its compiler and its makers' numbers.

TPUs: the compiler's own estimate of cycles, plus kernels, which it does not estimate, plus nothing
for collectives, which are listed apart: they overlap with computing. GPUs: their compiler estimates
nothing; the time is that of all products at the peak and all bytes at full bandwidth, one after the
other, which is seldom reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from clipseg_jax.compile import hlo
from clipseg_jax.compile.topologies import Chip

_VECTOR = 1024  # numbers of a vector instruction


class Cost(NamedTuple):
    """A compiled program on one of its devices.

    Attributes:
      devices: that run it.
      images: of one call, over all devices.
      arguments, temporaries, code: bytes of memory, next to `memory` that the chip has; the result
        takes the place of donated arguments.
      flops: of products, of the whole program divided by the devices.
      bytes: read and written.
      collectives: kind -> (count, bytes).
      seconds: see above; `kernel_seconds` of them are kernels'.
      collective_seconds: of their bytes at the full speed of the chip's links.
      floor: seconds of the products at the peak.
      operations: the costliest, (name, share of the time).
    """

    devices: int
    images: int
    arguments: int
    temporaries: int
    code: int
    memory: int
    flops: float
    bytes: float
    collectives: Mapping[str, tuple[float, float]]
    seconds: float
    kernel_seconds: float
    collective_seconds: float
    floor: float
    operations: tuple[tuple[str, float], ...]

    @property
    def needed(self) -> int:
        """Bytes of a device's memory."""
        return self.arguments + self.temporaries + self.code

    @property
    def images_per_second(self) -> float:
        """Over all devices."""
        return self.images / self.seconds

    @property
    def share_of_peak(self) -> float:
        """Floor / estimate, 0 to 1."""
        return self.floor / self.seconds


def cost_of(compiled: Any, chip: Chip, *, flops: float, images: int, devices: int) -> Cost:
    """The cost of a compiled program with `flops` of products over all devices."""
    module = hlo.parse(compiled.as_text())
    memory = compiled.memory_analysis()
    result = memory.output_size_in_bytes - memory.alias_size_in_bytes
    of_collectives = hlo.collectives(module)
    moved = hlo.memory_bytes(module)
    own_flops = flops / devices

    def seconds_of(each: hlo.Instruction) -> float:
        if each.kernel:
            return _kernel_seconds(each.kernel, chip)
        return each.cycles / chip.clock if chip.clock else 0.0

    operations = hlo.by_operation(module, seconds_of)
    seconds = sum(cost for _, cost in operations)
    if not chip.clock:
        seconds = own_flops / chip.flops + moved / chip.bandwidth
        operations = hlo.by_operation(module, lambda each: each.bytes / chip.bandwidth)
    kernels = sum(
        times * _kernel_seconds(each.kernel, chip) for each, times in module.run() if each.kernel
    )
    return Cost(
        devices=devices,
        images=images,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes + max(result, 0),
        code=memory.generated_code_size_in_bytes,
        memory=chip.memory,
        flops=own_flops,
        bytes=moved,
        collectives=of_collectives,
        seconds=seconds,
        kernel_seconds=kernels,
        collective_seconds=sum(total for _, total in of_collectives.values()) / chip.links,
        floor=own_flops / chip.flops,
        operations=tuple((name, cost / seconds) for name, cost in operations[:10]),
    )


def _kernel_seconds(kernel: hlo.Kernel, chip: Chip) -> float:
    """Of a kernel by what it states: products and vector instructions in turn, or bytes if longer.

    Of this project's kernels on v5e within 10 % of the final schedules of their compiler.
    """
    products = kernel.flops / chip.flops
    vectors = kernel.vectors / _VECTOR / chip.clock if chip.clock else 0.0
    return max(products + vectors, kernel.bytes / chip.bandwidth)
