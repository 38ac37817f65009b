"""The walk over folders: links once, files only, nothing opened, everything left out is named."""

from __future__ import annotations

import os
import socket
import time

import pytest

from input_pipeline import walk
from input_pipeline.datasets.layout import files_below
from input_pipeline.walk import NotAFile, check_regular, find_files, open_regular


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def names(found, root):
    return [str(path.relative_to(root)) for path in found.files]


def reasons(found, root):
    return {str(path.relative_to(root)): reason for path, reason in found.left_out}


def test_files_are_sorted_and_chosen_by_suffix_in_any_case(tmp_path):
    make(tmp_path, "b/2.JPG", "b/1.jpg", "a.png", "a.txt", ".hidden.jpg", ".git/x.jpg")
    found = find_files(tmp_path, (".jpg", ".png"))
    assert names(found, tmp_path) == ["a.png", "b/1.jpg", "b/2.JPG"]
    assert found.left_out == []
    assert names(find_files(tmp_path, ()), tmp_path) == ["a.png", "a.txt", "b/1.jpg", "b/2.JPG"]


def test_what_is_no_file_is_named(tmp_path, monkeypatch):
    make(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "fifo.jpg")
    os.mkfifo(tmp_path / "fifo.txt")  # has no name of an image
    (tmp_path / "broken.jpg").symlink_to("nothing")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "device.jpg").symlink_to(os.devnull)
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        found = find_files(tmp_path, (".jpg",))
    assert names(found, tmp_path) == ["a.jpg"]
    left_out = reasons(found, tmp_path)
    assert set(left_out) == {"fifo.jpg", "broken.jpg", "loop.jpg", "device.jpg", "socket.jpg"}
    assert "named pipe" in left_out["fifo.jpg"]
    assert "socket" in left_out["socket.jpg"]
    assert "device" in left_out["device.jpg"]
    assert "broken link" in left_out["broken.jpg"]


def test_a_folder_is_read_once_however_many_links_lead_there(tmp_path):
    make(tmp_path, "in/z/a.jpg", "store/b.jpg")
    root = tmp_path / "in"
    for i, target in enumerate((".", ".", "..", "z", "../store", "../store")):
        (root / f"link{i}").symlink_to(target)
    (root / "z/up").symlink_to("..")
    found = find_files(root, ())
    assert names(found, root) == ["link4/b.jpg", "z/a.jpg"]
    left_out = reasons(found, root)
    assert set(left_out) == {"link0", "link1", "link2", "link3", "link5", "z/up"}
    assert "above" in left_out["link2"]
    assert str(root / "z") in left_out["link3"]


def test_a_file_counts_under_each_of_its_names(tmp_path):
    make(tmp_path, "a.jpg")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    os.link(tmp_path / "a.jpg", tmp_path / "c.jpg")
    assert names(find_files(tmp_path, ()), tmp_path) == ["a.jpg", "b.jpg", "c.jpg"]


def test_folders_can_be_left_out_by_any_name(tmp_path):
    make(tmp_path, "a.jpg", "out/b.jpg")
    (tmp_path / "same").symlink_to("out")
    found = find_files(tmp_path, (), leave_out=[tmp_path / "same", tmp_path / "absent"])
    assert names(found, tmp_path) == ["a.jpg"]


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    make(tmp_path, "a.jpg", "secret/b.jpg")
    scandir = os.scandir

    def refuse(path):
        if path == tmp_path / "secret":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(walk.os, "scandir", refuse)  # root may read everything
    found = find_files(tmp_path, ())
    assert names(found, tmp_path) == ["a.jpg"]
    assert reasons(found, tmp_path) == {"secret": "cannot be read (Permission denied)"}
    with pytest.raises(PermissionError):
        find_files(tmp_path / "secret", ())


def test_the_walk_of_a_dataset_says_what_it_left_out(tmp_path, caplog):
    make(tmp_path, "x/a.jpg")
    os.mkfifo(tmp_path / "z.jpg")
    assert files_below(tmp_path) == {"x/a.jpg"}
    assert str(tmp_path / "z.jpg") in caplog.text


def test_time_is_linear_in_the_number_of_files(tmp_path):
    def seconds(count):
        folder = tmp_path / str(count)
        folder.mkdir()
        for i in range(count):
            (folder / f"{i}.jpg").touch()
        start = time.process_time()
        assert len(files_below(folder)) == count
        return time.process_time() - start

    seconds(100)
    assert seconds(20_000) < 40 * max(seconds(2_000), 0.005)


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_only_regular_files_are_opened(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(os.devnull)
    for use in (check_regular, open_regular):
        with pytest.raises(NotAFile, match=rf"{path} is a .*not a file"):
            use(path)


def test_a_regular_file_is_opened_and_an_absent_one_is_not_found(tmp_path):
    make(tmp_path, "a")
    with open_regular(tmp_path / "a") as file:
        assert file.read() == b"x"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "b")
