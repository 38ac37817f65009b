"""What a compiled program costs, read from its HLO text: cycles, bytes, kernels, collectives.

The TPU's compiler writes its estimate of each operation's cycles into the text. The sums here
follow the calls from the entry on: a loop's body counts with its trips, of a conditional the
dearest branch. XLA's own sums take every body once.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

_BYTES = {
    **{"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4},
    **{"f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8},
}
COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
    "collective-broadcast",
)
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")


class Kernel(NamedTuple):
    """What a kernel's author states of its work: XLA estimates no cycles of it."""

    flops: float  # of the matrix unit
    vectors: float  # numbers that pass the vector unit
    bytes: float


class Instruction(NamedTuple):
    """One line of HLO."""

    name: str
    opcode: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]  # of the result; several of a tuple
    operands: tuple[str, ...]
    text: str

    @property
    def bytes(self) -> int:
        """Of the result."""
        return sum(_BYTES.get(kind, 4) * math.prod(shape) for kind, shape in self.shapes)

    @property
    def cycles(self) -> float:
        """The compiler's estimate; 0 where it makes none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.text)
        return float(found[1]) if found else 0.0

    @property
    def op_name(self) -> str:
        """The operation of JAX that it stems from, with all transformations around it."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else ""

    @property
    def frame(self) -> int:
        """The number of the place in Python that it stems from; 0: it is not known."""
        found = re.search(r"stack_frame_id=(\d+)", self.text)
        return int(found[1]) if found else 0

    @property
    def kernel(self) -> Kernel | None:
        """The stated work of a Pallas kernel."""
        if self.opcode != "custom-call" or '"cost_estimate"' not in self.text:
            return None
        stated = (
            re.search(rf'"{key}":"(\d+)"', self.text)
            for key in ("flops", "transcendentals", "bytes_accessed")
        )
        return Kernel(*(float(found[1]) if found else 0.0 for found in stated))


class Module(NamedTuple):
    """A program's computations by name, each a list of instructions."""

    computations: dict[str, list[Instruction]]
    entry: str
    places: dict[int, str]  # of frames in this project's code

    def source(self, each: Instruction) -> str:
        """Where an instruction stems from: place in the code, operation, whether a gradient's."""
        operation = each.op_name.rpartition("/")[2] or each.opcode
        gradient = ", gradient" if "transpose(" in each.op_name else ""
        place = self.places.get(each.frame, "")
        return f"{place} {operation}{gradient}".strip()

    def run(self) -> Iterator[tuple[Instruction, float]]:
        """Every instruction that is executed, and how often."""
        yield from self._run(self.entry, 1.0)

    def _run(self, name: str, times: float) -> Iterator[tuple[Instruction, float]]:
        for each in self.computations.get(name, ()):
            if each.opcode == "while":
                body, condition = _called(each, "body"), _called(each, "condition")
                yield from self._run(body, times * self.trips(each, condition, body))
            elif each.opcode == "conditional":
                branches = [list(self._run(branch, times)) for branch in _branches(each)]
                yield from max(branches, key=_weight, default=[])
            elif each.opcode in ("call", "async-start") and not each.cycles:
                yield from self._run(_one(_CALLED, each.text), times)
            else:
                yield each, times

    def trips(self, loop: Instruction, condition: str, body: str) -> float:
        """How often a loop's body runs: its counter's bound by its step; 1 where it is unclear."""
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text):
            return float(found[1])
        bounds = self._integers(condition)
        compared = [e for e in self.computations.get(condition, ()) if e.opcode == "compare"]
        for each in compared:
            bound = next((bounds[name] for name in each.operands if name in bounds), None)
            if bound is not None and "direction=LT" in each.text:
                return max(math.ceil(bound / self._step(condition, body, each)), 1)
        return 1.0

    def _integers(self, name: str) -> dict[str, int]:
        return {
            each.name: int(found[1])
            for each in self.computations.get(name, ())
            if each.opcode == "constant" and (found := re.search(r"constant\((-?\d+)\)", each.text))
        }

    def _step(self, condition: str, body: str, compare: Instruction) -> int:
        """What the body adds to the counter: 1, or more where the compiler unrolled it."""
        by_name = {each.name: each for each in self.computations.get(condition, ())}
        index = None
        for name in compare.operands:
            if name in by_name and (found := re.search(r"index=(\d+)", by_name[name].text)):
                index = int(found[1])
        instructions = self.computations.get(body, ())
        if index is None or not instructions:
            return 1
        inside = {each.name: each for each in instructions}
        root = instructions[-1]
        if index >= len(root.operands):
            return 1
        constants, next_value = self._integers(body), inside.get(root.operands[index])
        if next_value is not None and next_value.opcode in ("add", "fusion"):
            steps = [constants[name] for name in next_value.operands if name in constants]
            if len(steps) == 1 and steps[0] > 0:
                return steps[0]
        return 1


