import dataclasses
import importlib.util
import json

import pytest

from benchmarks import (
    clip_es_cam,
    clip_rc_step,
    dense_vit,
    maskclip_plus_step,
    reclip_counts,
    reclip_sides,
    reclip_step,
    weclip_step,
)

HAS_TORCH = importlib.util.find_spec("torch") is not None


def test_runs_at_tiny_size(tmp_path, capsys):
    out = tmp_path / "figures.json"
    tiny = ["--batch", "2", "--size", "48", "--width", "64", "--layers", "2", "--repeats", "1"]
    dense_vit.main([*tiny, "--out", str(out)])
    figures = json.loads(out.read_text())
    for name in ["ours"] + ["peer"] * HAS_TORCH:
        assert figures[name]["images_per_s"] > 0
        assert figures[name]["peak_memory_mb"] > 0
    printed = capsys.readouterr().out
    if HAS_TORCH:
        assert figures["max_difference"] < 1e-5
        assert "ratio ours/peer" in printed
    else:
        assert "clipseg_jax[torch]" in printed


def test_flops_grow_with_images_and_blocks():
    cfg = dense_vit.config
    args = type("Args", (), {"width": 768, "layers": 12, "dtype": "float32"})()
    per_image = dense_vit.count_flops(cfg(args), 1, 512)
    assert dense_vit.count_flops(cfg(args), 8, 512) == 8 * per_image
    args.layers = 11
    block = 24 * 1025 * 768**2 + 4 * 1025**2 * 768
    assert per_image - dense_vit.count_flops(cfg(args), 1, 512) == pytest.approx(block)


def reclip_work(**changes):
    work = reclip_sides.work(batch=1, crop=512, classes=20, dtype="float32", tiny=False)
    return dataclasses.replace(work, **changes)


def test_reclip_text_tokens():
    assert reclip_counts.text_tokens(reclip_work()) == (74 + 3 * 20, 77 * 20)
    assert reclip_counts.text_tokens(reclip_work(classes=150)) == (524, 11550)


def test_reclip_flops():
    # Forwards 24 * 150 * 77 * 512^2 * 12 = 0.87 TFLOP, and once more for frozen weights backwards.
    ade = reclip_counts.rectification_flops(reclip_work(classes=150))
    assert ade["reference prompt"][1] == pytest.approx(1.8e12, rel=0.05)
    assert ade["image tower"][1] == pytest.approx(0.24e12, rel=0.05)
    # Ours runs the network of dense_vit but for the last block's queries, keys and class token.
    args = type("Args", (), {"width": 768, "layers": 12, "dtype": "float32"})()
    dense = dense_vit.count_flops(dense_vit.config(args), 1, 512)
    dense -= 2 * 1024 * 512 * dense_vit.CLASSES
    assert ade["image tower"][0] - dense == pytest.approx((4 * 1024 + 6) * 768**2)
    # More images: the prompt costs the same.
    more = reclip_counts.rectification_flops(reclip_work(classes=150, batch=4))
    assert more["image tower"][0] == 4 * ade["image tower"][0]
    assert more["reference prompt"] == ade["reference prompt"]


def test_reclip_flops_are_the_compilers():
    # Hardly anything but products, in a program without loops.
    work = reclip_sides.work(batch=2, crop=64, classes=20, dtype="float32", tiny=True)
    task = reclip_sides.make_task(work, "rectification")
    ours = reclip_sides.Ours(task, reclip_sides.make_batch(work))
    counted = sum(flops for flops, _ in reclip_counts.rectification_flops(work).values())
    assert ours.compiler_flops() == pytest.approx(counted, rel=0.1)
    first, second = ours(), ours()
    assert first["loss"] > 0
    assert first["loss"] != second["loss"]  # the state went on


@pytest.mark.long
def test_reclip_step_runs_at_tiny_size(tmp_path, capsys):
    out = tmp_path / "figures.json"
    small = ["--tiny", "--crop=64", "--distill-crop=64", "--repeats=1", "--batches=1,2"]
    reclip_step.main(
        [*small, "--sections=rectification,distillation", "--distill-batches=1", f"--json={out}"]
    )
    figures = json.loads(out.read_text())
    kinds = [step["kind"] for step in figures["steps"]]
    assert kinds == ["rectification", "distillation"]
    assert [row["batch"] for row in figures["steps"][0]["ours"]] == [1, 2]
    for step in figures["steps"]:
        assert all(row["images_per_s"] > 0 for row in step["ours"])
        assert (step["peer"] is not None) == HAS_TORCH
        if HAS_TORCH:
            assert step["differences"][0]["loss"] < 1e-4
            assert step["ours"][0]["ratio"] > 0
    printed = capsys.readouterr().out
    assert "text tokens" in printed
    assert HAS_TORCH or "clipseg_jax[torch]" in printed


