"""The tiny CLIP's byte-pair vocabulary: every word of the demo world is one token."""

from __future__ import annotations

import functools
import re
from collections import Counter
from itertools import pairwise

from clipseg_jax.demo import world
from clipseg_jax.demo_clip.captions import PLACES, SCENERY_TEMPLATES, TEMPLATES
from clipseg_jax.models.clip import Tokenizer
from clipseg_jax.models.clip.tokenizer import byte_symbols

# Words of common prompt templates that occur in no caption.
_MORE = (
    "large big close up bad one two three no background land ground field scene texture it this "
    "some many hard see low resolution cropped photos art itap origami video game in the"
)


def words() -> list[str]:
    """All words, sorted: classes, colours, scenery, captions, templates, full stop and comma."""
    sources = [*world.CLASSES, *world.COLOURS, *world.SCENERY, *TEMPLATES]
    sources += [*SCENERY_TEMPLATES, _MORE, "an and under , ."]
    sources += [place for places in PLACES.values() for place in places]
    text = " ".join(sources).replace("{}", " ")
    return sorted(set(re.findall(r"[a-z]+|[.,]", text)))


@functools.cache
def merges() -> tuple[tuple[str, str], ...]:
    """Byte-pair merges, most frequent pair first, until each word is one token."""
    table = byte_symbols()
    pieces = {}
    for word in words():
        symbols = [table[byte] for byte in word.encode()]
        pieces[word] = [*symbols[:-1], symbols[-1] + "</w>"]
    out: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for parts in pieces.values() for pair in pairwise(parts))
        if not pairs:
            return tuple(out)
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        out.append(best)
        for word, parts in pieces.items():
            merged, i = [], 0
            while i < len(parts):
                if tuple(parts[i : i + 2]) == best:
                    merged.append("".join(best))
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            pieces[word] = merged


def tokenizer() -> Tokenizer:
    """The tokenizer of the tiny CLIP."""
    return Tokenizer(merges())
