"""Imports only go down, the core needs no data extra, nothing needs torch at run time."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# From the top. `clipseg_jax.methods` stands for all but the networks, which converters build.
LAYERS = [
    ["clipseg_jax.console"],
    ["clipseg_jax.web", "clipseg_jax.reproduce", "clipseg_jax.export", "clipseg_jax.compile"],
    ["clipseg_jax.predict", "clipseg_jax.demo_clip", "clipseg_jax.demo_resnet"],
    ["clipseg_jax.predict_files", "clipseg_jax.predict_model", "clipseg_jax.predict_results"],
    ["clipseg_jax.predict_options"],
    ["clipseg_jax.predict_records"],
    ["clipseg_jax.segmenter"],
    ["clipseg_jax.segmenters"],
    ["clipseg_jax.main", "clipseg_jax.segment_options", "clipseg_jax.segmenter_images"],
    ["clipseg_jax.reports"],
    ["clipseg_jax.methods"],
    ["clipseg_jax.stages"],
    ["weights_convert"],
    ["networks"],
    ["clipseg_jax.train", "clipseg_jax.evaluate", "clipseg_jax.prompts"],
    ["clipseg_jax.train_best"],
    ["clipseg_jax.train_step", "clipseg_jax.inference", "clipseg_jax.annotate"],
    ["clipseg_jax.results"],
    ["clipseg_jax.segmentation", "clipseg_jax.labels"],
    ["clipseg_jax.inference_config"],
    ["clipseg_jax.views", "clipseg_jax.task"],
    ["clipseg_jax.models"],
    ["clipseg_jax.demo"],
    ["clipseg_jax.ops"],
    ["clipseg_jax.core"],
    ["input_pipeline"],
]
NETWORKS = ("model", "head", "heads", "encoder", "distill_model", "feedback", "proxy")
# Inside a method's folder, from the bottom; other files go by their own imports.
ORDER = ("model", "loss", "task", "build", "recipe")
# Which methods a method may import.
ARROWS = {
    "weclip": {"clip_es"},
    "clip_es": {"tagclip"},
    "reclip": {"maskclip"},
    "maskclip_plus": {"maskclip"},
}
DATA_EXTRA = {"tensorflow", "tensorflow_datasets", "cv2", "pycocotools"}


def modules():
    for top in ("clipseg_jax", "input_pipeline", "weights_convert"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def imports(path, *, top_level_only=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def in_method(name):
    """The method and file of a module in clipseg_jax.methods; None of any other."""
    parts = name.split(".")
    if parts[:2] == ["clipseg_jax", "methods"] and len(parts) > 3:
        return parts[2], parts[3]
    return None


def layer(name):
    found = in_method(name)
    if found and found[1] in NETWORKS:
        name = "networks"
    for depth, members in enumerate(LAYERS):
        for member in members:
            if name == member or name.startswith(f"{member}."):
                return depth, member
    return None


def test_imports_only_go_down():
    wrong = []
    for name, path in modules():
        here = layer(name)
        for target in imports(path):
            other = layer(target)
            if here is None or other is None or other[1] == here[1]:
                continue
            if other[0] <= here[0]:
                wrong.append(f"{name} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_methods_import_each_other_along_the_arrows():
    wrong = []
    for name, path in modules():
        here = in_method(name)
        for target in imports(path):
            other = in_method(target)
            if here and other and other[0] not in {here[0], *ARROWS.get(here[0], ())}:
                wrong.append(f"{name} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_a_method_is_model_loss_task_build_recipe():
    wrong = []
    for name, path in modules():
        here = in_method(name)
        for target in imports(path):
            other = in_method(target)
            if not here or not other or here[0] != other[0] or {here[1], other[1]} - set(ORDER):
                continue
            if here != other and ORDER.index(other[1]) > ORDER.index(here[1]):
                wrong.append(f"{name} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_every_module_has_a_layer():
    packages = {"clipseg_jax", "clipseg_jax.methods"}
    assert {name for name, _ in modules() if layer(name) is None} <= packages


def test_input_pipeline_stands_alone():
    for name, path in modules():
        if name.startswith("input_pipeline"):
            assert not [t for t in imports(path) if t.startswith(("clipseg_jax", "weights_conv"))]


def test_every_package_is_shipped():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["packages"]
    found = [
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("clipseg_jax", "configs", "input_pipeline", "weights_convert")
        for path in (ROOT / top).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(found)


def test_no_torch_and_no_data_extra_at_import():
    for name, path in modules():
        found = {target.split(".")[0] for target in imports(path)}
        assert "torch" not in found, f"{name} imports torch"
    blocked = "\n".join(f"sys.modules[{extra!r}] = None" for extra in sorted(DATA_EXTRA))
    code = f"import sys\n{blocked}\nimport clipseg_jax.predict, weights_convert, clipseg_jax.demo"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_lock_names_public_addresses_only():
    text = (ROOT / "uv.lock").read_text()
    hosts = {part.split("/")[0] for part in text.split("https://")[1:]}
    assert hosts == {"pypi.org", "files.pythonhosted.org"}
