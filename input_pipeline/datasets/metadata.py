"""Image files without their metadata, for files whose metadata alone is damaged.

What a decoder needs stays, and EXIF where it is whole, for the orientation; texts, colour profiles
and the like go. Nothing is decoded.
"""

from __future__ import annotations

import struct
import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DATA = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_WEBP_KEPT = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_TIFF_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_TIFF_TEXTS = (269, 270, 271, 272, 282, 283, 285, 296, 305, 306, 315, 316)
_TIFF_FIRST_METADATA = 700  # XMP; what decoders need has smaller numbers


def without_metadata(content: bytes) -> bytes | None:
    """The same image without metadata; None: not a PNG, JPEG, WebP or TIFF that can be parsed."""
    try:
        if content.startswith(_PNG):
            return _png(content)
        if content.startswith(b"\xff\xd8"):
            return _jpeg(content)
        if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
            return _webp(content)
        if content[:4] in _TIFF_BYTE_ORDERS:
            return _tiff(content)
    except (struct.error, IndexError):  # the structure itself is damaged
        pass
    return None


def _png(content: bytes) -> bytes:
    kept, at = [_PNG], len(_PNG)
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        kind, chunk = content[at + 4 : at + 8], content[at : at + 12 + length]
        whole = chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
        # Damage of the image itself stays for the decoder to find.
        if kind in _PNG_DATA or (kind == b"eXIf" and whole):
            kept.append(chunk)
        at += 12 + length
    return b"".join(kept)


def _jpeg(content: bytes) -> bytes:
    kept, at = [content[:2]], 2
    while content[at + 1] != 0xDA:  # up to the scan
        if content[at] != 0xFF:
            return b"".join(kept) + content[at:]
        if content[at + 1] == 0xFF:  # padding
            at += 1
            continue
        (length,) = struct.unpack_from(">H", content, at + 2)
        segment = content[at : at + 2 + length]
        marker = segment[1]
        # JFIF and Adobe say how colours are stored.
        is_metadata = 0xE1 <= marker <= 0xEF and marker != 0xEE
        if not (is_metadata or marker == 0xFE) or segment[4:10] == b"Exif\0\0":
            kept.append(segment)
        at += 2 + length
    return b"".join(kept) + content[at:]


def _webp(content: bytes) -> bytes:
    kept, at = [], 12
    while at + 8 <= len(content):
        (length,) = struct.unpack_from("<I", content, at + 4)
        end = at + 8 + length + length % 2
        if content[at : at + 4] in _WEBP_KEPT:
            kept.append(content[at:end])
        at = end
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _tiff(content: bytes) -> bytes:
    """Gives entries of metadata in the first directory type 0, which readers pass over."""
    order, patched = _TIFF_BYTE_ORDERS[content[:4]], bytearray(content)
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from(f"{order}H", content, at)
        if tag in _TIFF_TEXTS or tag >= _TIFF_FIRST_METADATA:
            patched[at + 2 : at + 4] = b"\0\0"
    return bytes(patched)
