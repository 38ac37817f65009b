"""Damaged and hostile copies of small files: bytes, and the parts of zip, JSON and pickle files.

Plain NumPy: an input is a function of (seeds, number), so that a number alone repeats it. A package
such as hypothesis would shrink inputs, but not make better ones: files are no structures that it
knows.
"""

from __future__ import annotations

import io
import json
import pickletools
import struct
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

LARGEST = 2**20  # bytes of an input
_NUMBERS = (0, 1, -1, 2, 255, 65535, 10**6, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**63 - 1)
_VALUES = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), 0.5, "", "0",
    "x", "../../x", "\x00\x1b[2J", "\ud800", "9" * 5000, "x" * 100_000, [], [[]], {}, {"": {}},
)  # fmt: skip


def mutated(seeds: Sequence[bytes], number: int) -> bytes:
    """Input `number`, made of one of `seeds` by one to three changes."""
    rng = np.random.default_rng(number)
    data = seeds[number % len(seeds)]
    for _ in range(rng.integers(1, 4)):
        data = _mutated_once(data, seeds, rng)[:LARGEST]
    return data


def _mutated_once(data: bytes, seeds: Sequence[bytes], rng: np.random.Generator) -> bytes:
    structured = [change for starts, change in _STRUCTURES if data.startswith(starts)]
    if structured and rng.random() < 0.6:
        try:
            return structured[0](data, seeds, rng)
        except (ValueError, IndexError, KeyError, OverflowError, zipfile.BadZipFile, struct.error):
            pass  # an earlier change broke the structure, or the seed only begins like one
        except (NotImplementedError, RuntimeError, EOFError, RecursionError):
            pass
    return _PLAIN[rng.integers(len(_PLAIN))](data, seeds, rng)


def _place(data: bytes, rng: np.random.Generator) -> int:
    return int(rng.integers(len(data) + 1))


