"""Files that are no checkpoint are told as what they are; what is no file is not opened."""

from __future__ import annotations

import io
import os
import socket
import zipfile

import numpy as np
import pytest

import weights_convert
from weights_convert import CheckpointError
from weights_convert.__main__ import main
from weights_convert.formats.converted import is_converted
from weights_convert.formats.foreign import foreign

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 598641023\n"


def npz():
    out = io.BytesIO()
    np.savez(out, a=np.zeros(3))
    return out.getvalue()


def archive():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("model.pt", bytes(100))
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (POINTER.encode(), r"Git LFS pointer of 598,641,023 bytes.*git lfs pull"),
        (b"\n\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "web page"),
        (b'{"metadata": {"total_size": 5}, "weight_map": {}}', "in several files"),
        (b'{"architectures": ["CLIPModel"]}', "is JSON"),
        (b"\x1f\x8b\x08" + bytes(60), r"archive \(gzip\).*unpack"),
        (bytes(257) + b"ustar" + bytes(250), "tar archive"),
        (b"\x81\xa6params\x81\xa5model" + bytes(60), "msgpack"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "HDF5"),
        (b"\x93NUMPY\x01\x00" + bytes(60), "NumPy"),
        (bytes(5000), "download was not completed"),
        (npz(), "without PyTorch's data.pkl"),
        (archive(), "unpack it"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_files(content, said, suffix, tmp_path, capsys):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as caught:
        weights_convert.read(path)
    assert str(path) in str(caught.value)
    assert main(["--inspect", str(path)]) == 2
    assert capsys.readouterr().err.count("error:") == 1


@pytest.mark.parametrize("length", [0x5B0A, 0x7B20, 0x8B1F, 0x5A42, 0xA681])
def test_safetensors_of_any_length_of_header_are_no_other_file(length):
    assert foreign(length.to_bytes(8, "little") + b'{"a":' + b" " * 300, 10**6) is None


def test_what_is_no_file_is_not_opened(tmp_path, capsys):
    os.mkfifo(tmp_path / "fifo.pt")
    (tmp_path / "folder.pt").mkdir()
    os.symlink("loop.pt", tmp_path / "loop.pt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.pt"))
        for name in ("fifo.pt", "folder.pt", "socket.pt", "loop.pt", "missing.pt", "/dev/zero"):
            for arguments in (["--inspect"], ["-o", str(tmp_path / "out.safetensors")]):
                assert main([*arguments, str(tmp_path / name)]) == 2
                assert capsys.readouterr().err.count("error:") == 1
            for read in (weights_convert.read, is_converted):
                with pytest.raises(OSError, match=r"not a file|No such file|symbolic links"):
                    read(tmp_path / name)


def test_a_name_that_steers_the_terminal(tmp_path, capsys):
    path = tmp_path / "\x1b[2J.pt"
    path.write_bytes(b"no weights" * 9)
    assert main(["--inspect", str(path)]) == 2
    assert "\\x1b[2J" in capsys.readouterr().err
