"""Weights of the Hugging Face hub: "hf:owner/name[@revision]", by `huggingface_hub`.

The files stay in that library's own cache (HF_HOME), so that what `hf download` or `transformers`
fetched is not fetched again. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean there.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import re
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from input_pipeline.text_lists import one_line, printable
from input_pipeline.writing import CannotWrite
from weights_convert.clip.huggingface import SIDE_FILES, WEIGHTS_FILES
from weights_convert.clip.json_files import read_json
from weights_convert.clip.shards import INDEX_FILES, weight_files
from weights_convert.errors import CheckpointError
from weights_convert.named.download import CannotDownload

PREFIX = "hf:"
_FORM = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w.-]+(?:/[\w.-]+)*))?", re.ASCII)
_MAIN = "main"
# A pickle only where there is nothing else.
_IN_ORDER = sorted(WEIGHTS_FILES, key=lambda name: "safetensors" not in name)
_fetched: dict[str, Path] = {}  # the stages of a run have one revision, even if "main" moves
_log = logging.getLogger(__name__)


class _Repository(NamedTuple):
    text: str  # as the user wrote it
    id: str
    revision: str


def fetch(text: str) -> Path:
    """The folder with the weights of "hf:owner/name[@revision]", their config and tokenizer.

    Only these files are downloaded; pickles only where there are no safetensors. Without a network
    what was downloaded before is used, with a warning.

    Raises:
      CheckpointError: another form, no such repository or revision, one that needs a token, or one
        without weights. CannotDownload: no network.
    """
    repository = _parse(text)
    if text in _fetched and _fetched[text].is_dir():
        return _fetched[text]
    hub = _library(text)
    try:
        folder = _download(hub, repository)
    except hub.errors.GatedRepoError as error:
        raise CheckpointError(
            f"{text} is shown to those alone who accept its terms: do so at "
            f"{_page(hub, repository)}, then log in (`hf auth login`) or set HF_TOKEN"
        ) from error
    except hub.errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repository.id} has no revision {repository.revision!r}; give a branch, tag or "
            f"commit of {_page(hub, repository)}"
        ) from error
    except hub.errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no repository {_page(hub, repository)}, or it is private; check the "
            "spelling, or set HF_TOKEN"
        ) from error
    except hub.errors.HFValidationError as error:
        raise CheckpointError(f"{text} cannot be a repository: {one_line(error)}") from error
    except (hub.errors.HTTPError, hub.errors.EntryNotFoundError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CannotWrite(
                f"cannot keep {text}: {error.strerror}; free space, or set HF_HOME to a folder on "
                "another disk"
            ) from error
        folder = _without_network(hub, repository, error)
    _fetched[text] = folder
    return folder


def cached(text: str) -> Path | None:
    """The folder of `fetch` if the library has it already; nothing is downloaded."""
    repository = _parse(text)
    if text in _fetched and _fetched[text].is_dir():
        return _fetched[text]
    hub = _library(text)
    for name in _IN_ORDER:
        found = hub.try_to_load_from_cache(repository.id, name, revision=repository.revision)
        if isinstance(found, str):
            try:
                weight_files(Path(found))
            except CheckpointError:  # an index without its shards
                continue
            return Path(found).parent
    return None


def chosen(names: Collection[str]) -> str | None:
    """Which of a repository's files holds the weights; None: none that is read here."""
    return next((name for name in _IN_ORDER if name in names), None)


def _parse(text: str) -> _Repository:
    found = _FORM.fullmatch(text)
    if found is None or ".." in text:
        raise CheckpointError(f"{printable(text)} is not of the form hf:owner/name[@revision]")
    return _Repository(text, found[1], found[2] or _MAIN)


def _library(text: str) -> ModuleType:
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{text} needs: pip install 'clipseg_jax[hub]'") from error
    return huggingface_hub


def _download(hub: ModuleType, repository: _Repository) -> Path:
    """The small files first, so that where the weights are all is."""
    info = hub.HfApi().model_info(repository.id, revision=repository.revision)
    names = {each.rfilename for each in info.siblings or ()}
    weights = chosen(names)
    if weights is None:
        found = ", ".join(sorted(name for name in names if "/" not in name)[:8])
        raise CheckpointError(
            f"{repository.text} holds no weights that are read here ({', '.join(_IN_ORDER)}); it "
            f"has {printable(found) or 'no files'}"
        )
    for name in SIDE_FILES:
        if name in names:
            _get(hub, repository, name)
    path = _get(hub, repository, weights)
    if weights in INDEX_FILES:
        shards = read_json(path).get("weight_map")
        for shard in sorted({*map(str, shards.values())} if isinstance(shards, dict) else ()):
            if shard in names:
                _get(hub, repository, shard)
    if info.sha and path.parent.name != info.sha:
        raise CannotDownload(
            f"{repository.text} was changed while it was downloaded; run the command again"
        ) from OSError(errno.EAGAIN, "another commit")
    return path.parent


def _get(hub: ModuleType, repository: _Repository, name: str) -> Path:
    """Downloads a file; one that the hub names by its sha256 is compared with it."""
    before = hub.try_to_load_from_cache(repository.id, name, revision=repository.revision)
    path = Path(hub.hf_hub_download(repository.id, name, revision=repository.revision))
    stored = path.resolve()
    if not isinstance(before, str) and re.fullmatch(r"[0-9a-f]{64}", stored.name):
        with stored.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != stored.name:
            path.unlink()
            stored.unlink()
            raise CheckpointError(
                f"{name} of {repository.text} arrived with sha256 {digest}, the hub says "
                f"{stored.name}; it was removed, try again"
            )
    return path


def _without_network(hub: ModuleType, repository: _Repository, error: BaseException) -> Path:
    """What was downloaded before; where nothing was, the error of the network."""
    found = cached(repository.text)
    if found is not None:
        if not isinstance(error, hub.errors.OfflineModeIsEnabled):
            _log.warning(
                "%s: as downloaded before; the hub is not reached (%s)", repository.text,
                one_line(error),
            )  # fmt: skip
        return found
    reason = "HF_HUB_OFFLINE is set" if hub.constants.HF_HUB_OFFLINE else one_line(error)
    at = "" if repository.revision == _MAIN else f" --revision {repository.revision}"
    raise CannotDownload(
        f"cannot download {repository.text}: {reason}; where there is a network run `hf download "
        f"{repository.id}{at} --local-dir FOLDER`, and give that folder"
    ) from OSError(errno.EHOSTUNREACH, "no answer")


def _page(hub: ModuleType, repository: _Repository) -> str:
    return f"{hub.constants.ENDPOINT}/{repository.id}"
