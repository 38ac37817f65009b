"""The number of scans in a JPEG, each of which a decoder takes over all pixels.

A scan without data has a dozen bytes, and libjpeg counts none: a small file may take hours.
"""

from __future__ import annotations

import re

from PIL import Image, ImageFile

# cjpeg, jpegtran and libtiff stop at as many; encoders write some 10.
_MOST_SCANS = 100
_MOST_PIXELS_OF_SCANS = 4 * 10**9
# Within a scan's data 0xff is followed by 0 or by a restart marker.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_SEQUENTIAL_FRAMES = (0xC0, 0xC1, 0xC9)  # their scans are over some components each, or over all


def check_scans(image: Image.Image) -> None:
    """Reads through the file of a JPEG that Pillow opened; other images are passed over.

    Raises:
      ValueError: more scans than real files have, or more than 20 of a giant image.
    """
    if not isinstance(image, ImageFile.ImageFile) or image.format not in ("JPEG", "MPO"):
        return
    if image.fp is None:  # decoded already
        return
    most = min(_MOST_SCANS, _MOST_PIXELS_OF_SCANS // max(image.width * image.height, 1))
    position = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(position)
    if _scans(content, most) > most:
        raise ValueError(f"a JPEG of more than {most} scans; save it again")


def _scans(content: bytes, most: int) -> int:
    """Counts to one more than `most`; of the first image, if others follow as in an MPO."""
    count = at = 0
    all_in_one = None  # the number of components
    while count <= most and (marker := _MARKER.search(content, at)):
        kind, at = content[marker.end() - 1], marker.end()
        if kind == _END:
            break
        if kind in _SEQUENTIAL_FRAMES:
            all_in_one = content[at + 7 : at + 8]
        count += kind == _SCAN
        if kind == _SCAN and count == 1 and content[at + 2 : at + 3] == all_in_one:
            break  # no decoder takes another; most files end here
        if kind != _START:
            at += int.from_bytes(content[at : at + 2], "big")
    return count
