import dataclasses
import json

import pytest
from PIL import Image

from benchmarks import (
    accelerator,
    clip_es_cam,
    clip_es_memory,
    clip_rc_step,
    demo_readouts,
    dense_crf,
    dense_vit,
    feeding,
    maskclip_plus_step,
    readouts,
    reclip_counts,
    reclip_scaling,
    reclip_sides,
    reclip_step,
    report,
    sides,
    weclip_step,
)
from benchmarks.sides import HAS_TORCH
from clipseg_jax.models.clip.read_outs import READ_OUTS
from tests import folders


def measured(main, tmp_path, capsys, *words):
    """What a benchmark wrote and printed; both sides ran, and the peer only with torch."""
    out = tmp_path / "metrics.json"
    main([*words, "--tiny", "--repeats=1", f"--out={out}"])
    metrics, printed = json.loads(out.read_text()), capsys.readouterr().out
    for section in metrics["sections"]:
        rows = section["rows"]
        assert all(row["images_per_s"] > 0 for row in rows)
        assert [row["side"] for row in rows].count("peer") == HAS_TORCH
        assert all(
            (row["ratio"] is not None) == (HAS_TORCH and row["side"] == "ours") for row in rows
        )
    assert HAS_TORCH or ".[torch]" in printed
    return metrics, printed


def test_dense_vit(tmp_path, capsys):
    metrics, _ = measured(dense_vit.main, tmp_path, capsys, "--batch=2", "--size=48")
    (section,) = metrics["sections"]
    assert all(row["memory_bytes"] > 0 for row in section["rows"])
    if HAS_TORCH:
        assert section["differences"]["logits"] < 1e-5


def test_readouts(tmp_path, capsys):
    out = tmp_path / "metrics.json"
    readouts.main(["--tiny", "--batch=1,2", "--size=64", "--repeats=1", f"--out={out}"])
    sections = json.loads(out.read_text())["sections"]
    assert "time / first" in capsys.readouterr().out
    for section in sections:
        names = [row["side"] for row in section["rows"]]
        assert names == [*READ_OUTS, "resclip, feedback", "proxyclip"]
        assert section["rows"][0]["times_first"] == 1
        assert all(row["times_first"] > 0 for row in section["rows"])


@pytest.mark.long
def test_demo_readouts(tmp_path, capsys, monkeypatch):
    """One read-out and one refinement of few images; all: the command's own time."""
    monkeypatch.setattr(demo_readouts, "METHODS", ("value",))
    monkeypatch.setattr(demo_readouts, "DRAWN", ("value",))
    monkeypatch.setattr(demo_readouts, "REFINEMENTS", ("", "pamr"))
    folders.write_painted(tmp_path / "demo_world", 6, 1)
    sheet = tmp_path / "sheet.png"
    photo = next((tmp_path / "demo_world/images").iterdir())
    demo_readouts.main([f"--workdir={tmp_path}", f"--picture={sheet}", f"--photo={photo}"])
    assert "| value |" in capsys.readouterr().out
    assert Image.open(sheet).width > 3 * demo_readouts.CELL_PX


def test_flops_grow_with_images_and_blocks():
    cfg = dense_vit.config("float32", tiny=False)
    per_image = dense_vit.count_flops(cfg, 1, 512)
    assert dense_vit.count_flops(cfg, 8, 512) == 8 * per_image
    fewer = dataclasses.replace(cfg, layers=11)
    block = 24 * 1025 * 768**2 + 4 * 1025**2 * 768
    assert per_image - dense_vit.count_flops(fewer, 1, 512) == pytest.approx(block)


def test_sides_that_differ_are_named():
    ours = {"loss": 1.001, "gradient_norm": 2.0}
    differences = sides.agreement(ours, {"loss": 1.0, "gradient_norm": 2.0}, {"loss": 2e-3})
    assert differences == {"loss": pytest.approx(1e-3), "gradient_norm": 0}
    with pytest.raises(ValueError, match="the two sides differ by"):
        sides.agreement(ours, {"loss": 1.0, "gradient_norm": 2.0}, {"loss": 5e-4})


def test_ratios_are_to_the_peer(capsys):
    rows = [
        report.row(side, batch, seconds)
        for side, batch, seconds in (
            ("ours", 1, [2.0, 1.0, 9.0]),
            ("peer", 1, [4.0]),
            ("ours", 4, [2.0]),
        )
    ]
    section = report.add({"sections": []}, "name", rows)
    assert [row["ratio"] for row in section["rows"]] == [2, None, 8]
    assert "GFLOP/s" not in capsys.readouterr().out  # not measured


