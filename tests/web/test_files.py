"""The folder of temporary files."""

from __future__ import annotations

import os

from clipseg_jax.web.files import Files


def written(files, size=10, age=0, now=1000.0):
    path = files.new("picture.jpg")
    path.write_bytes(bytes(size))
    os.utime(path, (now - age, now - age))
    return path


def test_paths_cannot_be_guessed_and_belong_to_the_user():
    files = Files()
    try:
        first, second = files.new("a.jpg"), files.new("a.jpg")
        assert first.parent != second.parent
        assert len(first.parent.name) == 32
        assert (files.root.stat().st_mode | first.parent.stat().st_mode) & 0o077 == 0
    finally:
        files.close()
    assert not files.root.exists()


SWEEP = {"idle_s": 50, "most_bytes": 1000}


def test_what_is_outside_is_left(tmp_path):
    files = Files(grace_s=0)
    other = tmp_path / "precious"
    other.write_text("x")
    link = files.root / "link"
    link.symlink_to(other)
    for path in (other, files.root / ".." / other.name, link, files.root):
        files.remove(path, now=0)
    assert files.sweep(**SWEEP, now=0) == 0
    assert other.exists()
    assert link.is_symlink()
    files.close()


def test_a_file_stays_for_those_who_still_fetch_it():
    files = Files()
    path = written(files)
    files.remove(path, now=1000.0)
    assert files.sweep(**SWEEP, now=1002.0) == 0
    assert files.sweep(**SWEEP, now=1004.0) == 1
    assert not path.parent.exists()
    files.remove(path, now=1011.0)
    assert files.sweep(**SWEEP, now=1030.0) == 0
    assert files.root.exists()
    files.close()


def test_what_nobody_removed():
    files = Files()
    old, young, loose = written(files, age=100), written(files), files.root / "tmpabc"
    loose.write_bytes(b"")  # as Gradio leaves them
    os.utime(loose, (0, 0))
    assert files.sweep(**SWEEP, now=1000.0) == 2
    assert not old.parent.exists()
    assert young.exists()
    newer = written(files, age=-1)
    assert files.sweep(idle_s=50, most_bytes=15, now=1001.0) == 1
    assert newer.exists()
    assert not young.exists()
    files.close()
