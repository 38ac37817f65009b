"""SigLIP's tokenizers: SentencePiece's unigrams (SigLIP) and byte pairs (SigLIP 2), offline.

Sources: Kudo 2018 (unigrams); Sennrich et al. 2016 (byte pairs); Kudo and Richardson 2018
(SentencePiece); `transformers.SiglipTokenizer` and `Siglip2Tokenizer`, whose ids these are.
"""

from __future__ import annotations

import functools
import itertools
import math
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from clipseg_jax.models.clip.tokenizer import fitting

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's mark of a space
_UNKNOWN_PENALTY = 10.0  # of SentencePiece: an unknown letter scores this less than any piece
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Unigrams:
    """Splits a text into the pieces whose scores (log probabilities) have the highest sum."""

    def __init__(self, scores: Mapping[str, float], ids: Mapping[str, int], unknown: int):
        """Makes a model from the score and the id of each piece, and the id of unknown letters.

        Raises:
          ValueError: no piece, or an empty one.
        """
        if not scores or "" in scores:
            raise ValueError("no pieces, or an empty one")
        self._scores, self._ids, self._unknown = scores, ids, unknown
        self._longest = max(map(len, scores))
        self._unknown_score = min(scores.values()) - _UNKNOWN_PENALTY

    @staticmethod
    def clean(text: str) -> str:
        """`text` in lower case, without ASCII punctuation, its white space collapsed.

        SentencePiece's own table of compatible letters is taken to be Unicode's NFKC.
        """
        text = unicodedata.normalize("NFKC", text.lower().translate(_NO_PUNCTUATION))
        return " ".join(text.split())

    def encode(self, text: str) -> list[int]:
        """Ids of a cleaned text."""
        text = f"{_SPACE}{text.replace(' ', _SPACE)}"
        best = [0.0, *[-math.inf] * len(text)]  # sum of scores up to each letter
        last: list[tuple[int, int]] = [(0, 0)] * (len(text) + 1)  # the last piece's start and id
        for end in range(1, len(text) + 1):
            for start in range(max(0, end - self._longest), end):
                piece = text[start:end]
                if (score := self._scores.get(piece)) is not None:
                    each = self._ids[piece]
                elif end - start == 1:
                    score, each = self._unknown_score, self._unknown
                else:
                    continue
                if best[start] + score > best[end]:
                    best[end], last[end] = best[start] + score, (start, each)
        ids, end = [], len(text)
        while end:
            end, each = last[end]
            ids.append(each)
        return _one_unknown(reversed(ids), self._unknown)


class BytePairs:
    """Merges neighbouring symbols by rank; letters without an id are spelled in bytes."""

    def __init__(self, merges: Sequence[tuple[str, str]], ids: Mapping[str, int], unknown: int):
        """Makes a model from merges in order of rank, ids, and the id of unknown letters.

        Raises:
          ValueError: a merge whose result has no id, or one of two words.
        """
        self._rank = {pair: i for i, pair in enumerate(merges)}
        self._ids, self._unknown = ids, unknown
        for left, right in merges:
            if left + right not in ids:
                raise ValueError(f"the merge {(left, right)!r:.60} has no id")
            if right.startswith(_SPACE) and left.strip(_SPACE):
                raise ValueError(f"the merge {(left, right)!r:.60} is of two words")
        self._word = functools.lru_cache(maxsize=65536)(self._merge)

    @staticmethod
    def clean(text: str) -> str:
        """`text` in lower case, its white space collapsed."""
        return " ".join(text.lower().split())

    def encode(self, text: str) -> list[int]:
        """Ids of a cleaned text. No merge crosses words, so they are looked up one by one."""
        first, *others = text.split(" ")
        words = [first, *(f"{_SPACE}{word}" for word in others)]
        return _one_unknown((i for word in words for i in self._word(word)), self._unknown)

    def _merge(self, word: str) -> tuple[int, ...]:
        symbols: list[str] = []
        for letter in word:
            spelled = [f"<0x{byte:02X}>" for byte in letter.encode("utf-8", "surrogatepass")]
            in_bytes = letter not in self._ids and all(each in self._ids for each in spelled)
            symbols += spelled if in_bytes else [letter]
        unranked = len(self._rank)
        while len(symbols) > 1:
            ranks = [self._rank.get(pair, unranked) for pair in itertools.pairwise(symbols)]
            i = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[i] == unranked:
                break
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        return tuple(self._ids.get(symbol, self._unknown) for symbol in symbols)


class SigLIPTokenizer:
    """Texts to ids: cleans, splits into pieces, adds the end token and pads."""

    def __init__(self, model: Unigrams | BytePairs, *, end: int, pad: int, embeddings: int):
        """`end`, `pad`: ids; `embeddings`: one more than the highest id that may come up."""
        self._model, self._end, self._pad = model, end, pad
        self.embeddings = embeddings

    def __call__(
        self, texts: str | Sequence[str], context_length: int = 64, *, truncate: bool = False
    ) -> np.ndarray:
        """Token ids (n, context_length) int32: text, end, padding; no start token.

        Raises:
          ValueError: a text is too long and `truncate` is False. With True the text is cut and
            still ends with the end token.
        """
        texts = [texts] if isinstance(texts, str) else texts
        out = np.full((len(texts), context_length), self._pad, np.int32)
        for row, text in zip(out, texts, strict=True):
            ids = [*self.encode(text), self._end]
            ids = fitting(ids, text, context_length, truncate=truncate)
            row[: len(ids)] = ids
        return out

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without end token and padding."""
        return self._model.encode(self._model.clean(text))


def _one_unknown(ids: Iterable[int], unknown: int) -> list[int]:
    """Ids with one unknown in place of several in a row, as SentencePiece."""
    out: list[int] = []
    for each in ids:
        if each != unknown or out[-1:] != [unknown]:
            out.append(each)
    return out
