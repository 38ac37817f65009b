"""Imports only go down, the core needs no data extra, nothing needs torch at run time."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# From the top; a module may import from its own layer's file-mates only where `SIBLINGS` says so.
LAYERS = [
    ["clipseg_jax.main"],
    ["clipseg_jax.recipes"],
    ["clipseg_jax.predict"],
    ["clipseg_jax.segmenter", "clipseg_jax.evaluate", "clipseg_jax.annotate", "clipseg_jax.train"],
    ["clipseg_jax.train_step"],
    ["clipseg_jax.demo"],
    ["clipseg_jax.inference"],
    ["clipseg_jax.views"],
    ["clipseg_jax.tasks"],
    ["weights_convert", "clipseg_jax.prompts", "clipseg_jax.tags"],
    ["clipseg_jax.models"],
    ["clipseg_jax.losses"],
    ["clipseg_jax.ops"],
    ["clipseg_jax.core"],
    ["input_pipeline"],
]
# The loops know tasks by their contract alone; predict is where a user meets one method.
ONLY = {
    "clipseg_jax.evaluate": {"clipseg_jax.tasks": {"clipseg_jax.tasks.base"}},
    "clipseg_jax.inference": {"clipseg_jax.tasks": {"clipseg_jax.tasks.base"}},
    "clipseg_jax.train": {"clipseg_jax.tasks": {"clipseg_jax.tasks.base"}},
    "clipseg_jax.train_step": {"clipseg_jax.tasks": {"clipseg_jax.tasks.base"}},
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


def layer(name):
    for depth, members in enumerate(LAYERS):
        for member in members:
            if name == member or name.startswith(f"{member}."):
                return depth, member
    return None


def test_imports_only_go_down():
    wrong = []
    for name, path in modules():
        own = layer(name)
        if own is None:
            continue
        for target in imports(path):
            other = layer(target)
            if other is None or other[1] == own[1]:
                continue
            allowed = ONLY.get(own[1], {}).get(other[1])
            if other[0] <= own[0] or (allowed and not any(target.startswith(a) for a in allowed)):
                wrong.append(f"{name} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_every_module_has_a_layer():
    assert [name for name, _ in modules() if layer(name) is None] == ["clipseg_jax"]


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