@pytest.mark.long
def test_reclip_scaling_over_fake_devices(tmp_path):
    out = tmp_path / "figures.json"
    reclip_step.main(
        ["--tiny", "--sections=scaling", "--scaling-crop=64", "--scaling-batch=2",
         "--scaling-devices=1,2", "--repeats=1", f"--json={out}"]
    )  # fmt: skip
    rows = json.loads(out.read_text())["scaling"]
    assert [row["devices"] for row in rows] == [1, 2]
    assert rows[0]["time_ratio"] == 1
    assert 1 < rows[1]["flops_ratio"] < 2


def test_reclip_step_names_what_is_wrong(capsys):
    with pytest.raises(ValueError, match="multiple of 16"):
        reclip_sides.work(1, 500, 20, "float32", True)
    with pytest.raises(SystemExit):
        reclip_step.main(["--sections=speed"])
    assert "choose from rectification, distillation, scaling" in capsys.readouterr().err


def test_clip_es_cams_run_at_tiny_size(tmp_path, capsys):
    out = tmp_path / "figures.json"
    tiny = ["--batch=3", "--size=50,70", "--width=64", "--layers=2", "--repeats=1"]
    clip_es_cam.main([*tiny, f"--out={out}"])
    figures = json.loads(out.read_text())
    assert figures["classes_per_image"] == [1, 1, 2]
    for name in ["ours"] + ["peer"] * HAS_TORCH:
        assert figures[name]["images_per_s"] > 0
    printed = capsys.readouterr().out
    if HAS_TORCH:
        assert figures["max_difference"] < 5e-3
        assert "ratio ours/peer" in printed
    else:
        assert "clipseg_jax[torch]" in printed


@pytest.mark.long
def test_weclip_step_runs_at_tiny_size(tmp_path, capsys):
    out = tmp_path / "figures.json"
    # On fewer patches two classes' maps are the same, and rounding decides between them.
    tiny = ["--batch=2", "--crop=96", "--width=64", "--layers=3", "--repeats=1"]
    weclip_step.main([*tiny, f"--out={out}"])
    figures = json.loads(out.read_text())
    assert figures["classes_per_image"] == [1, 2]
    for name in ["ours"] + ["peer"] * HAS_TORCH:
        assert figures[name]["images_per_s"] > 0
    assert {"encode", "cam", "refinement", "par", "decode"} < set(figures["ours"]["shares"])
    printed = capsys.readouterr().out
    if HAS_TORCH:
        assert figures["differences"]["loss"] < 1e-4
        assert set(figures["peer"]["shares"]) == {
            "encoder", "CAM", "refinement", "PAR", "decoder", "loss", "gradient, update",
        }  # fmt: skip
        assert "ratio ours/peer" in printed
    else:
        assert "clipseg_jax[torch]" in printed


def test_weclip_crops_are_whole_patches():
    with pytest.raises(ValueError, match="crops of 50 pixels: choose a multiple of 16"):
        weclip_step.main(["--crop=50"])


@pytest.mark.long
def test_clip_rc_at_tiny_size(tmp_path, capsys):
    out = tmp_path / "figures.json"
    tiny = ["--tiny", "--crop", "64", "--batches", "1,2", "--repeats", "1", "--json", str(out)]
    clip_rc_step.main(tiny)
    figures = json.loads(out.read_text())
    assert [section["kind"] for section in figures["sections"]] == ["training", "inference"]
    for section in figures["sections"]:
        assert [row["batch"] for row in section["ours"]] == [1, 2]
        assert all(row["images_per_s"] > 0 for row in section["ours"])
        assert bool(section["peer"]) == HAS_TORCH
    printed = capsys.readouterr().out
    assert ("differences without dropout" if HAS_TORCH else "clipseg_jax[torch]") in printed


@pytest.mark.long
def test_maskclip_plus_step_runs_at_tiny_size(tmp_path, capsys):
    out = tmp_path / "figures.json"
    maskclip_plus_step.main(["--tiny", "--crop=64", "--repeats=1", f"--json={out}"])
    figures = json.loads(out.read_text())
    assert [*figures["phases"]] == ["guided", "self_training"]
    for sides in figures["phases"].values():
        for name in ["ours"] + ["peer"] * HAS_TORCH:
            assert sides[name]["images_per_s"] > 0
    printed = capsys.readouterr().out
    assert HAS_TORCH or "clipseg_jax[torch]" in printed
    with pytest.raises(SystemExit):
        maskclip_plus_step.main(["--crop=50"])
    assert "multiple of 16" in capsys.readouterr().err
