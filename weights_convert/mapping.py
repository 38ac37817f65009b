"""Key maps: tables of (left key, right key, transform), used in both directions and strictly.

Keys are templates: literal text, `{name}` for digits, and `{name:regex}`; a name stands for the
same text on both sides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from weights_convert.errors import CheckpointError

_PLACEHOLDER = re.compile(r"\{(\w+)(?::([^}]*))?\}")
Shape = tuple[int, ...]
_MOST_KEYS = 20_000  # of a state dict; the largest known has some 1,500
_MOST_LISTED = 2000  # in a message


def required_shape(stored: Mapping[str, np.ndarray], key: str, rank: int, source: str) -> Shape:
    """The shape of a stored array that determines a model's sizes.

    Raises:
      CheckpointError: it is missing or of another rank.
    """
    if key not in stored or stored[key].ndim != rank:
        raise CheckpointError(
            f"{source}: {key} is missing or not an array of {rank} axes; without it the sizes "
            "cannot be determined. Check that the checkpoint is complete"
        )
    return stored[key].shape


class Transform(NamedTuple):
    """How an array changes from the left layout to the right one, and back; views, no copies."""

    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]


SAME = Transform(lambda x: x, lambda x: x)
LINEAR = Transform(lambda x: x.T, lambda x: x.T)  # (out, in) <-> (in, out)
CONV = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # <-> HWIO
CONV_1X1 = Transform(lambda x: x.reshape(x.shape[:2]), lambda x: x[..., None, None])  # <-> (o, i)
CONV_1X1_LINEAR = Transform(lambda x: CONV_1X1.forward(x).T, lambda x: CONV_1X1.inverse(x.T))
HEAD_AXES = Transform(lambda x: x.reshape(x.shape[-1:]), lambda x: x[None, None])  # (1, 1, d) <-> d
ONE_AXIS = Transform(lambda x: x.reshape(()), lambda x: x.reshape(1))  # (1) <-> ()
# Patches flattened as (row, column, colour) <-> the kernel of a convolution.
PATCHES = Transform(
    lambda x: x.reshape(len(x), *2 * [math.isqrt(x.shape[1] // 3)], 3).transpose(0, 3, 1, 2),
    lambda x: x.transpose(0, 2, 3, 1).reshape(len(x), -1),
)
HEAD_AXIS = Transform(lambda x: x.reshape(x.shape[-2:]), lambda x: x[None])  # (1, t, d) <-> (t, d)


class Rule(NamedTuple):
    """One row of a key map."""

    left: str
    right: str
    transform: Transform = SAME


def linear(left: str, right: str, transform: Transform = LINEAR) -> list[Rule]:
    """Rules for the weight and the bias of a layer; `transform` is of the weight."""
    return [
        Rule(f"{left}.weight", f"{right}.kernel", transform),
        Rule(f"{left}.bias", f"{right}.bias"),
    ]


def layer_norm(left: str, right: str) -> list[Rule]:
    """Rules for a layer norm."""
    return [Rule(f"{left}.weight", f"{right}.scale"), Rule(f"{left}.bias", f"{right}.bias")]


def _pattern(template: str) -> re.Pattern[str]:
    parts = _PLACEHOLDER.split(template)
    out, seen = re.escape(parts[0]), set()
    for name, kind, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        out += f"(?P={name})" if name in seen else f"(?P<{name}>{kind or '[0-9]+'})"
        seen.add(name)
        out += re.escape(text)
    return re.compile(out)


class KeyMap:
    """A table of rules, for both directions."""

    def __init__(self, rules: Iterable[Rule]):
        self.rules = tuple(rules)
        self._left = [(_pattern(rule.left), rule.right, rule.transform) for rule in self.rules]
        self._right = [(_pattern(rule.right), rule.left, rule.transform) for rule in self.rules]

    def right(self, key: str) -> tuple[str, Transform] | None:
        """(right key, transform) of a left key; None if no rule matches."""
        return _only(key, self._left)

    def left(self, key: str) -> tuple[str, Transform] | None:
        """(left key, transform) of a right key; None if no rule matches."""
        return _only(key, self._right)

    def to_right(
        self, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Shape], source: str
    ) -> dict[str, np.ndarray]:
        """Arrays by right keys, which must be those of `shapes`; views where possible.

        Raises:
          CheckpointError: lists every missing (-), unexpected (+) and wrongly shaped (~) key.
        """
        _check_count(arrays, source)
        out: dict[str, np.ndarray] = {}
        problems = []
        for key, array in arrays.items():
            right, transform = self.right(key) or ("", SAME)
            if right not in shapes:
                problems.append(f"+ {key} {array.shape}: unexpected")
                continue
            # The expected shape on the left, from an array that takes no memory: its strides are 0.
            expected = transform.inverse(np.broadcast_to(np.float32(0), shapes[right])).shape
            if array.shape != expected:
                problems.append(f"~ {key}: shape {array.shape}, expected {expected}")
            out[right] = transform.forward(array) if array.shape == expected else array
        for right in shapes.keys() - out.keys():
            key, _ = self.left(right) or (right, SAME)
            problems.append(f"- {key}: missing")
        if problems:
            problems.sort(key=lambda line: ("-+~".index(line[0]), line))
            more = [f"and {len(problems) - _MOST_LISTED} more"] if problems[_MOST_LISTED:] else []
            listed = "\n  ".join(problems[:_MOST_LISTED] + more)
            raise CheckpointError(
                f"{source} does not fit the model; nothing was loaded:\n  {listed}\n"
                "Check that it is a checkpoint of this model, complete and unchanged."
            )
        return {right: out[right] for right in shapes}

    def to_left(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays by left keys, in the left layout.

        Raises:
          KeyError: a right key that no rule matches.
        """
        out = {}
        for right, array in arrays.items():
            mapped = self.left(right)
            if mapped is None:
                raise KeyError(right)
            out[mapped[0]] = mapped[1].inverse(array)
        return out

    def rename(self, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
        """Arrays by right keys in the right layout, and the left keys that no rule matches.

        An array whose rank does not fit its transform keeps its shape: `to_right` reports it.
        """
        _check_count(arrays, "the checkpoint")
        out, unknown = {}, []
        for key, array in arrays.items():
            mapped = self.right(key)
            if mapped is None:
                unknown.append(key)
                continue
            try:
                out[mapped[0]] = mapped[1].forward(array)
            except ValueError:
                out[mapped[0]] = array
        return out, unknown


def _check_count(arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Each key is compared with all rules: a hundred thousand would take minutes."""
    if len(arrays) > _MOST_KEYS:
        raise CheckpointError(
            f"{source} holds {len(arrays):,} arrays, far more than any model here; give the "
            "checkpoint of the model alone"
        )


def _only(
    key: str, rows: list[tuple[re.Pattern[str], str, Transform]]
) -> tuple[str, Transform] | None:
    """The other side's key and the transform, by the only row whose pattern matches."""
    matches = [(m, other, t) for p, other, t in rows if (m := p.fullmatch(key))]
    if not matches:
        return None
    if len(matches) > 1:
        raise AssertionError(f"key {key} matches several rules: {[m[1] for m in matches]}")
    match, other, transform = matches[0]
    return _PLACEHOLDER.sub(lambda m: match.group(m.group(1)), other), transform
