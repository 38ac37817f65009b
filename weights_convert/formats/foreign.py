"""What a file is that is no checkpoint: what downloads leave behind, and other programs' formats."""

from __future__ import annotations

import re

_POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\n.*?^size ([0-9]{1,20})$",
                      re.DOTALL | re.MULTILINE)  # fmt: skip
# A map of up to 15 or of more entries, whose first key is short text.
_MSGPACK = re.compile(rb"(?:[\x81-\x8f]|\xde..)[\xa1-\xbf]", re.DOTALL)
_ARCHIVES = (
    (b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"), (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"\x28\xb5\x2f\xfd", "zstd"), (b"Rar!", "rar"),
)  # fmt: skip
_OTHERS = (
    (b"\x93NUMPY", "a NumPy array (.npy); give a PyTorch checkpoint or .safetensors"),
    (b"\x89HDF\r\n", "an HDF5 file, as of Keras; export it to PyTorch or .safetensors"),
    (b"GGUF", "a GGUF file; give the .safetensors that it was made of"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
)


def foreign(head: bytes, size: int) -> str | None:
    """What a file of `size` bytes is, by its first 1024, and a remedy; None: maybe a checkpoint."""
    if size == 0:
        return "empty; download it again"
    if head.startswith(b"version https://git-lfs"):
        found = _POINTER.match(head)
        of = f" of {int(found.group(1)):,} bytes" if found else ""
        return f"a Git LFS pointer{of}, not the file; run `git lfs pull` where it was cloned"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "a web page, not weights; download the file itself (often the link named raw, or one "
            "that needs a login)"
        )
    if head[8:9] == b"{" and b"\x00" in head[:8]:
        return None  # the length of a safetensors header may look like anything
    if text.startswith((b"{", b"[")) and b"\x00" not in head[:64]:
        if b'"weight_map"' in head or b'"metadata"' in head:
            return "the index of weights in several files; give the folder that holds them"
        return "JSON, not weights; give the file of weights, or the folder that holds both"
    for start, name in _ARCHIVES:
        if head.startswith(start):
            return f"an archive ({name}); unpack it, and give the checkpoint in it"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it, and give the checkpoint in it"
    for start, name in _OTHERS:
        if head.startswith(start):
            return name
    if _MSGPACK.match(head):
        return "a msgpack file, as of Flax; export it to PyTorch or .safetensors"
    if not head.strip(b"\x00"):
        return "zeros at its beginning; the download was not completed"
    return None
