"""From what a user calls weights to a file or folder on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from clipseg_jax.demo import TINY_CLIP
from input_pipeline.places import is_remote
from input_pipeline.text_lists import printable
from weights_convert.clip.huggingface import SIDE_FILES, weights_file
from weights_convert.clip.shards import weight_files
from weights_convert.errors import CheckpointError
from weights_convert.named import download, hub
from weights_convert.named.cache import is_ready, location
from weights_convert.named.names import BY_FILE, KNOWN, Weights, nearest

DEMO = "demo"
_CHECKSUM = re.compile(r"sha256=([0-9a-fA-F]{64})")
_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".caffemodel", ".ckpt")


def find_weights(weights: str | Path) -> Path:
    """The file or folder that `weights` stands for; what is on no disk yet is downloaded once.

    Args:
      weights: one of
        a file or folder, which goes before a name, but for:
        "demo": the tiny CLIP of the demo, which is part of the package;
        a known name, such as "ViT-B/16" or "dino_vitb8" (`names.KNOWN`);
        "hf:owner/name[@revision]": of the Hugging Face hub;
        "https://host/file#sha256=HEX": a file with its checksum.

    Returns:
      A path. One that does not exist is returned as it is unless it was meant for a name; what
      reads it says what is wrong.

    Raises:
      FileNotFoundError: a misspelt name, or the file of a known name that is not here; the message
        has the name.
      CheckpointError: an address without checksum, or of another kind; what arrived, or is in the
        cache, is not the file.
      CannotDownload: no network; the message says which file to put where.
      CannotWrite: the cache cannot be written, or is full.
    """
    text = os.fspath(weights)
    if not isinstance(weights, str) and is_remote(weights):  # of a work directory in a bucket
        return weights
    if not is_name(text):
        if "://" in text and not os.path.exists(text):
            _at_address(text)  # refuses it
        _check_spelling(text)
        return Path(text)
    if text == DEMO:
        return TINY_CLIP
    if text.startswith(hub.PREFIX):
        return hub.fetch(text)
    return download.fetch(KNOWN.get(text) or _at_address(text))


def find_cached(weights: str | Path) -> Path | None:
    """`find_weights` without a network: None where something would have to be downloaded.

    Raises:
      CheckpointError: as `find_weights`.
    """
    text = os.fspath(weights)
    if not is_name(text):
        return Path(text) if os.path.exists(text) else None
    if text == DEMO:
        return TINY_CLIP
    if text.startswith(hub.PREFIX):
        return hub.cached(text)
    known = KNOWN.get(text) or _at_address(text)
    target = location(known)
    return target if is_ready(target, known) else None


def is_name(weights: str | Path) -> bool:
    """Whether `find_weights` takes this for a name or an address, and not for a path."""
    text = os.fspath(weights)
    if text == DEMO:
        return True
    named = text in KNOWN or text.startswith((hub.PREFIX, "https://", "http://"))
    return named and not os.path.exists(text)


def content_files(path: Path) -> list[Path]:
    """The files that are read of weights at `path`: of a folder the weights, config and tokenizer.

    Raises:
      FileNotFoundError, CheckpointError: there are no weights.
    """
    if path.is_file():
        return [path]
    weights = weights_file(path)
    side = [path / name for name in SIDE_FILES if (path / name).is_file()]
    return sorted({weights, *weight_files(weights), *side})


def _at_address(text: str) -> Weights:
    """What "https://host/file#sha256=HEX" stands for."""
    address, _, fragment = text.partition("#")
    shown = printable(address)
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError as error:
        raise CheckpointError(f"{shown} is no address ({error})") from error
    if parts.scheme not in ("http", "https"):
        raise CheckpointError(
            f"{shown} is an address that is not read here; copy the file and give its path, or "
            "give https://HOST/FILE#sha256=HEX"
        )
    if not host or not address.isascii() or not address.isprintable() or " " in address:
        raise CheckpointError(
            f"{shown} is no address of a file; write https://HOST/FILE#sha256=HEX"
        )
    if parts.username is not None or parts.password is not None:
        raise CheckpointError("an address with a password in it; give one without, or a file")
    found = _CHECKSUM.fullmatch(fragment)
    if found is None:
        raise CheckpointError(
            f"{shown} has no checksum; write {shown}#sha256=HEX with the 64 digits that its "
            "publisher states, or that `sha256sum FILE` says of a copy that you trust"
        )
    weights = Weights("", address, found[1].lower())
    if not re.fullmatch(r"[\w+@-][\w.+@-]{0,99}", weights.file, re.ASCII):
        raise CheckpointError(f"{shown} does not end with the name of a file; give one that does")
    return weights._replace(name=weights.file)


def _check_spelling(text: str) -> None:
    """Refuses a path that does not exist and was evidently meant for a name."""
    if os.path.exists(text):
        return
    there_is_none = (
        f"no checkpoint at {printable(text)}; give a file or a Hugging Face directory, or"
    )
    if (known := BY_FILE.get(os.path.basename(text))) is not None:
        raise FileNotFoundError(f"{there_is_none} the name {known.name}, which downloads it")
    if not text.endswith(_SUFFIXES) and not os.path.isabs(text) and (names := nearest(text)):
        raise FileNotFoundError(f"{there_is_none} is the name {' or '.join(names)} meant?")
