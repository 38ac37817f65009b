"""Pages in one file: what they hold, and that nothing of strangers gets out of its place."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from clipseg_jax.core.html import escape, image_uri, json_block, page

NASTY = "</script><script>alert(1)</script> \"'<b>&\n\x1b[31m\udcff"


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_a_page_is_whole_and_loads_nothing():
    text = page("A & B", "<h1>A</h1>", "h1 { color: red; }", "document.title = 'x';")
    tags = [tag for tag, _ in Elements(text).found]
    assert tags[:2] == ["html", "head"]
    assert "h1" in tags
    assert "<title>A &amp; B</title>" in text
    assert not re.search(r"https?://|src=|@import|url\(", text)
    digest = base64.b64encode(hashlib.sha256(b"document.title = 'x';").digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "script" not in page("A", "")


def test_text_of_strangers_stays_text():
    text = page(NASTY, f'<p title="{escape(NASTY)}">{escape(NASTY)}</p>{json_block("d", [NASTY])}')
    text.encode("utf-8")
    found = Elements(text).found
    assert [tag for tag, _ in found].count("script") == 1  # the block of JSON
    assert [tag for tag, _ in found].count("b") == 0
    stored = re.search(r'<script type="application/json" id="d">(.*)</script>', text)
    assert json.loads(stored[1]) == [NASTY]
    assert "\x1b" not in text


def test_a_script_cannot_end_its_element():
    with pytest.raises(AssertionError):
        page("A", "", script="'</script>'")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_images_are_held_by_their_address(format):
    pixels = np.full((5, 7, 3), (200, 30, 60), np.uint8)
    kind, _, data = image_uri(pixels, format).partition(";base64,")
    assert kind == f"data:image/{format.lower()}"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.format == format
    assert np.abs(np.asarray(image).astype(int) - pixels).max() < 12
