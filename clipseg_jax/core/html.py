"""HTML pages in one file, readable offline: nothing outside the file is loaded."""

from __future__ import annotations

import base64
import hashlib
import html
import io

import numpy as np
from PIL import Image

from clipseg_jax.core.files import json_text
from input_pipeline.text_lists import escaped

# Shared by all pages; `--line`, `--soft` and `--card` are for borders, remarks and boxes.
_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --back: #ffffff; --card: #f4f5f7;
  --line: #d0d4da; --soft: #5b616b; --accent: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --text: #e7e9ec; --back: #16181b; --card: #212429;
  --line: #3c424a; --soft: #a3abb5; --accent: #7db8f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 90rem; color: var(--text);
  background: var(--back); font: 16px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 1.5rem 0 .5rem; }
a { color: var(--accent); }
img { max-width: 100%; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
"""


def page(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole HTML page, light or dark as the reader's system is.

    The page itself forbids the browser to load anything and to run any script but `script`.

    Args:
      title: plain text; is escaped.
      body: HTML, in which all that comes from outside went through `escape`.
      style: CSS after the shared one.
      script: JavaScript, run after the body is there.
    """
    assert "</" not in style + script, "would end the element"
    rules = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        rules += f"; script-src 'sha256-{digest}'"
        script = f"<script>{script}</script>\n"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{rules}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n"
        f"<body>\n{body}\n{script}</body>\n</html>\n"
    )


def escape(text: object) -> str:
    """`text` for the inside of an element or of a quoted attribute, in one line.

    Control characters and bytes of file names that are no Unicode become backslash escapes.
    """
    return html.escape(escaped(str(text)))


def json_block(name: str, value: object) -> str:
    """An element of id `name` that holds `value` as JSON, for the page's script."""
    text = json_text(value).replace("<", "\\u003c")
    return f'<script type="application/json" id="{escape(name)}">{text}</script>'


def image_uri(pixels: np.ndarray, format: str = "JPEG") -> str:
    """The address of an image (h, w, 3) or (h, w) uint8 that holds the image itself.

    Args:
      pixels: RGB or grey.
      format: "JPEG", "PNG" or "WEBP".
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, quality=80)
    return data_uri(file.getvalue(), f"image/{format.lower()}")


def data_uri(content: bytes, kind: str) -> str:
    """The address that holds a file's content, of a type such as "image/png"."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
