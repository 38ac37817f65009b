"""The painted world: one seed, one picture; labels that fit; captions that are true."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from clipseg_jax.demo import world
from clipseg_jax.demo_clip import vocabulary
from clipseg_jax.demo_clip.captions import captions
from weights_convert.clip.export import write_tokenizer

_BOTH = (world.CLASSES, world.COLOURED)


def test_a_picture_depends_on_split_and_index_alone():
    first = [world.make("evaluation", i, 64) for i in range(4)]
    again = [world.make("evaluation", i, 64) for i in reversed(range(4))][::-1]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert captions(a, 3) == captions(b, 3)
    other = world.make("mixed", 0, 64)
    assert np.any(other.image != first[0].image)


def test_labels_agree_at_every_size():
    for i in range(6):
        small, large = world.make("evaluation", i, 64), world.make("evaluation", i, 128)
        assert small.classes == large.classes
        shrunk = large.label[::2, ::2]
        scored = (small.label != world.BOUNDARY) & (shrunk != world.BOUNDARY)
        assert np.mean(small.label[scored] == shrunk[scored]) > 0.97


def test_a_label_covers_what_was_painted():
    """Where an object is, the picture differs from the same scene without objects."""
    picture = world.make("single", 5, 96)
    inside = (picture.label > 0) & (picture.label != world.BOUNDARY)
    assert 0.02 < inside.mean() < 0.8
    assert set(np.unique(picture.label[inside])) == {
        world.CLASSES.index(picture.things[0].name) + 1
    }
    ring = picture.label == world.BOUNDARY
    assert 0 < ring.mean() < 0.1


def test_names_with_colours_are_of_the_same_pictures():
    """Each usual colour of a kind is a class; what has another colour is ignored."""
    assert len(world.COLOURED) == 32
    ignored = 0
    for i in range(30):
        plain, coloured = (world.make("single", i, 48, names) for names in _BOTH)
        np.testing.assert_array_equal(plain.image, coloured.image)
        (thing,) = plain.things
        inside = (plain.label > 0) & (plain.label != world.BOUNDARY)
        name = f"{thing.colour} {thing.name}"
        usual = name in world.COLOURED
        label = world.COLOURED.index(name) + 1 if usual else world.BOUNDARY
        np.testing.assert_array_equal(coloured.label, np.where(inside, label, plain.label))
        ignored += not usual
    assert 0 < ignored < 20


def test_splits():
    assert all(len(world.make("single", i, 32).things) == 1 for i in range(5))
    assert all(not world.make("scenery", i, 32).things for i in range(5))
    assert {len(world.make("mixed", i, 32).things) for i in range(30)} == {1, 2, 3}
    both = [world.make("test", i, 32).typical for i in range(40)]
    assert 8 < sum(both) < 36


def test_captions_name_what_is_there():
    for i in range(30):
        picture = world.make("mixed", i, 32)
        for text in captions(picture, 3):
            words = set(text.replace(",", " ").replace(".", " ").split())
            named = words & set(world.CLASSES)
            assert named <= set(picture.classes)
            assert named or not picture.classes


def test_every_word_is_one_token():
    tokenize = vocabulary.tokenizer()
    for word in vocabulary.words():
        assert len(tokenize.encode(word)) == 1, word
    texts = [t for i in range(50) for t in captions(world.make("mixed", i, 16), 2)]
    assert max((tokenize(texts, 32) > 0).sum(1)) < 21


def test_the_tokenizer_equals_hugging_faces(tmp_path):
    transformers = pytest.importorskip("transformers")
    write_tokenizer(vocabulary.tokenizer(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 32})
    )
    theirs = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    ours = vocabulary.tokenizer()
    for text in ["a photo of a red duck.", "a cow, a sheep and a tent on the grass", "zebra!"]:
        assert theirs(text)["input_ids"][1:-1] == ours.encode(text)


def test_the_dataset_on_disk(tmp_path):
    world.write_dataset(tmp_path, 3, 48)
    about = json.loads((tmp_path / "classes.json").read_text())
    assert about["classes"] == ["background", *world.CLASSES]
    for i in range(3):
        picture = world.make("evaluation", i, 48)
        image = np.asarray(Image.open(tmp_path / "images" / f"{i:04d}.png"))
        label = np.asarray(Image.open(tmp_path / "labels" / f"{i:04d}.png"))
        np.testing.assert_array_equal(image, picture.image)
        np.testing.assert_array_equal(label, picture.label)