def test_steps_run_in_turn():
    ran = []
    seconds = sides.in_turn({name: lambda name=name: ran.append(name) for name in "ab"}, 2)
    assert ran == [*"abab"]
    assert [len(of) for of in seconds.values()] == [2, 2]


def reclip_work(**changes):
    work = reclip_sides.make_work(batch=1, crop=512, classes=20, dtype="float32", tiny=False)
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
    dense = dense_vit.count_flops(dense_vit.config("float32", tiny=False), 1, 512)
    dense -= 2 * 1024 * 512 * dense_vit.CLASSES
    assert ade["image tower"][0] - dense == pytest.approx((4 * 1024 + 6) * 768**2)
    # More images: the prompt costs the same.
    more = reclip_counts.rectification_flops(reclip_work(classes=150, batch=4))
    assert more["image tower"][0] == 4 * ade["image tower"][0]
    assert more["reference prompt"] == ade["reference prompt"]


def test_reclip_flops_are_the_compilers():
    # Hardly anything but products, in a program without loops; wide, so that they outweigh sums.
    work = reclip_sides.make_work(batch=2, crop=64, classes=20, dtype="float32", tiny=True)
    work = dataclasses.replace(
        work,
        vision=dataclasses.replace(work.vision, width=256, heads=4, embed_dim=256),
        text=dataclasses.replace(work.text, width=128, embed_dim=256),
    )
    task = reclip_sides.make_task(work, "rectification")
    ours = sides.Ours(task, reclip_sides.make_batch(work))
    counted = sum(flops for flops, _ in reclip_counts.rectification_flops(work).values())
    assert ours.compiler_flops() == pytest.approx(counted, rel=0.05)
    first, second = ours(), ours()
    assert first["loss"] > 0
    assert first["loss"] != second["loss"]  # the state went on


@pytest.mark.long
def test_reclip_step(tmp_path, capsys):
    metrics, printed = measured(
        reclip_step.main, tmp_path, capsys,
        "--size=64", "--distill-size=64", "--batch=1,2", "--distill-batch=1",
    )  # fmt: skip
    rectification, distillation = metrics["sections"]
    assert rectification["name"] == "rectification, 64 px, float32"
    assert distillation["name"] == "distillation, 64 px, float32"
    batches = [row["batch"] for row in rectification["rows"] if row["side"] == "ours"]
    assert batches == [1, 2]
    assert "text tokens" in printed
    if HAS_TORCH:
        assert rectification["differences"]["loss"] < 1e-4
        assert distillation["differences"]["loss"] < 1e-4


@pytest.mark.long
def test_reclip_scaling_over_fake_devices(tmp_path):
    out = tmp_path / "metrics.json"
    reclip_scaling.main(
        ["--tiny", "--size=64", "--batch=2", "--devices=1,2", "--repeats=1", f"--out={out}"]
    )
    rows = json.loads(out.read_text())["scaling"]
    assert [row["devices"] for row in rows] == [1, 2]
    assert rows[0]["time_ratio"] == 1
    assert 1 < rows[1]["flops_ratio"] < 2


def test_reclip_step_names_what_is_wrong(capsys):
    with pytest.raises(ValueError, match="multiple of 16"):
        reclip_sides.make_work(1, 500, 20, "float32", True)
    with pytest.raises(SystemExit):
        reclip_step.main(["--sections=speed"])
    assert "choose from rectification, distillation" in capsys.readouterr().err


def test_clip_es_cam(tmp_path, capsys):
    metrics, _ = measured(clip_es_cam.main, tmp_path, capsys, "--batch=3", "--size=50,70")
    (section,) = metrics["sections"]
    assert section["classes_per_image"] == [1, 1, 2]
    if HAS_TORCH:
        assert section["differences"]["largest"] < 5e-3


@pytest.mark.long
def test_clip_es_memory(tmp_path):
    pytest.importorskip("tensorflow")  # the stage reads a dataset
    out = tmp_path / "metrics.json"
    clip_es_memory.main(
        ["--tiny", "--images=10", "--classes-per-image=2", "--sides=48,48", "--batch=2",
         f"--out={out}"]
    )  # fmt: skip
    marks = json.loads(out.read_text())
    assert marks
    assert all(mark["resident_mb"] > 100 and mark["programs"] > 0 for mark in marks)


