"""The header of a safetensors file: every byte of the data belongs to one tensor, by one name."""

from __future__ import annotations

import tracemalloc

import pytest

import weights_convert
from weights_convert import CheckpointError

DATA = bytes(range(16))


def entry(begin, end, dtype="U8"):
    """A vector's entry in the header."""
    return f'{{"dtype": "{dtype}", "shape": [{end - begin}], "data_offsets": [{begin}, {end}]}}'


def stored(path, tensors, data=DATA):
    """Writes a file with a header of the (name, entry) pairs `tensors`."""
    header = "{" + ", ".join(f'"{name}": {text}' for name, text in tensors) + "}"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data)
    return path


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ([("a", entry(0, 16)), ("b", entry(0, 16))], "b shares bytes"),
        ([("a", entry(0, 16)), ("b", entry(4, 8))], "b shares bytes"),
        ([("a", entry(0, 4)), ("b", entry(8, 16))], "bytes 4 to 8 .* no tensor"),
        ([("a", entry(4, 16))], "bytes 0 to 4 .* no tensor"),
        ([("a", entry(0, 12))], "bytes 12 to 16 .* no tensor"),
        ([("a", entry(0, 8)), ("a", entry(8, 16))], "'a' is listed twice"),
        ([("a", entry(0, 16)[:-1] + ', "shape": [16]}')], "'shape' is listed twice"),
    ],
)
def test_bytes_of_several_tensors_or_of_none(tensors, said, tmp_path):
    with pytest.raises(CheckpointError, match=rf"a\.safetensors.*{said}"):
        weights_convert.read(stored(tmp_path / "a.safetensors", tensors))


def test_tensors_in_any_order_of_their_bytes(tmp_path):
    tensors = [("b", entry(8, 16)), ("none", entry(8, 8)), ("a", entry(0, 8))]
    arrays = weights_convert.read_state_dict(stored(tmp_path / "a.safetensors", tensors))
    values = {name: bytes(array) for name, array in arrays.items()}
    assert values == {"b": DATA[8:], "none": b"", "a": DATA[:8]}


def test_booleans_of_the_same_bytes_are_not_copied(tmp_path):
    size = 2**20
    tensors = [(str(i), entry(0, size, "BOOL")) for i in range(64)]
    path = stored(tmp_path / "a.safetensors", tensors, bytes(size))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="shares bytes"):
            weights_convert.read(path)
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()
