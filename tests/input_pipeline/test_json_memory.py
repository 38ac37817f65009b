"""JSON of many small lists, objects and numbers is refused before it is parsed, by every reader."""

import json
from types import SimpleNamespace

import pytest

from input_pipeline import json_memory
from input_pipeline.datasets import records
from input_pipeline.datasets.coco import read_instances
from input_pipeline.datasets.images import BadFile
from input_pipeline.datasets.records import RecordsError
from input_pipeline.json_memory import check_json
from tests.input_pipeline.coco_files import box, instances, thing
from weights_convert import CheckpointError
from weights_convert.clip.json_files import read_json
from weights_convert.formats.reader import map_file
from weights_convert.formats.safetensors import parse

BOMBS = [b'{"a":[' + each * 10_000 + b"1]}" for each in (b"[],", b"{},", b"1,", b'{"":0},')]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(json_memory, "_ALWAYS", 1 << 16)


@pytest.mark.parametrize("bomb", BOMBS)
def test_every_reader_refuses_it_before_parsing(tmp_path, monkeypatch, bomb):
    monkeypatch.setattr(json, "loads", pytest.fail)
    path = tmp_path / "f.json"
    path.write_bytes(bomb)
    with pytest.raises(BadFile, match=r"f\.json: cannot read COCO's objects \(its lists and obj"):
        read_instances(path)
    with pytest.raises(CheckpointError, match=r"f\.json is not valid JSON \(its lists and objects"):
        read_json(path)
    shard = SimpleNamespace(read=lambda _: [bomb])
    monkeypatch.setattr(records, "open_shard", lambda _: shard)
    (tmp_path / records.INDEX).write_bytes(bomb)
    with pytest.raises(RecordsError, match=r"damaged \(its lists and objects would take"):
        records.read_index(str(tmp_path))
    path.write_bytes(len(bomb).to_bytes(8, "little") + bomb)
    with pytest.raises(ValueError, match="its lists and objects would take"):
        parse(map_file(path))


def test_usual_files_are_taken():
    outline = [[round(3.37 * i, 2) for i in range(20)]]
    objects = {f"{i:012d}.jpg": [thing(0, outline, 702.1057, bbox=box(1, 1, 9, 9)[0])] * 7
               for i in range(500)}  # fmt: skip
    check_json(json.dumps(instances(objects)).encode())
    check_json(json.dumps({f"token{i}": i for i in range(10_000)}).encode())
    count = 5_000
    index = {"names": ["2007_000032"] * count, "sizes": [[375, 500]] * count}
    check_json(json.dumps({**index, "image_labels": [[14]] * count}).encode())