@pytest.mark.long
def test_dense_crf(tmp_path, capsys):
    out = tmp_path / "metrics.json"
    dense_crf.main(["--scale=0.1", "--batch=8", "--repeats=1", "--exact", f"--out={out}"])
    metrics = json.loads(out.read_text())
    assert [section["name"] for section in metrics["sections"]] == ["one image", "a batch"]
    assert all(s["rows"][0]["images_per_s"] > 0 for s in metrics["sections"])
    assert metrics["exact"]["gflop"] > 0
    assert "--peer-python" in capsys.readouterr().out


@pytest.mark.long
def test_weclip_step(tmp_path, capsys):
    # On fewer patches two classes' maps are the same, and rounding decides between them.
    metrics, _ = measured(weclip_step.main, tmp_path, capsys, "--batch=2", "--size=96")
    (section,) = metrics["sections"]
    assert section["classes_per_image"] == [1, 2]
    shares = [set(row["shares"]) for row in section["rows"]]
    assert shares[0] > {"encode", "cam", "refinement", "par", "decode"}
    if HAS_TORCH:
        assert section["differences"]["loss"] < 1e-4
        assert shares[1] == {
            "encoder", "CAM", "refinement", "PAR", "decoder", "loss", "gradient, update",
        }  # fmt: skip


def test_weclip_crops_are_whole_patches():
    with pytest.raises(ValueError, match="crops of 50 pixels: choose a multiple of 16"):
        weclip_step.main(["--size=50"])


@pytest.mark.long
def test_clip_rc_step(tmp_path, capsys):
    metrics, _ = measured(clip_rc_step.main, tmp_path, capsys, "--size=64", "--batch=1,2")
    names = [section["name"].split(",")[0] for section in metrics["sections"]]
    assert names == ["training", "inference"]
    for section in metrics["sections"]:
        assert [row["batch"] for row in section["rows"] if row["side"] == "ours"] == [1, 2]
        assert bool(section["differences"]) == HAS_TORCH


@pytest.mark.long
def test_maskclip_plus_step(tmp_path, capsys):
    metrics, _ = measured(maskclip_plus_step.main, tmp_path, capsys, "--size=64")
    names = [section["name"].split(",")[0] for section in metrics["sections"]]
    assert names == ["guided", "self_training"]
    with pytest.raises(ValueError, match="multiple of 16"):
        maskclip_plus_step.main(["--size=50"])


def test_feeding(tmp_path, capsys):
    pytest.importorskip("tensorflow")  # threads of tf.data
    out = tmp_path / "metrics.json"
    feeding.main(
        ["--views=weclip", "--processes=0,1", "--images=3", "--batch=2", "--repeats=2",
         f"--out={out}"]
    )  # fmt: skip
    threads, worker = json.loads(out.read_text())["rows"]
    assert threads["consumer_ms"] > worker["consumer_ms"]
    assert threads["worker_ms"] == threads["worker_mb"] == 0
    assert worker["worker_mb"] > 30
    assert "weclip, 1 processes: 1700 rows/s take" in capsys.readouterr().out


def test_accelerator(tmp_path, capsys, monkeypatch):
    """A dry run of two items; the second time nothing is measured, and the table is the same."""
    names = "products,dense_vit-float32"
    arguments = [f"--out={tmp_path}", f"--items={names}", "--tiny", "--repeats=1"]
    assert accelerator.main(arguments) == 0
    table = capsys.readouterr().out
    assert table.count("| dense_vit-float32") >= 1
    assert "TFLOP/s" in table
    monkeypatch.setattr(accelerator, "_measured", None)
    assert accelerator.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == table.splitlines()[-1]


def test_accelerator_says_what_failed_and_what_is_left(tmp_path, capsys):
    items = [
        accelerator.Item("broken", ("-c", "raise SystemExit('no such device')"), 30),
        accelerator.Item("slow", ("-c", "import time; time.sleep(60)"), 1),
    ]
    assert accelerator.run(tmp_path, items, 1)
    assert "no such device" in accelerator.table(tmp_path, items)
    assert "took longer than 1 s" in accelerator.table(tmp_path, items)
    assert not accelerator.run(tmp_path, [accelerator.Item("late", (), 30)], 0)
    assert "run the same command again" in capsys.readouterr().out
