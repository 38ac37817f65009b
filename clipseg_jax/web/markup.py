"""The page's own HTML. Names come from strangers: every one is escaped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipseg_jax.core.html import escape, image_uri
from clipseg_jax.core.label_images import palette
from clipseg_jax.web.photos import Sample, shrunk
from clipseg_jax.web.results import Result, hex_colour, shares

_THUMBNAIL_PX = 96
# A click on an element with a number tells it to the server as `pick`.
PICK_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-index]');
  if (button) trigger('pick', {index: Number(button.dataset.index)});
});
"""


def legend(result: Result, labels: np.ndarray, chosen: int | None) -> str:
    """A button for each class with its colour and share, the largest first, background last.

    Args:
      result: whose classes.
      labels: (h, w), as they are shown.
      chosen: the class whose heat map is shown.
    """
    colours = palette(len(result.names))
    parts = shares(labels, len(result.names))

    def button(i: int, kind: str, inner: str) -> str:
        return (
            f'<button type="button" class="{kind}" data-index="{i}" '
            f'aria-pressed="{"true" if i == chosen else "false"}">'
            f'<span class="swatch" style="background:{hex_colour(colours[i])}"></span>'
            f'<span class="name">{escape(result.names[i])}</span>{inner}</button>'
        )

    def bar(i: int) -> str:
        part = f'<span class="bar"><span style="width:{100 * parts[i]:.1f}%"></span></span>'
        return f'{part}<span class="share">{percent(parts[i])}</span>'

    order = sorted(range(len(parts)), key=lambda i: (i == 0, -parts[i], i))
    rows = [button(i, "entry", bar(i)) for i in order if parts[i]]
    absent = [button(i, "chip", "") for i in order if i and not parts[i]]
    rest = f'<div class="absent"><span>Not here:</span>{"".join(absent)}</div>' if absent else ""
    return f'<div class="legend" role="group" aria-label="Classes">{"".join(rows)}</div>{rest}'


def thumbnails(samples: Sequence[Sample]) -> str:
    """A button for each sample photo."""
    images = [image_uri(shrunk(sample.photo.pixels, _THUMBNAIL_PX)) for sample in samples]
    buttons = [
        f'<button type="button" data-index="{i}">'
        f'<img alt="sample photo {i + 1}" src="{image}"></button>'
        for i, image in enumerate(images)
    ]
    return f'<div class="samples" role="group" aria-label="Sample photos">{"".join(buttons)}</div>'


def heat_caption(result: Result, chosen: int) -> str:
    """What a heat map shows, with the scale of its colours."""
    highest = result.heat[chosen].max() / 255
    name = escape(result.names[chosen])
    return (
        f'<div class="caption">How probable <b>{name}</b> is at each pixel: '
        f'0 <span class="scale"></span> 1. Highest here: {highest:.2f}.</div>'
    )


def note(text: str, kind: str = "") -> str:
    """A line of text; `kind` is a class of the style sheet."""
    return f'<div class="note {kind}">{escape(text)}</div>'


def percent(part: float) -> str:
    """A share for people."""
    return f"{part:.0%}" if part == 0 or part >= 0.01 else "<1%"
