"""Transfers that break, lie or change; what counts in the end has the right checksum."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket

import pytest

from clipseg_jax.core.command import exit_code
from input_pipeline.writing import CannotWrite
from weights_convert import CheckpointError, find_weights
from weights_convert.named import download, part
from weights_convert.named.cache import location
from weights_convert.named.download import CannotDownload

DATA = bytes(range(256)) * 12_000  # 3 MB
OTHER = DATA[::-1]


def gets(server):
    """The byte at which each request began."""
    return [int(re.sub(r"\D", "", wanted) or 0) for _, wanted in server.asked]


def left(target):
    """What is beside the file, without locks."""
    return sorted(path.name for path in target.parent.iterdir() if path.is_file())


def stop(monkeypatch, after):
    """A transfer ends with this process after so many bytes, as when it is killed."""
    append = part.Part.append

    def die(self, block):
        append(self, block)
        if self.size >= after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(part.Part, "append", die)
        patch.setattr(download, "BLOCK", 300_000)
        with pytest.raises(KeyboardInterrupt):
            find_weights("Toy/1")


def test_first_and_second_use(known, server, cache, capsys):
    weights = known(DATA)
    path = find_weights("Toy/1")
    assert path == cache / "weights" / "toy.pt"
    assert path.read_bytes() == DATA
    record = json.loads((path.parent / "toy.pt.json").read_text())
    assert (record["sha256"], record["address"]) == (weights.sha256, weights.address)
    assert left(path) == ["toy.pt", "toy.pt.json"]
    assert f"downloading Toy/1 from {weights.address} to {path}" in capsys.readouterr().err
    assert find_weights("Toy/1") == path
    assert gets(server) == [0]
    assert capsys.readouterr().err == ""


def test_progress_where_nobody_watches(known, monkeypatch, capsys):
    monkeypatch.setattr(part, "_LINE_S", 0)
    known(DATA)
    find_weights("Toy/1")
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"Toy/1: [\d.]+k?M?B of 3.07MB, .* passed, .* left", lines[-1])
    assert "\r" not in "".join(lines)


def test_a_checked_file_is_not_read_again(known, monkeypatch):
    known(DATA)
    path = find_weights("Toy/1")
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
    assert find_weights("Toy/1") == path


def test_a_file_put_there_by_hand(known, server):
    target = location(known(DATA))
    target.parent.mkdir(parents=True)
    target.write_bytes(DATA)
    assert find_weights("Toy/1") == target
    target.write_bytes(OTHER)
    with pytest.raises(CheckpointError, match=r"toy\.pt is not Toy/1: its sha256 is .*; delete it"):
        find_weights("Toy/1")
    assert gets(server) == []


@pytest.mark.parametrize("cuts", [[1_000_000], [500_000, 400_000, 0, 0, 0, 10]])
def test_a_transfer_that_breaks_is_resumed(known, server, cuts, capsys):
    known(DATA)
    server.faults.cut_after = [*cuts]
    assert find_weights("Toy/1").read_bytes() == DATA
    assert gets(server) == [sum(cuts[:i]) for i in range(len(cuts) + 1)]
    assert "ended after" in capsys.readouterr().err


def test_a_transfer_that_stays_broken(known, server, capsys):
    weights = known(DATA)
    server.faults.cut_after = [1_000_000, *[0] * 20]
    with pytest.raises(CannotDownload, match="ended after 1,000,000 of 3,072,000 bytes") as error:
        find_weights("Toy/1")
    assert len(server.asked) == 1 + 4
    for part_of_remedy in (weights.address, weights.sha256, "3,072,000", str(location(weights))):
        assert part_of_remedy in str(error.value)
    assert exit_code(lambda: find_weights("Toy/1")) == 74
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: cannot download Toy/1: ")


@pytest.mark.parametrize("etag", ["strong", "weak", "none"])
def test_a_stopped_run_is_resumed(known, server, monkeypatch, etag):
    """With a full checksum also where the server cannot say whether its file is the same."""
    known(DATA)
    server.faults.etag = etag
    stop(monkeypatch, after=1_000_000)
    assert find_weights("Toy/1").read_bytes() == DATA
    assert gets(server) == [0, 1_200_000]


def test_without_a_full_checksum_only_the_same_version_is_resumed(known, server, monkeypatch):
    known(DATA, sha256="", size=None)
    server.faults.etag = "weak"
    stop(monkeypatch, after=1_000_000)
    assert find_weights("Toy/1").read_bytes() == DATA
    assert gets(server) == [0, 0]


def test_a_break_where_two_versions_could_not_be_told_apart(known, server):
    known(DATA, sha256="", size=None)
    server.faults.etag = "none"
    server.faults.cut_after = [1_000_000]
    assert find_weights("Toy/1").read_bytes() == DATA
    assert gets(server) == [0, 0]


def test_another_version_after_a_break(known, server, monkeypatch):
    """Without an ETag the two are put together, the checksum says so, and all is fetched again."""
    known(DATA)
    server.faults.etag = "none"
    server.faults.cut_after = [1_000_000]
    begin = download._begin

    def replaced(part, response):
        server.files["/toy.pt"] = OTHER if len(server.asked) == 1 else DATA
        return begin(part, response)

    server.files["/toy.pt"] = OTHER
    monkeypatch.setattr(download, "_begin", replaced)
    assert find_weights("Toy/1").read_bytes() == DATA
    assert gets(server) == [0, 1_000_000, 0]


def test_a_server_that_cannot_resume(known, server, monkeypatch):
    known(DATA)
    stop(monkeypatch, after=1_000_000)
    server.faults.ranges = False
    assert find_weights("Toy/1").read_bytes() == DATA
    assert gets(server) == [0, 1_200_000]


def test_the_file_changed_meanwhile(known, server, monkeypatch):
    """The server has another version by then: If-Range has it send all of it."""
    known(OTHER)
    stop(monkeypatch, after=1_000_000)
    known(DATA)
    assert find_weights("Toy/1").read_bytes() == DATA


def test_a_damaged_beginning_is_fetched_again(known, server, monkeypatch):
    weights = known(DATA)
    stop(monkeypatch, after=1_000_000)
    partial = location(weights).with_name("toy.pt.part")
    with partial.open("r+b") as file:
        file.write(b"damage")
    assert find_weights("Toy/1").read_bytes() == DATA
    assert gets(server) == [0, 1_200_000, 0]


def test_a_beginning_that_is_longer_than_the_file(known, server, monkeypatch):
    weights = known(DATA)
    stop(monkeypatch, after=1_000_000)
    partial = location(weights).with_name("toy.pt.part")
    partial.write_bytes(DATA + DATA)
    assert find_weights("Toy/1").read_bytes() == DATA
    assert gets(server) == [0, 2 * len(DATA), 0]


def test_all_was_there_but_the_last_step(known, server, monkeypatch):
    known(DATA)
    stop(monkeypatch, after=len(DATA))
    assert find_weights("Toy/1").read_bytes() == DATA
    assert gets(server) == [0]


def test_another_file(known, server):
    weights = known(DATA)
    server.files["/toy.pt"] = OTHER
    with pytest.raises(CheckpointError) as error:
        find_weights("Toy/1")
    assert weights.sha256 in str(error.value)
    assert "its sha256 is " in str(error.value)
    assert "it was removed" in str(error.value)
    assert left(location(weights)) == []
    assert gets(server) == [0]


def test_the_first_digits_of_a_checksum(known, server):
    weights = known(DATA, size=None)
    known(DATA, sha256=weights.sha256[:8], size=None)
    path = find_weights("Toy/1")
    path.unlink()
    known(OTHER, sha256=weights.sha256[:8], size=None)
    with pytest.raises(
        CheckpointError, match=f"expected one that begins with {weights.sha256[:8]}"
    ):
        find_weights("Toy/1")


def test_trusted_at_first_use(known, server):
    known(DATA, sha256="", size=None)
    path = find_weights("Toy/1")
    path.unlink()
    server.files["/toy.pt"] = OTHER
    with pytest.raises(CheckpointError, match=r"downloaded first .*delete .*toy\.pt\.json"):
        find_weights("Toy/1")
    server.files["/toy.pt"] = DATA
    assert find_weights("Toy/1").read_bytes() == DATA
    path.write_bytes(OTHER)
    with pytest.raises(CheckpointError, match="downloaded first"):
        find_weights("Toy/1")


@pytest.mark.parametrize("sha256", ["", None])
def test_another_size_than_published(known, server, sha256):
    facts = {} if sha256 is None else {"sha256": sha256}
    weights = known(DATA, size=len(DATA) - 1, **facts)
    with pytest.raises(CheckpointError, match=r"has 3,072,000 bytes, Toy/1 3,071,999: this is not"):
        find_weights("Toy/1")
    assert left(location(weights)) == []


def test_more_than_announced(known, server):
    weights = known(DATA)
    server.files["/toy.pt"] = DATA + b"more"
    server.faults.announced = -1
    with pytest.raises(CheckpointError, match=r"sends more than the 3,072,000 bytes"):
        find_weights("Toy/1")
    assert left(location(weights)) == []


def test_a_length_that_is_not_announced(known, server, monkeypatch):
    known(DATA, size=None)
    server.faults.announced = -1
    server.faults.cut_after = [1_000_000]
    assert find_weights("Toy/1").read_bytes() == DATA
    known(DATA, name="Toy/2", file="toy2.pt", size=None)
    monkeypatch.setattr(download, "_LARGEST", 1_000_000)
    with pytest.raises(CheckpointError, match="sends more than the 1,000,000 bytes"):
        find_weights("Toy/2")


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refused(known, server, status):
    weights = known(DATA)
    server.faults.status = [status]
    with pytest.raises(CheckpointError, match=f"toy.pt says HTTP {status} .*put it at ") as error:
        find_weights("Toy/1")
    assert str(location(weights)) in str(error.value)
    assert len(server.asked) == 1


def test_a_busy_server(known, server):
    known(DATA)
    server.faults.status = [503, 429]
    assert find_weights("Toy/1").read_bytes() == DATA
    server.faults.status = [500] * 10
    known(DATA, name="Toy/2", file="toy2.pt")
    with pytest.raises(CannotDownload, match="the server says HTTP 500"):
        find_weights("Toy/2")


def test_a_silent_server(known, server, monkeypatch):
    known(DATA)
    monkeypatch.setattr(download, "_TIMEOUT_S", 0.1)
    server.faults.wait_s = 1
    with pytest.raises(CannotDownload, match=r"no answer within 0\.1 s"):
        find_weights("Toy/1")


def test_no_network(known, monkeypatch, capsys):
    weights = known(DATA)

    def unknown(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "create_connection", unknown)
    with pytest.raises(CannotDownload) as error:
        find_weights("Toy/1")
    said = str(error.value)
    assert said.startswith("cannot download Toy/1: Temporary failure in name resolution; download ")
    assert said.endswith(f"put it at {location(weights)}: then it is found without a network")
    assert exit_code(lambda: find_weights("Toy/1")) == 74


@pytest.mark.parametrize("there", ["http://example.org/toy.pt", "file:///etc/passwd", "ftp://h/x"])
def test_redirects_to_what_is_not_https(known, server, there):
    weights = known(DATA)
    server.faults.redirect = there
    with pytest.raises(CheckpointError, match=r"it was not followed|is not allowed"):
        find_weights("Toy/1")
    assert left(location(weights)) == []


def test_redirects_in_a_loop_are_one_line(known, server):
    known(DATA)
    server.faults.loop = f"{server.url}/again.pt"
    with pytest.raises(CheckpointError, match=r"HTTP 302 .* infinite loop") as caught:
        find_weights("Toy/1")
    assert "\n" not in str(caught.value)


def test_a_redirect_on_this_machine(known, server):
    known(DATA)
    server.faults.redirect = f"{server.url}/elsewhere.pt"
    server.files["/elsewhere.pt"] = DATA
    assert find_weights("Toy/1").read_bytes() == DATA


def test_a_compressed_answer(known, server):
    known(DATA)
    server.faults.encoding = "gzip"
    with pytest.raises(CheckpointError, match="answers 200 and not with the file"):
        find_weights("Toy/1")


def test_no_space_for_it(known, server, monkeypatch):
    known(DATA)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(CannotWrite, match=r"3,072,000 bytes are needed, 100 are free; .*_CACHE"):
        find_weights("Toy/1")
    assert exit_code(lambda: find_weights("Toy/1")) == 74


def test_the_disk_is_full_in_the_middle(known, server, monkeypatch):
    weights = known(DATA)

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, block):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name):
            return getattr(self.file, name)

    opened = open
    monkeypatch.setattr(part, "open", lambda *args: Full(opened(*args)), raising=False)
    with pytest.raises(CannotWrite, match="No space left on device"):
        find_weights("Toy/1")
    assert left(location(weights)) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written(known, cache):
    known(DATA)
    cache.mkdir()
    cache.chmod(0o500)
    with pytest.raises(CannotWrite, match="set CLIPSEG_JAX_CACHE to a folder that"):
        find_weights("Toy/1")


def test_a_cache_below_a_file(known, cache):
    known(DATA)
    cache.write_text("")
    with pytest.raises(CannotWrite, match="set CLIPSEG_JAX_CACHE to a folder that"):
        find_weights("Toy/1")


def test_a_file_system_without_locks(known, server, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    known(DATA)
    monkeypatch.setattr("fcntl.flock", flock)
    assert find_weights("Toy/1").read_bytes() == DATA
