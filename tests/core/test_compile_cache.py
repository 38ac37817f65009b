"""Commands find compiled programs on disk; whatever happens to the folder, they go on."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from clipseg_jax.core import compile_cache
from clipseg_jax.core.cache_folder import VARIABLE
from clipseg_jax.core.compile_cache import compiled_folder, make_private, tidy

ROOT = Path(__file__).resolve().parent.parent.parent

# Prints how many programs were found, how many are new, and the settings; two programs are made.
CHILD = """
import json, sys, jax
from clipseg_jax.core import compile_cache
counts = {"cache_hits": 0, "cache_misses": 0}
def count(event, **_):
    name = event.rpartition("/")[2]
    if name in counts:
        counts[name] += 1
jax.monitoring.register_event_listener(count)
compile_cache.enable()
for number in (2.0, 3.0):
    assert float(jax.jit(lambda x: x * number + 1)(4.0)) == 4 * number + 1
config = jax.config
print(json.dumps([*counts.values(), config.jax_compilation_cache_dir,
                  config.jax_compilation_cache_max_size]))
"""


def start(cache, before="", **variables):
    """A command that compiles two programs, in a process of its own, after the code `before`."""
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment = inherited | {
        VARIABLE: str(cache), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **variables,
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", before + CHILD],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(process):
    """(found, new, folder, bound) and standard error of a process of `start`."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out), err


def entries(folder):
    return sorted(path.name for path in folder.glob("*-cache"))


def entry(folder, key, used=True, size=10):
    (folder / f"{key}-cache").write_bytes(b"x" * size)
    if used:
        (folder / f"{key}-atime").write_bytes(bytes(8))


def test_the_next_process_finds_the_programs_and_mends_the_folder(tmp_path):
    two = [start(tmp_path), start(tmp_path)]  # at the same time
    for process in two:
        (found, new, folder, bound), err = ended(process)
        assert found + new == 2
        assert bound == compile_cache.MAX_BYTES
        assert not err
    folder = Path(folder)
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    first, second = entries(folder)

    (folder / first).write_bytes((folder / first).read_bytes()[:50])  # killed while it wrote
    (folder / first.replace("-cache", "-atime")).unlink()
    (folder / second).write_bytes(b"damaged")
    (found, new, *_), err = ended(start(tmp_path))
    assert (found, new) == (0, 2)
    assert err.count("Error reading persistent compilation cache entry") == 1
    assert len((folder / first).read_bytes()) > 50

    (folder / second).unlink()
    assert ended(start(tmp_path))[0][:2] == [1, 1]
    (found, new, *_), err = ended(start(tmp_path))
    assert (found, new) == (2, 0)
    assert not err


def test_without_a_folder_the_work_goes_on(tmp_path):
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"  # writing fails
    file = tmp_path / "file"
    file.write_text("")
    of_the_user = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")}
    cases = {
        "no folder": start(file),
        "switched off": start(tmp_path / "off", JAX_ENABLE_COMPILATION_CACHE="0"),
        "the user's": start(tmp_path / "other", **of_the_user),
        "a full disk": start(tmp_path / "full", full),
    }
    (*_, folder, bound), err = ended(cases["no folder"])
    assert (folder, bound) == (None, -1)
    assert err.count("\n") == 1
    assert "compiled programs are not kept" in err
    assert f"set {VARIABLE}" in err
    (*_, folder, _), err = ended(cases["switched off"])
    assert (folder, err) == (None, "")
    assert not (tmp_path / "off").exists()
    (_, new, folder, bound), _ = ended(cases["the user's"])
    assert (new, folder, bound) == (2, str(tmp_path / "own"), -1)
    assert not (tmp_path / "other").exists()
    (found, new, *_), err = ended(cases["a full disk"])
    assert found == 0
    assert "Error writing persistent compilation cache entry" in err
    (found, new, *_), _ = ended(start(tmp_path / "full"))
    assert (found, new) == (0, 2)


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    assert compiled_folder() == tmp_path / f"compiled-{os.geteuid()}"
    assert str(compiled_folder()) in compile_cache.help_line()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/own")
    assert "/own" in compile_cache.help_lines()


def test_folders_of_others_are_not_used(tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "compiled"
    make_private(folder)
    make_private(folder)  # again
    folder.chmod(0o770)
    with pytest.raises(PermissionError, match=r"other users can write to .*compiled; delete it"):
        make_private(folder)
    folder.chmod(0o700)
    folder.parent.chmod(0o777)
    with pytest.raises(PermissionError, match=r"all users can replace .*chmod o-w"):
        make_private(folder)
    folder.parent.chmod(0o1777)
    make_private(folder)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(PermissionError, match="belongs to another user"):
        make_private(folder)


def test_what_is_half_written_or_old_is_removed(tmp_path):
    for i, key in enumerate("abcd"):
        entry(tmp_path, key)
        os.utime(tmp_path / f"{key}-atime", (1000 - i, 1000 - i))
    entry(tmp_path, "half", used=False)
    entry(tmp_path, "empty", size=0)
    (tmp_path / "gone-atime").write_bytes(bytes(8))
    (tmp_path / "xla_gpu_per_fusion_autotune_cache_dir").mkdir()
    tidy(tmp_path, most=3)
    assert entries(tmp_path) == ["a-cache", "b-cache", "c-cache"]
    assert len([*tmp_path.glob("*-atime")]) == 3
    assert (tmp_path / "xla_gpu_per_fusion_autotune_cache_dir").is_dir()


def test_a_lock_that_is_not_to_be_had(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_cache, "_LOCK_S", 0.1)
    with filelock.FileLock(tmp_path / ".lockfile"), pytest.raises(OSError, match="lockfile"):
        tidy(tmp_path)
