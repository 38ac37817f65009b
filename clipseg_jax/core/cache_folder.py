"""Where the cache is: downloaded weights, conversions and compiled programs."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "CLIPSEG_JAX_CACHE"


def cache_folder() -> Path | None:
    """$CLIPSEG_JAX_CACHE, else $XDG_CACHE_HOME/clipseg_jax, else ~/.cache/clipseg_jax.

    None: none is set, and the user has no home directory, as in some containers.
    """
    if folder := os.environ.get(VARIABLE):
        return Path(os.path.expanduser(folder))
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # the standard ignores others
        return Path(shared) / "clipseg_jax"
    try:
        return Path.home() / ".cache" / "clipseg_jax"
    except RuntimeError:
        return None
