"""CLIP's byte-pair tokenizer; gives the same ids as OpenAI's, offline.

Source: Sennrich et al. 2016; Radford et al. 2021; spec clip, section 6.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import html
import itertools
from collections.abc import Mapping, Sequence
from importlib import resources

import ftfy
import numpy as np
import regex

_OPENAI_SHA256 = "718fe77c45b6c0db44c21ae951809fe0f3fe84ece02fc78e6ab994ca689c6dc0"
_OPENAI_MERGES = 49152 - 256 - 2
START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
_SHOWN = 80  # letters of a text in messages
_PIECES = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


@functools.cache
def byte_symbols() -> dict[int, str]:
    """Maps every byte to a printable character, in the order of the ids."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {b: chr(256 + i) for i, b in enumerate(other)}


def vocabulary(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Maps symbols to ids: bytes, bytes that end a word, merges in order, start and end."""
    symbols = list(byte_symbols().values())
    symbols += [symbol + _WORD_END for symbol in symbols]
    symbols += ["".join(pair) for pair in merges]
    return {symbol: i for i, symbol in enumerate([*symbols, START, END])}


class Tokenizer:
    """Texts to ids: cleans, lower-cases, splits into pieces and merges byte pairs by rank."""

    def __init__(
        self,
        merges: Sequence[tuple[str, str]],
        ids: Mapping[str, int] | None = None,
        *,
        embeddings: int | None = None,
    ) -> None:
        """Makes a tokenizer.

        Args:
          merges: in order of rank.
          ids: symbols to ids, by default as `vocabulary`.
          embeddings: how many the text tower has; an id beyond them is refused. None: any.

        Raises:
          ValueError: no vocabulary of a CLIP: it could not encode every text, or the end token is
            not the one with the highest id, by which the text tower finds it.
        """
        self.merges: list[tuple[str, str]] = [(left, right) for left, right in merges]
        self.ids = dict(vocabulary(merges) if ids is None else ids)
        self._embeddings = embeddings
        if len(set(self.merges)) < len(self.merges):
            raise ValueError("a merge is listed twice")
        if ids is not None:
            _check_ids(self.merges, self.ids)
        self._rank = {pair: i for i, pair in enumerate(self.merges)}
        self._symbols = {i: symbol for symbol, i in self.ids.items()}
        self._bpe = functools.lru_cache(maxsize=65536)(self._merge)

    @classmethod
    @functools.cache
    def openai(cls) -> Tokenizer:
        """The tokenizer of all OpenAI models, from the vocabulary file of this package.

        Raises:
          ValueError: the vocabulary file is damaged.
        """
        packed = resources.files(__package__).joinpath("vocabulary", "bpe_simple_vocab_16e6.txt.gz")
        data = packed.read_bytes()
        if (digest := hashlib.sha256(data).hexdigest()) != _OPENAI_SHA256:
            raise ValueError(
                f"the vocabulary file {packed} is damaged: sha256 {digest}, expected "
                f"{_OPENAI_SHA256}; reinstall clipseg_jax"
            )
        lines = gzip.decompress(data).decode("utf-8").split("\n")[1 : _OPENAI_MERGES + 1]
        return cls([_pair(line) for line in lines])

    def __call__(
        self, texts: str | Sequence[str], context_length: int = 77, *, truncate: bool = False
    ) -> np.ndarray:
        """Token ids (n, context_length) int32: start, text, end, zeros.

        Raises:
          ValueError: a text is too long and `truncate` is False. With True the text is cut and
            still ends with the end token. Or an id without an embedding.
        """
        texts = [texts] if isinstance(texts, str) else texts
        # A bound on what fits: merging a word takes the square of its length.
        longest = context_length * max(map(len, self.ids))
        out = np.zeros((len(texts), context_length), np.int32)
        for row, text in zip(out, texts, strict=True):
            if len(text) - text.count(" ") > longest and not truncate:
                raise ValueError(
                    f"text of {len(text)} letters, at most {context_length} tokens fit: "
                    f"{text[:_SHOWN]!r}...; shorten it"
                )
            ids = fitting(
                [self.ids[START], *self.encode(text), self.ids[END]],
                text,
                context_length,
                truncate=truncate,
            )
            row[: len(ids)] = ids
        if self._embeddings is not None and out.max(initial=0) >= self._embeddings:
            raise ValueError(
                f"the text tower has {self._embeddings} token embeddings, OpenAI's tokenizer gives "
                f"ids up to {out.max()}; put the vocab.json and merges.txt "
                "that it was trained with beside its weights"
            )
        return out

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start and end tokens."""
        ids: list[int] = []
        for piece in _PIECES.findall(clean(text)):
            symbols = "".join(byte_symbols()[byte] for byte in piece.encode("utf-8"))
            ids += (self.ids[symbol] for symbol in self._bpe(symbols))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; every word is followed by a space."""
        byte_of = {symbol: byte for byte, symbol in byte_symbols().items()}
        text = "".join(self._symbols[int(i)] for i in ids)
        data = bytearray(byte_of[character] for character in text)
        return data.decode("utf-8", errors="replace").replace(_WORD_END, " ")

    def _merge(self, piece: str) -> tuple[str, ...]:
        if piece in (START, END):
            return (piece,)
        parts = [*piece[:-1], piece[-1] + _WORD_END]
        unranked = len(self._rank)
        while len(parts) > 1:
            best = min(itertools.pairwise(parts), key=lambda pair: self._rank.get(pair, unranked))
            if best not in self._rank:
                break
            merged, i = [], 0
            while i < len(parts):
                if tuple(parts[i : i + 2]) == best:
                    merged.append(best[0] + best[1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        return tuple(parts)


def fitting(ids: list[int], text: str, context_length: int, *, truncate: bool) -> list[int]:
    """The ids of a text, cut to the context length with `truncate`; the last one, the end, stays.

    Raises:
      ValueError: there are too many, and `truncate` is False.
    """
    if len(ids) <= context_length:
        return ids
    if not truncate:
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        raise ValueError(
            f"text of {len(ids)} tokens, at most {context_length} fit: {shown!r}; shorten it"
        )
    return [*ids[: context_length - 1], ids[-1]]


def clean(text: str) -> str:
    """`text` in lower case, encoding errors fixed, HTML unescaped and white space collapsed."""
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return regex.sub(r"\s+", " ", text).strip().lower()


def _check_ids(merges: Sequence[tuple[str, str]], ids: Mapping[str, int]) -> None:
    """Raises ValueError unless every text has ids, the end token's being the highest."""
    for symbol, i in ids.items():
        if isinstance(i, bool) or not isinstance(i, int) or i < 0:
            raise ValueError(f"the id of {symbol!r:.60} is {i!r:.60}, not a whole number from 0 on")
    letters = byte_symbols().values()
    used = [*letters, *(letter + _WORD_END for letter in letters), START, END]
    used += [left + right for left, right in merges]
    if absent := [symbol for symbol in used if symbol not in ids]:
        raise ValueError(
            f"{len(absent)} symbols of CLIP's byte pairs have no id, among them {absent[0]!r:.60}"
        )
    if len(set(ids.values())) < len(ids):
        raise ValueError(f"{len(ids) - len(set(ids.values()))} ids stand for two symbols")
    highest = max(used, key=ids.__getitem__)
    if highest != END:
        raise ValueError(
            f"{highest!r:.60} has the id {ids[highest]}, beyond that of {END} ({ids[END]}), which "
            "has to be the highest"
        )


def _pair(line: str) -> tuple[str, str]:
    left, right = line.split()
    return left, right
