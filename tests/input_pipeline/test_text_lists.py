"""Lists that users write: any usual encoding, and one error with the list's name for the rest."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from clipseg_jax.stages.label_list import read_label_list
from input_pipeline import text_lists
from input_pipeline.datasets.catalog import VOC12_21, folder
from input_pipeline.prepare.__main__ import main
from input_pipeline.prepare.conversions import sbd_jobs
from input_pipeline.text_lists import BadList, numbered_lines, one_line, printable, read_list

LINES = [(1, "Bär 0 1"), (3, "b 2")]
TEXT = "Bär 0 1 \n \t\nb 2"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_usual_encodings_and_ends_of_lines(tmp_path, encoding, end):
    path = tmp_path / "list.txt"
    path.write_bytes(TEXT.replace("\n", end).encode(encoding))
    assert list(numbered_lines(path)) == LINES
    assert read_list(path) == [["Bär", "0", "1"], ["b", "2"]]


BAD = {
    "latin-1": ("a\nBär".encode("latin-1"), "line 2, is not UTF-8; save the list as UTF-8"),
    "half of utf-16": ("ab".encode("utf-16")[:-1], "is not UTF-16; save the list as UTF-8"),
    "utf-16 without its mark": (
        "ab".encode("utf-16-le"),
        r"line 1 holds the control .*\\x00",
    ),
    "an image": (b"\x89PNG\r\n\x1a\n\0\0\0", "is not UTF-8"),
    "empty": (b"", "is an empty list"),
    "blank": (b" \r\n\n", "is an empty list"),
    "a long line": (b"a\n" + b"x" * 20_000, "line 2 has 20000 characters"),
}
OUTSIDE = {
    "a folder above": (b"a\n../../b", r"line 2: '\.\./\.\./b' leaves the dataset's folder"),
    "below and above": (b"x/../../b 1", r"line 1: 'x/\.\./\.\./b' leaves"),
    "label above": (b"a.jpg ../a.png", r"line 1: '\.\./a\.png' leaves"),
}


@pytest.mark.parametrize("name", [*BAD, *OUTSIDE])
def test_what_is_wrong_is_said_with_the_lists_name(tmp_path, name):
    content, said = {**BAD, **OUTSIDE}[name]
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(BadList, match=f"^{path}.*{said}"):
        read_list(path)
    if name in BAD:
        with pytest.raises(BadList, match=said):
            read_label_list(path, 20)


@pytest.mark.parametrize(
    ("content", "said"),
    [("a\n" * 11, "more than 10 lines"), ("a b c d e f\n" * 2, "more than 10 words")],
)
def test_lists_of_too_many_entries(tmp_path, monkeypatch, content, said):
    """Each takes much more memory than its bytes in the file."""
    (tmp_path / "list.txt").write_text(content)
    for limit in ("_MAX_LINES", "_MAX_WORDS"):
        monkeypatch.setattr(text_lists, limit, 10, raising=False)
    with pytest.raises(BadList, match=rf"list\.txt has {said}"):
        read_list(tmp_path / "list.txt")


def test_texts_of_files_are_shown_as_one_short_line():
    assert printable("Bär") == "Bär"
    assert printable("a\x1b[2J\ud800").isprintable()
    assert len(printable("x" * 10**6)) < 600
    assert one_line(ValueError("a\nb   c")) == "a b c"
    assert one_line(KeyError()) == "KeyError"


def test_lists_are_files(tmp_path):
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(OSError, match=r"list\.txt is a named pipe"):
        read_list(tmp_path / "list.txt")


def voc(root, stems):
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for stem in stems:
        Image.new("RGB", (5, 4)).save(root / f"JPEGImages/{stem}.jpg")
        Image.fromarray(np.ones((4, 5), np.uint8)).save(root / f"SegmentationClass/{stem}.png")
    return root / "ImageSets/Segmentation/val.txt"


@pytest.mark.parametrize("name", BAD)
def test_datasets_and_prepare_name_the_list(tmp_path, name, capsys):
    content, said = BAD[name]
    path = voc(tmp_path, ["a"])
    path.write_bytes(content)
    with pytest.raises(BadList, match=f"^{path}.*{said}"):
        VOC12_21.index(tmp_path)
    assert main(["voc", "--root", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "unreadable list: 1\n  ImageSets/Segmentation/val.txt" in output
    assert "val.txt" not in output.partition("missing list")[2].partition("->")[0]


@pytest.mark.parametrize("listed", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_names_in_another_unicode_form_are_found(tmp_path, listed, stored, caplog):
    path = voc(tmp_path, [unicodedata.normalize(stored, "Bär"), "a"])
    path.write_text(unicodedata.normalize(listed, "Bär") + "\na\n", "utf-8")
    first, second = VOC12_21.index(tmp_path)
    assert first.name == unicodedata.normalize(listed, "Bär")
    assert first.image_path.is_file()
    assert first.label_path.is_file()
    assert second.name == "a"


def test_labels_in_another_unicode_form_than_their_images(tmp_path):
    for name, form in (("images", "NFC"), ("labels", "NFD")):
        (tmp_path / name).mkdir()
        file = tmp_path / name / (unicodedata.normalize(form, "Bär") + ".png")
        Image.new("L", (5, 4)).save(file)
    (example,) = folder(tmp_path, ["x"]).index("")
    assert example.label_path.is_file()


def test_files_behind_a_second_link_are_found_by_their_listed_name(tmp_path):
    path = voc(tmp_path, ["a"])
    for name in ("JPEGImages", "SegmentationClass"):
        (tmp_path / name / "more").mkdir()
        for file in (tmp_path / name).glob("a.*"):
            file.rename(tmp_path / name / "more" / file.name)
        (tmp_path / name / "again").symlink_to("more")
    path.write_text("more/a\nagain/a\n")
    assert [example.name for example in VOC12_21.index(tmp_path)] == ["more/a", "again/a"]


def test_an_image_that_is_listed_twice_is_named(tmp_path):
    voc(tmp_path, ["a", "b"]).write_text("a\nb\nb\n")
    with pytest.raises(ValueError, match="1 images are listed twice, first b; list each"):
        VOC12_21.index(tmp_path)


def test_label_files_are_made_inside_the_dataset_only(tmp_path):
    voc(tmp_path / "voc", ["a"]).write_text("/etc/b\n")
    (tmp_path / "voc/ImageSets/Segmentation/train.txt").write_text("//etc/a\n")
    (tmp_path / "sbd").mkdir()
    for name in ("train", "val"):
        (tmp_path / f"sbd/{name}.txt").write_text(f"/sbd_{name}\n")
    targets = [job.target for job in sbd_jobs(tmp_path / "voc", tmp_path / "sbd")]
    assert len(targets) == 4
    assert all(target.is_relative_to(tmp_path / "voc/SegmentationClassAug") for target in targets)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a,b,c",), "has the name 'a,b,c'; give each class a string of its own"),
        (("a", " "), "has the name ' '"),
        (("a", 3), "has the name 3"),
        (("a", "b", "a"), "has 'a' twice"),
        ("ab", "class_names is 'ab'"),
        ((), "class_names is"),
    ],
)
def test_class_names_of_a_folder(tmp_path, names, said):
    with pytest.raises(ValueError, match=said):
        folder(tmp_path, names)
