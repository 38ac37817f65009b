"""Records: the same examples and batches as the folder they were built from, or one clear error."""

import http.server
import io
import logging
import os
import pickle
import shutil
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")

from array_record.python import array_record_module

from input_pipeline import records_build
from input_pipeline.batches.evaluation import evaluation_batches
from input_pipeline.batches.training import random_view_batches
from input_pipeline.datasets import catalog, records
from input_pipeline.datasets.catalog import ADE20K, VOC12_20, VOC12_21
from input_pipeline.datasets.image_labels import image_labels
from input_pipeline.datasets.images import BadFile, image_size, read_image, read_label
from input_pipeline.prepare import records_write
from tests import seeded

# Not in the order of the names: the lists decide.
TRAIN = ("2008_3", "2007_1", "2009_2", "2007_9", "2010_4")
VAL = ("2011_8", "2007_5", "2012_6", "2008_0", "2007_7", "2010_10", "2009_11")
EXIF_SIDEWAYS = 6


def write_voc(root):
    """VOC's layout: palette labels; one image is grey, one lies on its side."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for split, names in (("train", TRAIN), ("val", VAL)):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
        for i, name in enumerate(names):
            height, width = 24 + 5 * i, 50 - 4 * i
            image = Image.fromarray(seeded.image(height, width, i + len(split)))
            options = {}
            if i == 1:
                image = image.convert("L")
            if i == 2:
                image = image.transpose(Image.Transpose.ROTATE_90)
                options["exif"] = Image.Exif()
                options["exif"][0x0112] = EXIF_SIDEWAYS
            image.save(root / f"JPEGImages/{name}.jpg", quality=90, **options)
            ids = seeded.label_map(height, width, 21, i)
            ids[0, 0] = 255
            label = Image.fromarray(ids.astype(np.uint8))
            if i != 3:  # that one is a grey PNG already
                label.putpalette(bytes(range(256)) * 3)
            label.save(root / f"SegmentationClass/{name}.png")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """(folder, records): shards of one to three images."""
    root = tmp_path_factory.mktemp("datasets")
    write_voc(root / "VOC2012")
    built = root / "records"
    counts = records_build.build(
        VOC12_20, root / "VOC2012", built, ["train", "val"], name="voc12_20", shards=3
    )
    assert counts == {"train": len(TRAIN), "val": len(VAL)}
    return root / "VOC2012", built


@pytest.fixture(autouse=True)
def no_count_warning(caplog):
    caplog.set_level(logging.ERROR, logger="input_pipeline.datasets.layout")


def same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def network_size(height, width):
    return (height + 15) // 16 * 16, (width + 15) // 16 * 16


def test_coco_object(tmp_path):
    """Labels that `prepare` makes: a split of val alone, in records as in the folder."""
    folder = tmp_path / "coco_stuff164k"
    for kind in ("images", "annotations"):
        (folder / kind / "val2017").mkdir(parents=True)
    for i, label in enumerate((0, 80)):
        stem = f"{i:012d}"
        Image.fromarray(seeded.image(24, 30, i)).save(folder / f"images/val2017/{stem}.jpg")
        ids = Image.fromarray(np.full((24, 30), label, np.uint8))
        ids.save(folder / f"annotations/val2017/{stem}_instanceTrainIds.png")
    built = tmp_path / "records"
    dataset = catalog.COCO_OBJECT
    assert records_build.build(dataset, tmp_path, built, ["val"]) == {"val": 2}
    for plain, stored in zip(dataset.index(tmp_path), dataset.index(built), strict=True):
        assert plain.name == stored.name
        labels = [read_label(each.label_path, dataset.num_classes) for each in (plain, stored)]
        np.testing.assert_array_equal(*labels)


def test_examples(places):
    # The other record of the same files takes these records, too.
    for dataset, split, names in ((VOC12_20, "train", TRAIN), (VOC12_21, "val", VAL)):
        ours = pickle.loads(pickle.dumps(dataset.index(places[1], split)))
        assert [example.name for example in ours] == list(names)
        for stored, plain in zip(ours, dataset.index(places[0], split), strict=True):
            assert stored.image_path.read_bytes() == plain.image_path.read_bytes()
            assert image_size(stored.image_path) == image_size(plain.image_path)
            np.testing.assert_array_equal(
                read_label(stored.label_path), read_label(plain.label_path)
            )
            with Image.open(io.BytesIO(stored.label_path.read_bytes())) as label:
                assert (label.mode, label.format) == ("L", "PNG")
            assert stored.name in str(stored.image_path)


def test_sizes_open_no_shard(places, monkeypatch):
    examples = VOC12_20.index(places[1], "val")
    monkeypatch.setattr(records, "open_shard", None)
    records._opened.cache_clear()
    monkeypatch.setattr(records, "_last", threading.local())
    assert len(evaluation_batches(VOC12_20, examples, batch_size=2)) > 0
    with pytest.raises(TypeError):
        examples[0].image_path.read_bytes()


def test_an_image_and_its_label_are_one_read(places, monkeypatch):
    reads = []

    class Counting:
        def read(self, positions):
            reads.extend(positions)
            return records.open_shard(example.image_path.shard).read(positions)

    example = VOC12_20.index(places[1], "val")[0]
    monkeypatch.setattr(records, "_last", threading.local())
    monkeypatch.setattr(records, "_shard", lambda path: Counting())
    read_image(example.image_path)
    read_label(example.label_path)
    assert reads == [0]


def test_evaluation_batches(places):
    streams = [
        evaluation_batches(
            VOC12_20,
            VOC12_20.index(place, "val"),
            batch_size=3,
            network_size=network_size,
            max_buckets=2,
        )
        for place in places
    ]
    assert streams[0].plan == streams[1].plan
    for first, second in zip(*streams, strict=True):
        same(first, second)


def test_training_batches(places):
    streams = [
        random_view_batches(
            VOC12_20,
            VOC12_20.index(place, "train"),
            batch_size=4,
            scale=(64, 32),
            crop_hw=(32, 40),
            seed=3,
        ).batches()
        for place in places
    ]
    for _ in range(4):  # two epochs
        same(*(next(batches) for batches in streams))


def test_threads(places):
    examples = VOC12_20.index(places[1], "val")
    plain = [e.image_path.read_bytes() for e in VOC12_20.index(places[0], "val")]
    order = np.random.default_rng(0).integers(len(examples), size=2000)
    with ThreadPoolExecutor(16) as pool:
        read = pool.map(lambda i: examples[i].image_path.read_bytes() == plain[i], order)
        assert all(read)


def test_tfds_opens_them(places):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(places[1]).as_data_source("val")
    assert [row["name"].decode() for row in source] == list(VAL)
    example = VOC12_20.index(places[0], "val")[0]
    np.testing.assert_array_equal(source[0]["image"], read_image(example.image_path))
    np.testing.assert_array_equal(source[0]["label"][..., 0], read_label(example.label_path))


def test_beyond_memory_the_order_stays(places, tmp_path, monkeypatch):
    """Above a limit TFDS sorts on disk, in buckets that should hold about the same."""
    from tensorflow_datasets.core import shuffle

    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)
    used, place = set(), shuffle.get_bucket_number

    def watched(*args, **options):
        used.add(place(*args, **options))
        return max(used)

    monkeypatch.setattr(shuffle, "get_bucket_number", watched)
    records_build.build(VOC12_20, places[0], tmp_path / "out", ["val"])
    examples = VOC12_20.index(tmp_path / "out", "val")
    assert [example.name for example in examples] == list(VAL)
    assert len(used) == len(VAL)
    assert max(used) > 800
    for example in examples:
        example.image_path.read_bytes()  # would say that the record is of another image


def test_plain_folder(tmp_path):
    """Splits with and without labels in one set of records, which may be built again from it."""
    for folder in ("images", "labels", "train/images"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.bmp")):
        for folder in ("images", "train/images"):
            Image.fromarray(seeded.image(20, 30, i)).save(tmp_path / "in" / folder / name)
        label = Image.fromarray(np.full((20, 30), i, np.uint8))
        label.save(tmp_path / "in" / "labels" / f"{name[0]}.png")
    out, again = tmp_path / "out", tmp_path / "again"
    assert records_build.main(["folder", "--root", str(tmp_path / "in"), "--out", str(out)]) == 0
    dataset = records_build.find_record("folder", tmp_path / "in")
    assert all(e.label_path is None for e in dataset.index(tmp_path / "in", "train"))
    pets, rebuilt = (catalog.folder(place, ("cat", "dog")) for place in (out, again))
    examples = pets.index("")
    assert [read_label(e.label_path, 2).max() for e in examples] == [0, 1]
    records_build.build(pets, out, again, ["val"])
    for first, second in zip(examples, rebuilt.index(""), strict=True):
        assert first.image_path.read_bytes() == second.image_path.read_bytes()
    unlabelled = records_build.find_record("folder", out)
    assert all(e.label_path is None for e in unlabelled.index(out, "train"))


def test_image_labels(places, tmp_path):
    """Those of the annotations go into the index, and from records into records."""
    with pytest.raises(FileNotFoundError, match="built from a folder without annotations; build"):
        image_labels(VOC12_21, places[1], "val")
    root, built, again = tmp_path / "VOC2012", tmp_path / "built", tmp_path / "again"
    shutil.copytree(places[0], root)
    (root / "Annotations").mkdir()
    names = ("dog", "cat", "person", "cow", "sheep", "bus", "boat")
    for stem, name in zip(VAL, names, strict=True):
        objects = "".join(f"<object><name>{each}</name></object>" for each in (name, "bird"))
        (root / f"Annotations/{stem}.xml").write_text(f"<a>{objects}</a>")
    expected = image_labels(VOC12_21, root, "val")
    assert expected.labels[0] == (11, 2)
    records_build.build(VOC12_21, root, built, ["val"])
    assert image_labels(VOC12_21, built, "val") == expected
    records_build.build(VOC12_20, built, again, ["val"])
    assert image_labels(VOC12_20, again, "val") == expected
    assert VOC12_20.index(again, "val", labels=False)[0].label_path is None
    (root / f"Annotations/{VAL[3]}.xml").unlink()
    with pytest.raises(BadFile, match=f"1 of 7 .*\n  {VAL[3]}: there is no Annotations/"):
        records_build.build(VOC12_20, root, tmp_path / "none", ["val"])


@pytest.fixture(scope="module")
def original(places, tmp_path_factory):
    """Records with one shard for each image of val."""
    built = tmp_path_factory.mktemp("original") / "records"
    records_build.build(VOC12_20, places[0], built, ["val"], name="voc", shards=len(VAL))
    return built


@pytest.fixture
def copy(original, tmp_path):
    """Records to be damaged."""
    return Path(shutil.copytree(original, tmp_path / "copy"))


def shard(folder, number):
    return next(folder.glob(f"*-val.array_record-{number:05d}-*"))


def test_damaged_record(copy):
    path = shard(copy, 2)
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    examples = VOC12_20.index(copy, "val")
    with pytest.raises(BadFile, match=f"{path.name} record 0 .image of {VAL[2]}.*Corrupted"):
        list(evaluation_batches(VOC12_20, examples, batch_size=2))
    left_out = evaluation_batches(VOC12_20, examples, batch_size=2, on_bad="skip")
    assert sum(batch["valid"].sum() for batch in left_out) == len(VAL) - 1
    assert [skipped.name for skipped in left_out.skipped] == [VAL[2]]


def test_damaged_folder(copy, tmp_path):
    def check(damage, match):
        folder = tmp_path / match.split()[0]
        shutil.copytree(copy, folder)
        damage(folder)
        with pytest.raises(records.RecordsError, match=match) as error:
            [example.image_path.read_bytes() for example in VOC12_20.index(folder, "val")]
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)

    def cut(path):
        path.write_bytes(path.read_bytes()[:-100])

    def swap(folder):  # as long, but of another build
        first, second = shard(folder, 0), shard(folder, 1)
        first.write_bytes(second.read_bytes())

    def zero_end(path):
        content = bytearray(path.read_bytes())
        content[-(1 << 16) :] = bytes(1 << 16)
        path.write_bytes(content)

    check(lambda folder: (folder / records.INDEX).unlink(), "no index.array_record: it is")
    check(lambda folder: cut(folder / records.INDEX), "not readable")
    check(lambda folder: cut(shard(folder, 4)), "bytes, not")
    check(lambda folder: shard(folder, 4).unlink(), "missing; copy the whole")
    check(swap, "the record is of another image")
    check(lambda folder: zero_end(shard(folder, 4)), "readable .*; copy or build")


def change_index(folder, key, value):
    """Sets an entry of split val, or of the index itself."""
    index = records.read_index(str(folder))
    target = index if key in index else index["splits"]["val"]
    if callable(value):
        value(target[key])
    else:
        target[key] = value
    (folder / records.INDEX).unlink()
    records_write.write_index(folder, index)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("splits", [], "splits is no dictionary"),
        ("splits", {"val": None}, "split val is no dictionary"),
        ("splits", {"val": {}}, "split val: source, labels, names, sizes, shards cannot be used"),
        ("source", "JPEGImages", "source cannot"),
        ("source", [["JPEGImages"]], "source cannot"),
        ("labels", 1, "labels cannot"),
        ("names", None, "names cannot"),
        ("names", lambda names: names.append(3), "names cannot"),
        ("names", lambda names: names.append("more"), "not equally many"),
        ("names", lambda names: names.__setitem__(0, names[1]), "names cannot"),
        ("sizes", lambda sizes: sizes.pop(), "not equally many"),
        ("sizes", lambda sizes: sizes.__setitem__(0, [3]), "sizes cannot"),
        ("sizes", lambda sizes: sizes.__setitem__(0, [3, -4]), "sizes cannot"),
        ("sizes", lambda sizes: sizes.__setitem__(0, [3, 4.5]), "sizes cannot"),
        ("sizes", lambda sizes: sizes.__setitem__(0, [10**6, 10**6]), "sizes cannot"),
        ("shards", lambda shards: shards.append({}), "shards cannot"),
        ("shards", lambda shards: shards.append(shards[0]), "shards cannot"),
        ("shards", lambda shards: shards[0].update(records=10**15), "not equally many"),
        ("shards", lambda shards: shards[0].update(records="1"), "shards cannot"),
        ("shards", lambda shards: shards[0].update(bytes=-1), "shards cannot"),
        ("shards", lambda shards: shards[0].update(file="/etc/passwd"), "shards cannot"),
        ("shards", lambda shards: shards[0].update(file="../x"), "shards cannot"),
        ("shards", lambda shards: shards[0].update(file=".."), "shards cannot"),
        ("shards", lambda shards: shards[0].update(file="a\x1b[31m"), "shards cannot"),
        ("shards", lambda shards: shards[0].update(file="a\0"), "shards cannot"),
        ("image_labels", [[0]], "not equally many"),
        ("image_labels", "none", "image_labels cannot"),
    ],
)
def test_an_index_of_strangers_is_checked(copy, key, value, said):
    change_index(copy, key, value)
    with pytest.raises(records.RecordsError) as raised:
        VOC12_20.index(copy, "val")
    message = str(raised.value)
    assert message.startswith(f"{copy / records.INDEX}: damaged (")
    assert said in message


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/a", "//a", "../a", "a/../../b", "a/..", "./a", "a//b", "a/", "a\0b", "\ud800",
     "ä" * 128],
)  # fmt: skip
def test_names_of_results_elsewhere_are_refused(copy, name):
    change_index(copy, "names", lambda names: names.__setitem__(0, name))
    with pytest.raises(records.RecordsError, match=rf"^{copy / records.INDEX}: damaged \("):
        VOC12_20.index(copy, "val")


@pytest.mark.parametrize(
    "name", ["a", "..a", "a..b/c.d", "日本/語", " ", "a\\b", "a\nb", "a" * 255]
)
def test_other_names_are_taken(copy, name):
    change_index(copy, "names", lambda names: names.__setitem__(0, name))
    assert VOC12_20.index(copy, "val")[0].name == name


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff", b'{"format": {}}', b"3"])
def test_an_index_that_is_none_is_named(copy, content):
    (copy / records.INDEX).unlink()
    writer = array_record_module.ArrayRecordWriter(str(copy / records.INDEX), "group_size:1")
    writer.write(content)
    writer.close()
    with pytest.raises(records.RecordsError, match=records.INDEX):
        VOC12_20.index(copy, "val")


def test_an_index_that_unpacks_to_very_much_is_not_parsed(copy):
    (copy / records.INDEX).unlink()
    writer = array_record_module.ArrayRecordWriter(str(copy / records.INDEX), "group_size:1,zstd:3")
    writer.write(b'{"format": 1, "a": [' + b" " * 10**7 + b"]}")
    writer.close()
    with pytest.raises(records.RecordsError, match=r"damaged \(it unpacks to 10,000,022 bytes\)"):
        VOC12_20.index(copy, "val")


def test_a_record_larger_than_an_image_is_named(places, monkeypatch):
    image = VOC12_20.index(places[1], "val")[0].image_path
    monkeypatch.setattr(records, "_LARGEST_RECORD", 100)
    monkeypatch.setattr(records, "_last", threading.local())
    with pytest.raises(BadFile, match=r"record 0 .*, more than an image; remove it"):
        image.read_bytes()


@pytest.mark.parametrize("record", [b"", b"\xff\xff\xff", b"no example"])
def test_a_record_that_is_no_example_is_named(copy, record):
    path = VOC12_20.index(copy, "val")[0].image_path.shard
    count = records.open_shard(path).num_records()
    os.unlink(path)
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
    for _ in range(count):
        writer.write(record)
    writer.close()
    change_index(copy, "shards", lambda shards: shards[0].update(bytes=os.path.getsize(path)))
    image = VOC12_20.index(copy, "val")[0].image_path
    with pytest.raises(BadFile, match=rf"^{path} record 0"):
        image.read_bytes()


def test_wrong_root(places):
    with pytest.raises(ValueError, match=r"no records of split 'trainaug', only: train, val"):
        VOC12_20.index(places[1], "trainaug")
    with pytest.raises(ValueError, match="There is no split 'test'"):
        VOC12_20.index(places[1], "test")
    with pytest.raises(ValueError, match="records of another dataset"):
        ADE20K.index(places[1], "val")


def test_bad_files_stop_the_build(places, tmp_path):
    root, out = tmp_path / "VOC2012", tmp_path / "out"
    shutil.copytree(places[0], root)
    image = root / f"JPEGImages/{VAL[1]}.jpg"
    image.write_bytes(image.read_bytes()[:200])
    Image.fromarray(np.full((4, 4), 77, np.uint8)).save(root / f"SegmentationClass/{VAL[4]}.png")
    with pytest.raises(BadFile, match="2 of 7 images cannot be used") as error:
        records_build.build(VOC12_20, root, out, ["val"])
    assert str(image) in str(error.value)
    assert f"{VAL[4]}.png: label 77" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["VOC2012"]


def test_stopped_build_leaves_nothing(places, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(records_write, "check_shards", stop)
    out = tmp_path / "out"
    arguments = ["voc12_20", "--root", str(places[0]), "--out", str(out), "--split", "val"]
    assert records_build.main(arguments) == 130
    assert list(tmp_path.iterdir()) == []


def test_command(places, tmp_path, capsys):
    def run(*arguments):
        code = records_build.main(["voc12_20", "--root", str(places[0]), *arguments])
        return code, capsys.readouterr()

    out = str(tmp_path / "out")
    code, shown = run("--out", out, "--split", "train", "--shards", "2")
    assert (code, shown.out) == (0, f"{out}: train 5\n")
    for arguments, message in (
        (["--out", out], "already exists"),
        (["--out", f"{out}2", "--split", "test"], "There is no split 'test'"),
        (["--out", f"{out}2", "--shards", "6"], "--shards 6: split train has 5 images"),
        (["--out", "gs://bucket/voc"], "gcloud storage cp"),
    ):
        code, shown = run(*arguments)
        assert code == 2
        assert shown.err.startswith("error: ")
        assert message in shown.err
    with pytest.raises(SystemExit) as error:
        records_build.main(["vok", "--root", ".", "--out", out])
    assert error.value.code == 2


class Bucket(http.server.BaseHTTPRequestHandler):
    """Serves a folder as Cloud Storage serves gs://bucket/."""

    protocol_version = "HTTP/1.1"
    folder: Path
    asked: list[str]

    def do_GET(self):
        name = urllib.parse.unquote(urllib.parse.urlparse(self.path).path).rsplit("/o/", 1)[1]
        self.asked.append(name)
        path = self.folder / name
        content = path.read_bytes() if path.is_file() else None
        if content is None:
            self.answer(404, b"not found", {})
            return
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last), len(content) - 1) if first and last else len(content) - 1
        ranged = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
        self.answer(206, content[start : end + 1], ranged)

    def answer(self, code, content, headers):
        self.send_response(code)
        for name, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_bucket(places, monkeypatch):
    Bucket.folder, Bucket.asked = places[1].parent, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    server.handle_error = lambda *_: None  # the reader hangs up when it has its record
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    try:
        examples = VOC12_20.index("gs://bucket/records", "val")
        assert [example.name for example in examples] == list(VAL)
        plain = VOC12_20.index(places[0], "val")
        streams = [
            evaluation_batches(VOC12_20, e, batch_size=3, max_buckets=2) for e in (examples, plain)
        ]
        for first, second in zip(*streams, strict=True):
            same(first, second)
        # The index and three shards are opened, and each record is fetched once.
        assert len(Bucket.asked) == 2 + 3 + len(VAL)
        with pytest.raises(records.RecordsError, match=r"gs://bucket/nothing/index\.array"):
            VOC12_20.index("gs://bucket/nothing", "val")
        mine = catalog.folder("gs://bucket/records", ("cat",))
        with pytest.raises(ValueError, match="records of another dataset"):
            mine.index("", "val")
    finally:
        server.shutdown()
        server.server_close()
