"""The tokenizer beside weights: tokenizer.json, or vocab.json with merges.txt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipseg_jax.models.clip import Tokenizer
from weights_convert.clip.json_files import read_json, read_text, section
from weights_convert.errors import CheckpointError

_VOCABULARY, _MERGES, _BOTH = "vocab.json", "merges.txt", "tokenizer.json"
TOKENIZER_FILES = (_VOCABULARY, _MERGES, _BOTH)

Merges = list[tuple[str, str]]


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder; None where it has no tokenizer's file.

    Raises:
      CheckpointError: a damaged file, one of two that belong together, a tokenizer that is not
        CLIP's, or two that differ.
    """
    pair = [folder / name for name in (_VOCABULARY, _MERGES) if (folder / name).exists()]
    both = folder / _BOTH
    if not both.exists():
        if not pair:
            return None
        if len(pair) == 1:
            lacking = _MERGES if pair[0].name == _VOCABULARY else _VOCABULARY
            raise CheckpointError(f"{pair[0]} has no {lacking} beside it; a tokenizer needs both")
        return _tokenizer(pair[0], _read_merges(pair[1]), read_json(pair[0]))
    merges, ids = _read_both(both)
    tokenizer = _tokenizer(both, merges, ids)
    for path in pair:
        if path.name == _VOCABULARY:
            same = read_json(path).items() <= ids.items()
        else:
            same = _read_merges(path) == merges
        if not same:
            raise CheckpointError(
                f"{path} and {both.name} beside it are of different tokenizers; delete the one "
                "that is not of these weights"
            )
    return tokenizer


def _tokenizer(path: Path, merges: Merges, ids: dict[str, Any]) -> Tokenizer:
    try:
        return Tokenizer(merges, ids)
    except ValueError as error:
        raise CheckpointError(f"{path} is no vocabulary of a CLIP: {error}") from error


def _read_merges(path: Path) -> Merges:
    lines = read_text(path).split("\n")
    start = 1 if lines[0].startswith("#version") else 0
    merges = []
    for number, line in enumerate(lines[start:], start + 1):
        match line.split():
            case [left, right]:
                merges.append((left, right))
            case []:
                pass
            case words:
                raise CheckpointError(
                    f"{path}, line {number} has {len(words)} symbols, two are merged; download it "
                    "again"
                )
    return merges


def _read_both(path: Path) -> tuple[Merges, dict[str, Any]]:
    """Merges and ids of a tokenizer.json; merges are lists of two, or texts with a space."""
    content = read_json(path)
    try:
        model = section(content, "model")
        # Older files don't name the type; only byte pairs have merges.
        if model.get("type", "BPE") != "BPE" or not isinstance(model.get("merges"), list):
            raise ValueError(f"the model {model.get('type')!r:.60} with merges, not BPE")
        merges = [merge_pair(merge) for merge in model["merges"]]
        ids = ids_with_added(content, section(model, "vocab"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no tokenizer of a CLIP: {error}") from error
    return merges, ids


def ids_with_added(content: dict[str, Any], vocabulary: dict[str, Any]) -> dict[str, Any]:
    """Ids of a vocabulary and of the added tokens of a tokenizer.json.

    Raises:
      ValueError: a damaged list, or a symbol of two ids.
    """
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise ValueError("added_tokens is not a list of objects")
    ids = dict(vocabulary)
    for token in added:
        symbol, i = token.get("content"), token.get("id")
        if not isinstance(symbol, str) or ids.setdefault(symbol, i) != i:
            raise ValueError(f"the added token {symbol!r:.60} has two ids, or is no text")
    return ids


def merge_pair(merge: Any) -> tuple[str, str]:
    """A merge, which is a list of two or a text with a space.

    Raises:
      ValueError: something else.
    """
    parts = merge.split(" ") if isinstance(merge, str) else merge
    match parts:
        case [str(left), str(right)]:
            return left, right
    raise ValueError(f"the merge {merge!r:.60} is not of two symbols")
