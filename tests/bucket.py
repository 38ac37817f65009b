"""A folder that stands in for gs://: what etils, Orbax and TensorStore would ask Cloud Storage."""

from __future__ import annotations

import builtins
import contextlib
import os
import posixpath
from collections import Counter
from pathlib import Path

from etils.epath import backend, gpath
from orbax.checkpoint._src.path import gcs_utils

GS = "gs://"


class Bucket(backend._OsPathBackend):
    """Cloud Storage by objects: no half-written ones, no empty folders, nothing appended."""

    def __init__(self, root: Path):
        self.root = root
        self.writes: Counter[str] = Counter()

    def local(self, path):
        text = os.fspath(path)
        assert text.startswith(GS), text
        return str(self.root / text.removeprefix(GS))

    @contextlib.contextmanager
    def open(self, path, mode):
        local = self.local(path)
        if mode in ("r", "rb"):
            with builtins.open(local, mode) as file:
                yield file
            return
        assert mode in ("w", "wb"), f"nothing is appended to an object: {path} {mode}"
        self.writes[os.fspath(path)] += 1
        os.makedirs(os.path.dirname(local), exist_ok=True)
        temporary = f"{local}.uploading"
        with builtins.open(temporary, mode) as file:
            yield file
        os.replace(temporary, local)

    def exists(self, path):
        return super().exists(self.local(path))

    def isdir(self, path):
        return super().isdir(self.local(path))

    def listdir(self, path):
        return super().listdir(self.local(path))

    def glob(self, path):
        found = super().glob(self.local(path))
        return [GS + posixpath.relpath(each, self.root) for each in found]

    def walk(self, top, *, top_down=True, on_error=None):
        for where, folders, files in os.walk(self.local(top), top_down, on_error):
            yield GS + posixpath.relpath(where, self.root), folders, files

    def makedirs(self, path, *, exist_ok=False, mode=None):
        super().makedirs(self.local(path), exist_ok=exist_ok)

    def mkdir(self, path, *, exist_ok=False, mode=None):
        super().mkdir(self.local(path), exist_ok=exist_ok)

    def rmtree(self, path):
        super().rmtree(self.local(path))
        self.drop_empty(path)

    def remove(self, path):
        super().remove(self.local(path))
        self.drop_empty(path)

    def drop_empty(self, path):
        """A folder is there as long as objects in it are."""
        folder = Path(self.local(path)).parent
        while folder != self.root and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent

    def rename(self, path, dst):
        raise AssertionError(f"objects are not renamed: {path} -> {dst}")

    replace = rename

    def copy(self, path, dst, overwrite):
        super().copy(self.local(path), self.local(dst), overwrite)

    def stat(self, path):
        return super().stat(self.local(path))


def serve(root: Path, monkeypatch) -> Bucket:
    """Serves gs://NAME from root/NAME; plain calls with such a path fail."""
    bucket = Bucket(root)
    root.mkdir()
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", bucket)
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
    monkeypatch.setattr(
        gcs_utils,
        "get_kvstore_for_gcs",
        lambda path: {"driver": "file", "path": bucket.local(path)},
    )

    def guarded(plain):
        def call(path, *arguments, **options):
            named = isinstance(path, str | os.PathLike) and os.fspath(path).startswith("gs:")
            assert not named, f"{plain.__name__} of {path}, which is no file"
            return plain(path, *arguments, **options)

        return call

    monkeypatch.setattr(builtins, "open", guarded(open))
    for name in ("open", "mkdir", "stat", "unlink", "rename", "replace", "listdir", "scandir"):
        monkeypatch.setattr(os, name, guarded(getattr(os, name)))
    return bucket
