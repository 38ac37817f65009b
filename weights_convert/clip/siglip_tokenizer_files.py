"""The tokenizer beside SigLIP's weights: tokenizer.json, or SentencePiece's spiece.model.

A record of a converted CLIP holds the file itself, so that an export gives it back bit for bit.
Sources: sentencepiece_model.proto; the protocol buffers' encoding; tokenizers' JSON.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clipseg_jax.models.clip import SigLIPTokenizer
from clipseg_jax.models.clip.siglip_tokenizer import BytePairs, Unigrams
from weights_convert.clip.json_files import MOST_BYTES, parse_json, read_bytes, section
from weights_convert.clip.tokenizer_files import ids_with_added, merge_pair
from weights_convert.errors import CheckpointError

_JSON, _MODEL = "tokenizer.json", "spiece.model"
SIGLIP_TOKENIZER_FILES = (_JSON, _MODEL)
_NORMAL, _USER_DEFINED = 1, 4  # types of pieces that texts may be split into
_UNKNOWN, _UNIGRAM = 2, 1


def tokenizer_record(folder: Path) -> dict[str, str] | None:
    """The tokenizer's file of a folder for a record; None where there is none.

    Raises:
      CheckpointError: it is damaged, or no tokenizer of SigLIP's kind.
    """
    for name in SIGLIP_TOKENIZER_FILES:
        path = folder / name
        if path.exists():
            data = read_bytes(path)
            parse_tokenizer(name, data, str(path))
            return {"file": name, "content": base64.b64encode(zlib.compress(data)).decode()}
    return None


def tokenizer_of(record: Mapping[str, str]) -> SigLIPTokenizer:
    """The tokenizer of `tokenizer_record`.

    Raises:
      CheckpointError: a damaged record.
    """
    name, data = tokenizer_file(record)
    return parse_tokenizer(name, data, f"the record's {name}")


def tokenizer_file(record: Mapping[str, str]) -> tuple[str, bytes]:
    """Name and content of the file in a record.

    Raises:
      CheckpointError: a damaged record.
    """
    try:
        expand = zlib.decompressobj()
        data = expand.decompress(base64.b64decode(record["content"], validate=True), MOST_BYTES)
        if not expand.eof:
            raise ValueError(f"more than {MOST_BYTES:,} bytes, or a part is missing")
    except (binascii.Error, zlib.error, ValueError) as error:
        raise CheckpointError(
            f"the record's tokenizer is damaged ({error}); convert its source again"
        ) from error
    return record["file"], data


def parse_tokenizer(name: str, data: bytes, source: str) -> SigLIPTokenizer:
    """The tokenizer in a file of SigLIP.

    Raises:
      CheckpointError: a damaged file, or another tokenizer.
    """
    try:
        return _parse_model(data) if name == _MODEL else _parse_json(parse_json(data, source))
    except ValueError as error:
        raise CheckpointError(f"{source} is no tokenizer of SigLIP: {error}") from error


def _parse_json(content: dict[str, Any]) -> SigLIPTokenizer:
    model = section(content, "model")
    if model.get("type") == "Unigram":
        vocabulary = model.get("vocab")
        rows = vocabulary if isinstance(vocabulary, list) else []
        if not rows or not all(
            isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) for row in rows
        ):
            raise ValueError("its vocab is no list of pieces with scores")
        pieces = [(piece, _score(score), _NORMAL) for piece, score in rows]
        unknown = model.get("unk_id")
        if type(unknown) is not int or not 0 <= unknown < len(pieces):
            raise ValueError(f"unk_id is {unknown!r:.60}, not the number of a piece")
        special = {pieces[unknown][0], *ids_with_added(content, {})}
        pieces = [(p, score, 0 if p in special else kind) for p, score, kind in pieces]
        return _unigrams(pieces, unknown)
    if model.get("type") != "BPE" or not isinstance(model.get("merges"), list):
        raise ValueError(f"the model {model.get('type')!r:.60}; SigLIP's are Unigram or BPE")
    ids = ids_with_added(content, section(model, "vocab"))
    for symbol, i in ids.items():
        if type(i) is not int or not 0 <= i < 2**31:
            raise ValueError(f"the id of {symbol!r:.60} is {i!r:.60}, no whole number from 0 on")
    for symbol in ("<eos>", "<pad>", "<unk>"):
        if symbol not in ids:
            raise ValueError(f"{symbol} has no id")
    pairs = BytePairs([merge_pair(merge) for merge in model["merges"]], ids, ids["<unk>"])
    return SigLIPTokenizer(
        pairs, end=ids["<eos>"], pad=ids["<pad>"], embeddings=1 + max(ids.values())
    )


def _unigrams(pieces: list[tuple[str, float, int]], unknown: int) -> SigLIPTokenizer:
    """From (piece, score, type) in order of ids."""
    ids = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    if len(ids) < len(pieces):
        raise ValueError("a piece is listed twice")
    if "</s>" not in ids:
        raise ValueError("</s> has no id")
    scores = {piece: score for piece, score, kind in pieces if kind in (_NORMAL, _USER_DEFINED)}
    scores.pop("</s>", None)
    end = ids["</s>"]  # which is also what SigLIP pads with
    model = Unigrams(scores, ids, unknown)
    return SigLIPTokenizer(model, end=end, pad=end, embeddings=len(pieces))


def _score(score: Any) -> float:
    if type(score) not in (int, float) or not math.isfinite(score):
        raise ValueError(f"a score is {score!r:.60}, no finite number")
    return float(score)


def _parse_model(data: bytes) -> SigLIPTokenizer:
    """Of a ModelProto: field 1 holds a piece (1 text, 2 score, 3 type), field 2 the trainer."""
    pieces: list[tuple[str, float, int]] = []
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            inner = dict(_fields(value))
            piece, score, kind = inner.get(1, b""), inner.get(2, b"\0\0\0\0"), inner.get(3, _NORMAL)
            if not isinstance(piece, bytes) or not isinstance(score, bytes) or len(score) != 4:
                raise ValueError(f"piece {len(pieces)} is damaged")
            (number,) = struct.unpack("<f", score)
            pieces.append((piece.decode(), _score(number), kind if isinstance(kind, int) else 0))
        elif field == 2 and isinstance(value, bytes):
            kind = dict(_fields(value)).get(3, _UNIGRAM)
            if kind != _UNIGRAM:
                raise ValueError(f"a model of type {kind!r:.20}, not unigrams (1)")
    unknown = [i for i, (_, _, kind) in enumerate(pieces) if kind == _UNKNOWN]
    if len(unknown) != 1:
        raise ValueError(f"{len(unknown)} pieces for unknown letters among {len(pieces)}")
    return _unigrams(pieces, unknown[0])


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message; fixed-size numbers stay bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield field, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of wire type {wire}")
        if size > len(data) - at:
            raise ValueError("it ends within a field; download it again")
        yield field, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends within a number; download it again")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")
