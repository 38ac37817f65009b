"""The sections of a report on its evaluations: numbers, classes, pictures, confusions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from clipseg_jax.core.html import escape, image_uri
from clipseg_jax.core.metrics import percent_text
from clipseg_jax.reports.charts import bar, heat_map
from clipseg_jax.reports.confusions import strongest
from clipseg_jax.reports.paper import Comparison
from clipseg_jax.reports.results import Evaluation, Picture
from clipseg_jax.reports.tables import folded, table

STYLE = """
.cards { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; }
.card { min-width: 10rem; }
.card, .note { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem 1rem; }
.card b { display: block; font-size: 2rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.numbers { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; margin: .5rem 0; }
.numbers dt { color: var(--soft); font-size: .85em; }
.numbers dd { margin: 0; font-variant-numeric: tabular-nums; }
.note ul { margin: .25rem 0 0; padding-left: 1.2rem; }
.classes { columns: 22rem; column-gap: 2rem; padding: 0; margin: 0; list-style: none; }
.classes li { display: grid; grid-template-columns: 8.5rem 1fr 3.2rem; gap: .6rem;
  align-items: center; break-inside: avoid; line-height: 1.5; }
.classes span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
.shots { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.shots figure { margin: 0; break-inside: avoid; }
.tiles { display: grid; grid-template-columns: repeat(3, 1fr); gap: 3px; }
.tiles img { width: 100%; display: block; }
.chip { white-space: nowrap; }
.chip i { display: inline-block; width: .75em; height: .75em; border: 1px solid var(--line);
  margin: 0 .3em 0 .6em; }
"""

_TILE_PX = 240  # longest side
_MOST_IN_MAP = 30  # classes
_MEANS = ("aAcc", "mIoU", "mIoU_of_labelled", "mIoU_absent_as_0", "mAcc", "mPrec")
_ZERO_SHOT = ("pAcc", "mIoU(S)", "mIoU(U)", "hIoU")


def headlines(evaluations: Sequence[Evaluation]) -> str:
    """A card for each evaluation: the metric that the paper prints, and of how many images."""
    cards = []
    for each in evaluations:
        images = each.number("images")
        skipped = each.figures.get("skipped")
        left_out = len(skipped) if isinstance(skipped, list) else 0
        of = f"{images:.0f} images" if images is not None else "images not counted"
        if left_out:
            of += f", {left_out} left out"
        cards.append(
            f'<div class="card">{escape(each.name)}<b>{percent_text(each.number(each.metric))}</b>'
            f'<span class="soft">{escape(each.metric)}, {of}</span></div>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def against_paper(found: Sequence[Comparison], doubts: Sequence[str]) -> str:
    """Published numbers beside ours, and what speaks against comparing them."""
    parts = ["<h2>Against the paper</h2>"]
    if found:
        rows = [_comparison(each) for each in found]
        head = ["number", "others report", "paper", "here", "difference"]
        if not any(each.figure.spread for each in found):
            head, rows = [head[0], *head[2:]], [[row[0], *row[2:]] for row in rows]
        parts.append(table(head, rows, numbers=3))
        sources = dict.fromkeys(each.row.source for each in found)
        parts.append(f'<p class="soft">Source: {escape("; ".join(sources))}.</p>')
    if doubts:
        lines = "".join(f"<li>{escape(each)}</li>" for each in doubts)
        parts.append(f'<div class="note"><b>Not comparable as it is</b><ul>{lines}</ul></div>')
    return "\n".join(parts)


def _comparison(each: Comparison) -> list[str]:
    figure, spread = each.figure, each.figure.spread
    what = ", ".join(filter(None, (each.row.method, figure.what, figure.metric)))
    difference = "-" if each.ours is None else f"{each.ours - figure.paper:+.2f}"
    bounds = dict.fromkeys(f"{n:g}" for n in (spread.low, spread.high)) if spread else ("-",)
    others = " to ".join(bounds)
    return [escape(what), others, f"{figure.paper:g}", percent_text(each.ours), difference]


def section(each: Evaluation, *, open_: bool) -> str:
    """All of one evaluation."""
    parts = [_numbers(each)]
    if each.classes:
        parts += [f"<h3>IoU of {len(each.classes)} classes</h3>", _classes(each)]
    if each.best or each.worst:
        parts.append(
            f'<p class="soft">Image, truth and prediction of the images with the highest and the '
            f"lowest mIoU, of {each.scored} with labels. An image's is the mean over the classes "
            "that it shows, or is said to show.</p>"
        )
    for title, pictures in (("Best images", each.best), ("Worst images", each.worst)):
        if pictures:
            shots = "".join(map(_shot, pictures))
            parts.append(f'<h3>{title}</h3><div class="shots">{shots}</div>')
    if each.confusion is not None:
        parts.append(_confusions([*each.classes], each.confusion))
    gone = [
        name
        for name, there in (
            ("the IoU of each class", each.classes),
            ("pictures", each.best or each.worst),
            ("a confusion matrix", each.confusion is not None),
        )
        if not there
    ]
    if gone:
        parts.append(f'<p class="soft">{escape(each.file)} came without {", ".join(gone)}.</p>')
    title = f"{each.name[:1].upper()}{each.name[1:]}"
    return folded(f"<h2>{escape(title)}</h2>", "\n".join(parts), open_=open_)


def _numbers(each: Evaluation) -> str:
    names = [name for name in (*_MEANS, *_ZERO_SHOT) if name in each.figures]
    rest = [
        name
        for name in each.figures
        if name not in names and name != "images" and each.number(name) is not None
    ]
    names += rest
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{percent_text(each.number(name))}</dd></div>"
        for name in names
    )
    return f'<dl class="numbers">{shown}</dl>'


def _classes(each: Evaluation) -> str:
    """Bars, the highest IoU first; classes that occur nowhere last."""
    unseen = each.figures.get("unseen")
    unseen = unseen if isinstance(unseen, list) else []
    order = sorted(each.classes.items(), key=lambda item: -(item[1]["IoU"] or -1.0))
    rows = []
    for name, row in order:
        shown, iou = f"{name} (unseen)" if name in unseen else name, row["IoU"]
        cells = (escape(shown), percent_text(iou))
        rows.append(f"<li><span>{cells[0]}</span>{bar(iou or 0.0)}<span>{cells[1]}</span></li>")
    return f'<ul class="classes">{"".join(rows)}</ul>'


def _shot(picture: Picture) -> str:
    names = ("image", "truth", "prediction")
    tiles = "".join(
        f'<img src="{image_uri(_small(tile))}" alt="{what}">'
        for what, tile in zip(names, picture.tiles, strict=True)
    )
    chips = "".join(
        f'<span class="chip"><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in picture.classes.items()
    )
    return (
        f'<figure><div class="tiles">{tiles}</div><figcaption>{escape(picture.name)}: '
        f"{percent_text(picture.miou)}{chips}</figcaption></figure>"
    )


def _small(tile: np.ndarray) -> np.ndarray:
    image = Image.fromarray(tile)
    image.thumbnail((_TILE_PX, _TILE_PX))
    return np.asarray(image)


def _confusions(names: Sequence[str], counts: np.ndarray) -> str:
    pairs = strongest(counts)
    if not pairs:
        return "<h3>Confusions</h3><p>No labelled pixel is wrong.</p>"
    rows = [
        [
            escape(names[each.label]),
            escape(names[each.predicted]),
            f"{each.pixels:,}",
            f"{each.of_label:.1%}",
            f"{each.of_predicted:.1%}",
        ]
        for each in pairs
    ]
    head = ("labelled", "predicted as", "pixels", "of the labelled", "of the predicted")
    parts = [
        '<h3>Strongest confusions</h3><p class="soft">Those that take most from the mean IoU.</p>',
        table(head, rows, numbers=3),
    ]
    if len(names) <= _MOST_IN_MAP:
        parts += [
            '<p class="soft">Rows are labels, columns predictions; the stronger the colour, the '
            "larger the part of the row.</p>",
            f'<div class="wide">{heat_map(names, counts)}</div>',
        ]
    return "\n".join(parts)