def _piece(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    """A short or long range of the data."""
    start = _place(data, rng)
    return start, min(len(data), start + int(2 ** rng.uniform(0, 12)))


def _flip_bits(data, seeds, rng):
    out = bytearray(data)
    for at in rng.integers(max(len(out), 1), size=rng.integers(1, 9)) if out else ():
        out[at] ^= 1 << int(rng.integers(8))
    return bytes(out)


def _cut(data, seeds, rng):
    return data[: _place(data, rng)]


def _remove(data, seeds, rng):
    start, end = _piece(data, rng)
    return data[:start] + data[end:]


def _inflate(data, seeds, rng):
    """Another number, in one of the usual sizes and orders or as text, over what is there."""
    number = int(_NUMBERS[rng.integers(len(_NUMBERS))])
    size = int(2 ** rng.integers(4))
    raw = (number % 2 ** (8 * size)).to_bytes(size, ("little", "big")[rng.integers(2)])
    digits = [i for i, byte in enumerate(data[:20_000]) if 48 <= byte < 58]
    if digits and rng.random() < 0.3:
        at = digits[rng.integers(len(digits))]
        return data[:at] + str(number).encode() + data[at + 1 :]
    at = _place(data, rng)
    return data[:at] + raw + data[at + size :]


def _repeat(data, seeds, rng):
    start, end = _piece(data, rng)
    times = int(2 ** rng.uniform(0, 14))
    times = min(times, LARGEST // max(end - start, 1))
    return data[:start] + data[start:end] * times + data[end:]


def _splice(data, seeds, rng):
    other = seeds[rng.integers(len(seeds))]
    start, end = _piece(other, rng)
    at = _place(data, rng)
    skipped = (end - start) * int(rng.integers(2))  # over what is there, or between
    return data[:at] + other[start:end] + data[at + skipped :]


def _zip_part(data, seeds, rng):
    """One member of an archive changed, left out, named otherwise, doubled or compressed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    chosen = int(rng.integers(len(members)))
    kind = int(rng.integers(10))
    name, content = members[chosen]
    if kind < 6:
        members[chosen] = name, _mutated_once(content, [*seeds, content], rng)
    elif kind == 6:
        del members[chosen]
    elif kind == 7:
        members[chosen] = _flip_bits(name.encode(), seeds, rng).decode("latin1"), content
    elif kind == 8:
        members.append((name, _flip_bits(content, seeds, rng)))
    compression = zipfile.ZIP_DEFLATED if kind == 9 else zipfile.ZIP_STORED
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for member, content in members:
            archive.writestr(zipfile.ZipInfo(member), content, compression)
    return out.getvalue()


def _json_part(data, seeds, rng):
    """One value or key of a JSON text changed, or nested deeply."""
    value = json.loads(data)
    if rng.random() < 0.05:
        levels = int(2 ** rng.uniform(5, 18))
        return b"[" * levels + data + b"]" * levels
    nodes: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        node = waiting.pop()
        keys = range(len(node)) if isinstance(node, list) else list(node)
        for key in keys:
            nodes.append((node, key))
            if isinstance(node[key], (list, dict)):
                waiting.append(node[key])
    if not nodes:
        return json.dumps(_VALUES[rng.integers(len(_VALUES))]).encode()
    node, key = nodes[rng.integers(len(nodes))]
    other_node, other_key = nodes[rng.integers(len(nodes))]
    kind = int(rng.integers(8))
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[str(_VALUES[rng.integers(len(_VALUES))])] = node.pop(key)
    elif kind == 2:
        node[key] = json.loads(json.dumps(other_node[other_key]))
    else:
        node[key] = _VALUES[rng.integers(len(_VALUES))]
    return json.dumps(value).encode()


def _safetensors_part(data, seeds, rng):
    """The header changed as JSON, its length told rightly."""
    (length,) = struct.unpack("<Q", data[:8])
    if data[8:9] != b"{" or length > len(data):
        raise ValueError("no safetensors file")
    header = _json_part(data[8 : 8 + length], seeds, rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _pickle_part(data, seeds, rng):
    """Instructions of a pickle left out, doubled, repeated, exchanged or taken from elsewhere."""
    starts = [at for _, _, at in pickletools.genops(data)]
    if len(starts) < 3:
        raise ValueError("no pickle to change")
    first, second = sorted(int(i) for i in rng.integers(1, len(starts) - 1, size=2))
    second = min(second, first + int(2 ** rng.uniform(0, 6)))
    start, end = starts[first], starts[second + 1]
    chosen = data[start:end]
    place = starts[int(rng.integers(1, len(starts)))]
    kind = int(rng.integers(5))
    if kind == 0:
        return data[:start] + data[end:]
    if kind == 1:
        times = min(int(2 ** rng.uniform(1, 16)), 2**19 // len(chosen) + 1)
        return data[:start] + chosen * times + data[end:]
    if kind == 2:
        return data[:place] + chosen + data[place:]
    code = _INSTRUCTIONS[rng.integers(len(_INSTRUCTIONS))]
    times = int(2 ** rng.uniform(0, 14)) if kind == 3 else 1
    return data[:place] + code * times + data[place:]


# Of every kind: containers, calls, memory, references, numbers, names.
_INSTRUCTIONS = (
    b"(", b"]", b"}", b")", b"\x8f", b"\x85", b"\x86", b"\x87", b"t", b"l", b"d", b"e", b"a", b"s",
    b"u", b"\x90", b"\x91", b"R", b"b", b"\x81", b"\x92", b"Q", b"0", b"1", b"2", b"N", b"\x88",
    b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"\x94", b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f",
    b"\x8b\xff\xff\xff\x7f", b"X\xff\xff\xff\xff", b"T\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8,
    b"\x96" + b"\xff" * 7 + b"\x0f", b"\x8a\xff" + b"\x7f" * 255, b"G" + b"\x7f\xf0" + bytes(6),
    b"I" + b"9" * 5000 + b"\n", b"X\x01\x00\x00\x00x", b"X\x04\x00\x00\x00\xed\xa0\x80x",
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"ccollections\nOrderedDict\n", b"\x93", b"\x97",
    b"\x98",
)  # fmt: skip
_PLAIN = (_flip_bits, _flip_bits, _cut, _remove, _inflate, _inflate, _repeat, _splice)
_STRUCTURES = (
    (b"PK\x03\x04", _zip_part),
    ((b"{", b"[", b"\n{"), _json_part),
    (b"\x80", _pickle_part),
    (b"", _safetensors_part),
)
