"""The strict engine: a table of rows (PyTorch key, our path, transform), used in both directions.

Templates are literal but for `{name}` (digits) and `{name:regex}`; equal names stand for equal text
on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from weights_convert.reader import CheckpointError

_SHOWN = 40


class Transform(NamedTuple):
    """How an array changes from PyTorch's layout to ours, and back."""

    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]


SAME = Transform(lambda x: x, lambda x: x)
LINEAR = Transform(lambda x: x.T, lambda x: x.T)  # (out, in) <-> (in, out)
CONV = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # <-> HWIO
CONV_1X1 = Transform(lambda x: x.reshape(x.shape[:2]), lambda x: x[..., None, None])
HEAD_AXES = Transform(lambda x: x.reshape(x.shape[-1:]), lambda x: x.reshape(1, 1, -1))  # (1, 1, d)
HEAD_AXIS = Transform(lambda x: x.reshape(x.shape[-2:]), lambda x: x[None])  # (1, t, d)


class Rule(NamedTuple):
    """One row of a table."""

    left: str
    right: str
    transform: Transform = SAME


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)(?::([^}]*))?\}", template)
    out, seen = re.escape(parts[0]), set()
    for name, kind, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        out += f"(?P={name})" if name in seen else f"(?P<{name}>{kind or '[0-9]+'})"
        seen.add(name)
        out += re.escape(text)
    return re.compile(out)


class KeyMap:
    """Both directions of a table."""

    def __init__(self, rules: Iterable[Rule]):
        self.rules = tuple(rules)
        self._left = [_pattern(rule.left) for rule in self.rules]
        self._right = [_pattern(rule.right) for rule in self.rules]

    def right(self, key: str) -> tuple[str, Transform] | None:
        """(our path, transform) of a PyTorch key; None if no row has it."""
        return self._map(key, self._left, lambda rule: rule.right)

    def left(self, path: str) -> tuple[str, Transform] | None:
        """(PyTorch key, transform) of our path; None if no row has it."""
        return self._map(path, self._right, lambda rule: rule.left)

    def _map(
        self, key: str, patterns: list[re.Pattern[str]], other: Callable[[Rule], str]
    ) -> tuple[str, Transform] | None:
        found = [(m, r) for p, r in zip(patterns, self.rules, strict=True) if (m := p.fullmatch(key))]
        if not found:
            return None
        if len(found) > 1:
            rows = ", ".join(rule.left for _, rule in found)
            raise AssertionError(f"key {key} fits several rows: {rows}")
        match, rule = found[0]
        values = match.groupdict()
        name = re.sub(r"\{(\w+)(?::[^}]*)?\}", lambda m: values[m.group(1)], other(rule))
        return name, rule.transform

    def to_ours(
        self, arrays: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], source: str
    ) -> dict[str, np.ndarray]:
        """Arrays by our paths, each of the wanted shape; views where possible.

        Raises:
          CheckpointError: lists every missing (-), unexpected (+) and wrongly shaped (~) key; then
            nothing is returned.
        """
        made: dict[str, np.ndarray] = {}
        problems = []
        for key, array in arrays.items():
            mapped = self.right(key)
            if mapped is None or mapped[0] not in wanted:
                problems.append(f"+ {key} {array.shape}: unexpected")
                continue
            path, transform = mapped
            shape = wanted[path]
            target = np.broadcast_to(np.float32(0), shape)  # no memory: all strides are zero
            expected = transform.inverse(target).shape
            if array.shape != expected:
                problems.append(f"~ {key}: shape {array.shape}, expected {expected}")
            made[path] = transform.forward(array) if array.shape == expected else array
        for path in wanted:
            if path not in made:
                key = (self.left(path) or (f"(ours) {path}",))[0]
                problems.append(f"- {key}: missing")
        if problems:
            problems.sort(key=lambda line: (line[0] != "-", line[0] != "+", line))
            hidden = len(problems) - _SHOWN
            listed = "\n  ".join(problems[:_SHOWN])
            more = f"\n  and {hidden} more" if hidden > 0 else ""
            raise CheckpointError(
                f"{source} does not fit the model; nothing was loaded:\n  {listed}{more}\n"
                "Check that it is the checkpoint of this model, whole and unchanged."
            )
        return {path: made[path] for path in wanted}

    def to_torch(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays by PyTorch keys, in PyTorch's layout."""
        out = {}
        for path, array in arrays.items():
            mapped = self.left(path)
            if mapped is None:
                raise AssertionError(f"no row of the table gives {path}")
            key, transform = mapped
            out[key] = transform.inverse(array)
        return out

    def rename(self, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
        """Left names to right names, and the keys that no row has."""
        out, unknown = {}, []
        for key, array in arrays.items():
            mapped = self.right(key)
            if mapped is None:
                unknown.append(key)
            else:
                out[mapped[0]] = mapped[1].forward(array)
        return out, unknown
