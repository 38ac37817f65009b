import importlib.util
import json

import pytest

from benchmarks import dense_vit

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
