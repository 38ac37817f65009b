"""Compiled programs are kept on disk, so that the next command starts sooner.

This is JAX's persistent compilation cache in a folder of the user's own. JAX's key of a program has
its operations, the versions of JAX and XLA, flags and the processor's instructions, so machines may
share a home directory. Only commands use it: a library does not change JAX's settings.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from pathlib import Path
from typing import Any

from clipseg_jax.core.cache_folder import VARIABLE, cache_folder

MAX_BYTES = 512 * 2**20
# JAX looks at all entries before it writes one, which takes 0.1 ms for each.
MAX_PROGRAMS = 500
# A predict compiles 25 programs: 4 take 0.2 to 5 seconds, the others 0.3 in all.
MIN_COMPILE_S = 0.1

_LOCK_S = 10.0  # as long as JAX waits
# The files of an entry, as JAX names them. The second is written last and holds the time of use.
_PROGRAM, _USED = "-cache", "-atime"
_log = logging.getLogger(__name__)


def compiled_folder() -> Path | None:
    """Where commands keep compiled programs; None: nowhere.

    A folder for each user: who can write into it decides what the programs do.
    """
    if folder := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(folder)
    cache = cache_folder()
    return None if cache is None else cache / f"compiled-{os.geteuid()}"


def help_line() -> str:
    """What `--help` says of it."""
    return f"Compiled programs are kept in {compiled_folder() or 'no folder'}."


def help_lines() -> str:
    """What longer help says of it."""
    return (
        f"{help_line()}\n"
        "JAX_COMPILATION_CACHE_DIR sets another folder, JAX_ENABLE_COMPILATION_CACHE=0 none."
    )


def enable() -> None:
    """Has JAX keep compiled programs, and find those of earlier commands.

    What the user has set for JAX's cache stays as it is. A folder that cannot be used is warned of,
    and everything is compiled as without it.
    """
    import jax

    config: Any = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    folder = compiled_folder()
    if folder is None:
        return
    try:
        make_private(folder)
        tidy(folder)
    except (OSError, NotImplementedError) as error:  # the second: no locks on this file system
        _log.warning(
            "compiled programs are not kept: %s; set %s to a folder of your own, or "
            "JAX_ENABLE_COMPILATION_CACHE=0",
            error,
            VARIABLE,
        )
        return
    config.update("jax_compilation_cache_dir", str(folder))
    if config.jax_compilation_cache_max_size == -1:
        config.update("jax_compilation_cache_max_size", MAX_BYTES)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)


def make_private(folder: Path) -> None:
    """Makes a folder that only this user can write to, or checks that it is one.

    Raises:
      OSError: it is not, or others can put another one in its place.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state, above = folder.stat(), folder.parent.stat()
    if state.st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to another user")
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"other users can write to {folder}; delete it")
    if above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX:
        raise PermissionError(f"all users can replace {folder}; chmod o-w {folder.parent}")


def tidy(folder: Path, most: int = MAX_PROGRAMS) -> None:
    """Removes what processes that were killed left half written, and what was used long ago.

    JAX would read the former again and again, and fail at every program that it wants to write.

    Raises:
      OSError: the folder cannot be written, or the lock is not to be had.
    """
    import filelock

    with filelock.FileLock(folder / ".lockfile", timeout=_LOCK_S):  # JAX's own
        files = {entry.name: entry for entry in os.scandir(folder)}
        whole = []
        for name, entry in files.items():
            key = name.removesuffix(_PROGRAM)
            if name == key:
                if name.endswith(_USED) and f"{name.removesuffix(_USED)}{_PROGRAM}" not in files:
                    _remove(folder, name)
            elif f"{key}{_USED}" in files and entry.stat().st_size:
                whole.append((files[f"{key}{_USED}"].stat().st_mtime_ns, key))
            else:
                _remove(folder, name, f"{key}{_USED}")
        for _, key in sorted(whole)[: max(0, len(whole) - most)]:
            _remove(folder, f"{key}{_PROGRAM}", f"{key}{_USED}")


def _remove(folder: Path, *names: str) -> None:
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            (folder / name).unlink()