def parse(text: str) -> Module:
    """The computations of HLO text, as `Compiled.as_text()` has it."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[1]
            computations[current] = []
            if line.startswith("ENTRY"):
                entry = current
        elif line.startswith("}"):
            current = ""
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current].append(_instruction(found[1], found[2]))
    return Module(computations, entry, _places(text))


def collectives(module: Module) -> dict[str, tuple[float, float]]:
    """Kind -> how many are executed, and the bytes of their results together."""
    sums: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for each, times in module.run():
        for inner in (each, *module.computations.get(_one(_CALLED, each.text), ())):
            kind = inner.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                sums[kind][0] += times
                sums[kind][1] += times * inner.bytes
    return {kind: (count, total) for kind, (count, total) in sums.items()}


def memory_bytes(module: Module) -> float:
    """Bytes that are read and written by all that is executed, as if nothing were cached."""
    total = 0.0
    sizes = {each.name: each.bytes for body in module.computations.values() for each in body}
    free = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "iota")
    for each, times in module.run():
        if each.opcode not in free and not each.opcode.endswith(("-start", "-done")):
            total += times * (each.bytes + sum(sizes.get(name, 0) for name in each.operands))
    return total


def by_operation(
    module: Module, seconds: Callable[[Instruction], float]
) -> list[tuple[str, float]]:
    """Seconds by where operations stem from (`Module.source`), the costliest first."""
    sums: dict[str, float] = collections.defaultdict(float)
    for each, times in module.run():
        if (cost := seconds(each)) > 0:
            sums[module.source(each)] += times * cost
    return sorted(sums.items(), key=lambda item: -item[1])


def _places(text: str) -> dict[int, str]:
    """The innermost place in this project's code of each frame, from the tables at the top."""

    def table(name: str, line: str) -> dict[int, list[str]]:
        found = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.M)
        lines = found[1].splitlines() if found else []
        rows = (re.match(rf"(\d+) {line}", each) for each in lines)
        return {int(row[1]): list(row.groups()[1:]) for row in rows if row}

    files = table("FileNames", r'"(.*)"')
    functions = table("FunctionNames", r'"(.*)"')
    locations = table("FileLocations", r"\{file_name_id=(\d+) function_name_id=(\d+) line=(\d+)")
    frames = table("StackFrames", r"\{file_location_id=(\d+) parent_frame_id=(\d+)")
    places: dict[int, str] = {}
    for frame in sorted(frames):
        location, parent = map(int, frames[frame])
        file, function, line = map(int, locations.get(location, (0, 0, 0)))
        path = files.get(file, [""])[0]
        parts = re.search(r"/(?:clipseg_jax|weights_convert)/((?:\w+/)*\w+\.py)$", path)
        if parts and "site-packages/flax" not in path:
            name = functions.get(function, [""])[0].rpartition("<locals>.")[2]
            places[frame] = f"{parts[1]}:{line} {name}"
        elif parent - 1 in places:  # the numbers of parents are one higher
            places[frame] = places[parent - 1]
    return places


def _instruction(name: str, rest: str) -> Instruction:
    end = _end_of_shape(rest)
    shape_text, call = rest[:end], rest[end:].lstrip()
    opcode, _, arguments = call.partition("(")
    shapes = tuple(
        (kind, tuple(int(n) for n in sizes.split(",") if n))
        for kind, sizes in _SHAPE.findall(shape_text)
        if kind in _BYTES
    )
    inside = arguments[: _closing(arguments)]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name, opcode.strip(), shapes, operands, rest)


def _end_of_shape(text: str) -> int:
    if not text.startswith("("):
        return text.find(" ")
    return 1 + _closing(text[1:]) + 1


def _closing(text: str) -> int:
    """Where the parenthesis closes that was open before `text`."""
    depth = 1
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i
    return len(text)


def _called(each: Instruction, what: str) -> str:
    return _one(re.compile(rf"{what}=%?([\w.\-]+)"), each.text)


def _branches(each: Instruction) -> list[str]:
    if found := re.search(r"branch_computations=\{([^}]*)\}", each.text):
        return [name.strip().lstrip("%") for name in found[1].split(",")]
    names = (_called(each, f"{which}_computation") for which in ("true", "false"))
    return [name for name in names if name]


def _one(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""


def _weight(branch: list[tuple[Instruction, float]]) -> float:
    return sum(times * (each.cycles or each.bytes * 1e-3) for each, times in branch)
