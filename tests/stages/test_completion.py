"""What a recipe leaves open is filled in once, from the folder and from the CLIP, and recorded."""

from __future__ import annotations

import json
import math

import pytest

from clipseg_jax import main
from clipseg_jax.demo import world
from clipseg_jax.models.clip import CLIPConfig, ResNetConfig, SigLIPVisionConfig, ViTConfig
from clipseg_jax.stages import completion
from clipseg_jax.stages.completion import completed, decided_by_clip
from configs import (
    demo_maskclip,
    own_clip_es,
    own_clip_rc,
    own_maskclip,
    own_reclippp,
    own_weclip,
    voc_maskclip,
)
from input_pipeline.datasets.class_sets import prompt_set
from weights_convert import CLIPFacts

ViT = ViTConfig(image_px=224, patch_px=16, width=768, layers=12, heads=12, embed_dim=512)
CLIPS = {
    "ViT-B/16": (ViT, 384),
    "ViT-L/14": (ViTConfig(224, 14, 1024, 24, 16, 768), 336),
    "ViT-L/14@336px": (ViTConfig(336, 14, 1024, 24, 16, 768), 504),
    "ViT-B/32": (ViTConfig(224, 32, 768, 12, 12, 512), 384),
    "RN50": (ResNetConfig(224, 64, (3, 4, 6, 3), 32, 1024), 384),
    "SigLIP": (SigLIPVisionConfig(224, 16, 768, 12, 12, 3072), 384),
    "demo": (ViTConfig(64, 8, 128, 4, 4, 96), 96),
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "classes.txt").write_text("background\ncat\n\ntree\ntraffic light\n")
    return str(tmp_path)


def own(module, root, *string):
    config = module.get_config(*string)
    config.dataset.root, config.clip.weights = root, "demo"
    return config


def facts(vision):
    return CLIPFacts(CLIPConfig(vision, None), 100.0, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


@pytest.mark.parametrize("name", CLIPS)
def test_sizes_follow_from_the_clip(name):
    vision, side = CLIPS[name]
    values = decided_by_clip("maskclip", facts(vision))
    assert values["inference.scale_px"] == (4 * side, side)
    patch = getattr(vision, "patch_px", 32)
    assert side % (4 * patch) == 0
    assert 0 <= side - 1.5 * vision.image_px < 4 * patch
    assert values["clip.mean"] == (1.0, 2.0, 3.0)


def test_proportions_are_the_published_ones():
    """Those of WeCLIP and CLIP-ES for a ViT-B/16, at sizes a fifth larger."""
    values = decided_by_clip("weclip", facts(ViT))
    assert (values["cams.early_blocks"], values["cams.late_blocks"]) == (8, 6)
    assert values["cams.affinity_blocks"] == (4, 5, 6, 7, 8, 9, 10, 11)
    assert values["tags.affinity_blocks"] == (8, 9, 10)
    assert values["head.crop_px"] == (384, 384)
    assert values["head.affinity_radius"] == 8
    assert values["inference.scale_px"] == (576, 576)
    readouts = decided_by_clip("readouts", facts(ViT))
    assert readouts["inference.crop_px"] == (224, 224)
    assert readouts["inference.stride_px"] == (112, 112)


def test_the_demo_clip(root, tmp_path):
    config = own(own_weclip, root)
    assert config.head.crop_px is config.cams.temperature is None
    done = completed(config, tmp_path / "work")
    assert config.head.crop_px is None  # a copy is completed
    assert (done.head.crop_px, done.dataset.longest_px) == ((96, 96), 144)
    assert done.cams.temperature == pytest.approx(20.4, abs=0.1)
    assert not [name for name in done.clip.decides if value(done, name) is None]


def value(config, name):
    section, _, key = name.partition(".")
    return config[section][key]


def test_what_is_given_stays(root, tmp_path):
    config = own(own_clip_rc, root)
    config.clip_rc.crop_px = 64
    done = completed(config, tmp_path / "work")
    assert (done.clip_rc.crop_px, done.inference.crop_px) == (64, (96, 96))


def test_names_and_background(root, tmp_path):
    done = completed(own(own_clip_es, root), tmp_path / "work")
    assert done.dataset.class_names == ("background", "cat", "tree", "traffic light")
    usual = prompt_set("voc", synonyms=True).background
    assert len(usual) == 25
    assert done.text.background_words == tuple(word for word in usual if word != "tree")
    config = own(own_maskclip, root, "naclip")
    config.text.background_words = ("sofa", "wall")
    done = completed(config, tmp_path / "work")
    assert done.text.background_words[:3] == ("sofa", "wall", "ground")
    assert done.text.background_words.count("wall") == 1
    config.dataset.class_names = ("cat", "dog")  # no background: they would be cats
    with pytest.raises(ValueError, match="needs the name background before the other classes"):
        completed(config, tmp_path / "work")
    config.text.background_words = ()
    assert completed(config, tmp_path / "work").text.background_words == ()
    # ReCLIP++ has no background.
    done = completed(own(own_reclippp, root), tmp_path / "work")
    assert done.dataset.class_names == ("cat", "tree", "traffic light")
    assert done.text.background_words == ()
    assert done.tags.threshold == pytest.approx(0.23 * 20.4, abs=0.01)


def test_no_names(tmp_path):
    config = own(own_maskclip, str(tmp_path))
    with pytest.raises(ValueError, match=r"write them into .*classes\.txt, one a line, or pass"):
        completed(config, tmp_path / "work")


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (None, ValueError, r"no CLIP weights; pass --config\.clip\.weights"),
        ("/nowhere/a.pt", FileNotFoundError, r"--config\.clip\.weights: "),
    ],
)
def test_no_clip(root, tmp_path, weights, error, message):
    config = own(own_maskclip, root)
    config.clip.weights = weights
    with pytest.raises(error, match=message):
        completed(config, tmp_path / "work")


@pytest.mark.parametrize("module", [voc_maskclip, demo_maskclip])
def test_published_recipes_leave_nothing_open(module, tmp_path, monkeypatch):
    monkeypatch.setattr(completion, "clip_facts", None)
    config = module.get_config()
    assert completed(config, tmp_path) == config


def test_the_record_needs_neither_folder_nor_clip(tmp_path, monkeypatch):
    """After the texts; before them another CLIP may be chosen."""
    root = tmp_path / "mine"
    world.write_dataset(root, 2, 64)
    (root / "classes.txt").write_text("background\nboat\nfish\n")
    config, work = own(own_maskclip, str(root)), tmp_path / "work"
    config.inference.refine = ""
    config.stages = ("data",)
    main.run(config, work)
    recorded = json.loads((work / "config.json").read_text())
    assert recorded["dataset"]["class_names"] == ["background", "boat", "fish"]
    assert recorded["inference"]["scale_px"] == [384, 96]
    assert recorded["clip"]["activation"] == "quick_gelu"
    assert recorded["clip"]["norm_eps"] == pytest.approx(1e-5)
    assert math.isclose(recorded["clip"]["mean"][0], 122.771, abs_tol=0.01)
    other = facts(ViT)
    with monkeypatch.context() as changed:
        changed.setattr(completion, "clip_facts", lambda _: other)
        assert completed(config, work).inference.scale_px == (1536, 384)
    config.stages = ("data", "text")
    main.run(config, work)
    monkeypatch.setattr(completion, "clip_facts", None)
    assert completed(config, work).inference.scale_px == (384, 96)
    (root / "classes.txt").write_text("background\nboat\ncow\n")
    with pytest.raises(ValueError, match=r"dataset\.class_names: .*'fish'\] -> .*'cow'\]"):
        main.run(config, work)
