"""The documents: what they name exists, their commands resolve, and their examples run."""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re
import shlex
import sys
import tomllib
import types
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

import clipseg_jax
import input_pipeline
import weights_convert
from clipseg_jax import console, main, predict
from clipseg_jax.core.config_arguments import complete
from clipseg_jax.demo import world
from clipseg_jax.stages import preflight
from clipseg_jax.task import Task
from input_pipeline.datasets import catalog
from input_pipeline.prepare.preparations import PREPARATIONS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# The specifications have tests of their own; they name files of the published systems.
WRITTEN = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(path for path in sorted(DOCS.rglob("*.md")) if path.parent.name != "specs"),
]
METHODS = sorted((DOCS / "methods").glob("*.md"))
TOPS = (
    *("benchmarks", "clipseg_jax", "configs", "docs", "examples", "input_pipeline", "launch"),
    *("tests", "weights_convert"),
)
# Examples of what a reader writes.
INVENTED = {
    *(f"clipseg_jax/methods/probe/{name}.py" for name in ("model", "task", "recipe")),
    *("configs/base/probe.py", "configs/demo_probe.py", "configs/shapes_maskclip.py"),
}
MODULE = "python -m clipseg_jax.main"
# The installed commands and the modules that they run.
SCRIPTS = {name: module.removesuffix(".__main__") for name, module in console.MODULES.items()}


def relative(path):
    return str(path.relative_to(ROOT))


def fences(path):
    """(language, text) of the fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text("utf-8"), re.M | re.S)


def joined(text):
    """The lines of a shell block, continued ones joined, without empty ones."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def commands_of(path):
    """The lines of a page's shell blocks."""
    return [line for language, text in fences(path) if language == "sh" for line in joined(text)]


def prose(path):
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S)


def anchors(text):
    """What links call the headings of a page; of equal ones the second ends in -1."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        name = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        before = sum(re.sub(r"-\d+$", "", other) == name for other in found)
        found.append(f"{name}-{before}" if before else name)
    return found


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 9000


@pytest.mark.parametrize("path", WRITTEN, ids=relative)
def test_links_lead_somewhere(path):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"https?:", target):
            continue
        name, _, place = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        if not other.exists() or (place and place not in anchors(prose(other))):
            wrong.append(target)
    assert not wrong


@pytest.mark.parametrize("path", WRITTEN, ids=relative)
def test_files_that_are_named_exist(path):
    """`folder/file`, also with * and <placeholders>, seen from the top of the repository."""
    wrong = []
    for name in re.findall(rf"(?<![\w./-])((?:{'|'.join(TOPS)})/[\w./*<>-]*)", prose(path)):
        name = name.rstrip(".")
        if name not in INVENTED and not [*ROOT.glob(re.sub(r"<\w+>", "*", name).rstrip("/"))]:
            wrong.append(name)
    assert not wrong


def commands():
    """(document, arguments) of every run of a recipe, written out or as a cell of a table."""
    for path in WRITTEN:
        found = [line for line in commands_of(path) if line.startswith(MODULE)]
        text = prose(path)
        inline = re.findall(r"`([^`]*)`", text)
        found += [" ".join(code.split()) for code in inline if code.startswith(MODULE)]
        found += [f"{MODULE} {code}" for code in inline if code.startswith("--config=configs/")]
        for command in dict.fromkeys(found):
            invented = any(name in command for name in INVENTED)
            if "--config=" in command and "<" not in command and not invented:
                yield path, command


COMMANDS = [*commands()]


@pytest.mark.parametrize(
    ("path", "command"), COMMANDS, ids=[f"{p.stem}-{i}" for i, (p, _) in enumerate(COMMANDS)]
)
def test_commands_resolve(path, command, monkeypatch):
    """The config file, its string and every override, as `main` reads them; nothing runs."""
    del path
    monkeypatch.chdir(ROOT)
    config = resolve(command)
    assert set(config.stages) <= set(main.stages_of(config.method))


def resolve(command):
    arguments = complete(["main", *shlex.split(command, comments=True)[3:]], main.RECIPES)[1:]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    # Config flags look for their overrides in the command line.
    before, sys.argv = sys.argv, ["main", *arguments]
    try:
        rest = values(sys.argv)
    finally:
        sys.argv = before
    assert rest[1:] == [], command
    return values["config"].value


LAUNCH = sorted((ROOT / "launch").iterdir())


def shell_lines():
    """(document, command) of every line of a shell block, and of every inline `python -m ...`."""
    for path in [*WRITTEN, ROOT / "launch/README.md"]:
        lines = commands_of(path)
        inline = [" ".join(code.split()) for code in re.findall(r"`([^`]*)`", prose(path))]
        lines += [code for code in inline if code.startswith(("python -m ", "make "))]
        for line in dict.fromkeys(lines):
            words = shlex.split(line, comments=True)
            # A name alone is no command, and "..." or <NAME> stands for what the reader has.
            invented = any(name in line for name in (*INVENTED, "shapes"))
            if words and not invented and not re.search(r"\.\.\.|<|=DIR\b", line):
                yield path, words


class ParsedError(Exception):
    """The arguments were understood."""


def understand(words, monkeypatch):
    """A command up to its parsed arguments; nothing runs.

    Raises:
      AssertionError: a kind of command that this test does not know.
    """
    first, rest = words[0], words[1:]
    if first in SCRIPTS:
        first, *rest = words = ["python", "-m", SCRIPTS[first], *rest]
    if words[:2] == ["python", "-m"] and len(words) > 3:
        parse_args = argparse.ArgumentParser.parse_args

        def stop(self, *arguments):
            parse_args(self, *arguments)
            raise ParsedError

        if words[2] == "clipseg_jax.main":
            resolve(shlex.join(words))
            return
        module = importlib.import_module(words[2])
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"{words[2]}.__main__")
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(ParsedError):
            module.main(words[3:])
    elif words[:2] == ["python", "-m"]:
        assert find_spec(words[2])
    elif first == "make":
        targets = [word for word in rest if "=" not in word]
        known = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {*targets} <= {*known}
    elif first == "pip":
        assert rest[0] == "install"
        if extras := re.search(r"\[(.*)\]", rest[1]):
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert {*extras[1].split(",")} <= {*project["optional-dependencies"]}
    elif first == "sbatch":
        understand(rest[[word.startswith("--") for word in rest].index(False) :], monkeypatch)
    elif first.startswith("launch/"):
        assert Path(first).exists()
        arguments = [word for word in rest if word.startswith("--config")]
        if arguments:
            resolve(f"{MODULE} {shlex.join(arguments)}")
    else:
        assert first in (".", "hf", "cd", ".venv/bin/python"), words


LINES = [*shell_lines()]


@pytest.mark.parametrize(
    ("path", "words"), LINES, ids=[f"{p.stem}-{i}" for i, (p, _) in enumerate(LINES)]
)
def test_shell_commands_are_understood(path, words, monkeypatch):
    del path
    monkeypatch.chdir(ROOT)
    understand(words, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "python -m clipseg_jax.predict photos/ --classes cat --wieghts x",
        "python -m weights_converter",
        "python -m weights_convert a.pt --to nothing",
        "make nothing",
        "pip install '.[cuda]'",
        "launch/local.sh 2 --config=configs/voc_maskclip.py --config.stage=data",
        "conda install it",
    ],
)
def test_commands_that_would_fail_are_found(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, AttributeError, SystemExit, ValueError)):
        understand(shlex.split(command), monkeypatch)


def example(path):
    """The arguments of the example in a launch script, and how many processes and devices."""
    text = path.read_text("utf-8")
    if path.suffix == ".yaml":
        command = text[text.index("exec python") : text.index("resources:")]
        numbers = (re.search(rf"{key}: (\d+)", text)[1] for key in ("parallelism", "gpu"))
        processes, each = map(int, numbers)
        return re.findall(r"--config\S+", command), processes, processes * each
    head = re.sub(r"\\\n#\s*", "", text[: text.index("\n#\n")])
    nodes, gpus = re.search(r"--nodes=(\d+)", head), re.search(r"--gpus-per-node=(\d+)", head)
    processes = int(nodes[1]) if nodes else 4
    arguments = re.findall(r"--config\S+", head)
    return arguments, processes, processes * (int(gpus[1]) if gpus else 1)


RECIPES_RUN = [p for p in LAUNCH if p.suffix in (".sh", ".yaml") and "--config=" in p.read_text()]


@pytest.mark.parametrize("path", RECIPES_RUN, ids=relative)
def test_launch_examples_fit_their_devices(path, monkeypatch, tmp_path):
    """Every batch of the whole recipe; its files are stood in for."""
    monkeypatch.chdir(ROOT)
    arguments, processes, devices = example(path)
    config = resolve(f"{MODULE} {shlex.join(arguments)}")
    config.clip.weights = config.dataset.root = str(tmp_path)
    if "student" in config:
        config.student.init_weights = str(tmp_path)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    preflight.check(config, config.stages)


def test_config_values_that_are_named_exist():
    """`--config.section.key=`, anywhere: a value of some recipe."""
    known = set()
    for path in (ROOT / "configs").glob("*_*.py"):
        if not path.stem.startswith("__"):
            config = importlib.import_module(f"configs.{path.stem}").get_config()
            known |= dotted(config.to_dict())
    wrong = {
        f"{relative(path)}: {name}"
        for path in WRITTEN
        for name in re.findall(r"--config\.([a-z][\w.]*)=", path.read_text("utf-8"))
        if name not in known
    }
    assert not wrong


def dotted(tree, prefix=""):
    names = set()
    for key, value in tree.items():
        inner = isinstance(value, dict)
        names |= dotted(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}"}
    return names


@pytest.mark.parametrize(
    "command",
    [
        f"{MODULE} --config=configs/voc_maskclip.py --config.inference.scale=3",
        f"{MODULE} --config=configs/voc_clip_rc.py:zero",
        f"{MODULE} --config=configs/voc_maskclip.py data",
    ],
)
def test_wrong_commands_are_found(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AttributeError, ValueError, AssertionError, flags.Error)):
        resolve(command)


@pytest.mark.parametrize("path", WRITTEN, ids=relative)
def test_python_blocks_parse(path):
    for language, text in fences(path):
        if language == "python":
            compile(text, str(path), "exec")


def run_blocks(name, folder, monkeypatch):
    """Every Python block of a page, one after the other, in an empty folder.

    The first block of a section whose heading names files of the example is these files, as modules
    that later blocks import; it sees nothing of the other blocks. All others share their names.
    """
    monkeypatch.chdir(folder)
    page = {"__name__": "page"}
    for section in re.split(r"^(?=## )", (DOCS / name).read_text("utf-8"), flags=re.M):
        paths = INVENTED & {*re.findall(r"`([^`]+)`", section.splitlines()[0])}
        for text in re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S):
            code = compile(text, name, "exec")
            if not paths:
                exec(code, page)
                continue
            for path in sorted(paths):
                module = types.ModuleType(path.removesuffix(".py").replace("/", "."))
                monkeypatch.setitem(sys.modules, module.__name__, module)
                exec(code, module.__dict__)
            paths = set()


@pytest.mark.slow
def test_new_method(tmp_path, monkeypatch):
    monkeypatch.setattr(main, "METHODS", dict(main.METHODS))
    run_blocks("new_method.md", tmp_path, monkeypatch)
    work = tmp_path / "workdir/demo_probe"
    assert (work / "metrics.json").exists()
    assert len((work / "train.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_predict(tmp_path, monkeypatch):
    """Its commands with the demo's weights, then its examples."""
    Image.fromarray(world.make("evaluation", 0, 64).image).save(tmp_path / "photo.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photo.png").rename(tmp_path / "photos/photo.png")
    monkeypatch.chdir(tmp_path)
    page = DOCS / "predict.md"
    for line in commands_of(page):
        words = shlex.split(line.replace("ViT-B-16.pt", "demo"))
        assert words[0] == "clipseg-predict"
        assert predict.main(words[1:]) == 0
    files = re.findall(r"`(\w+\.\w+)`", page.read_text().partition("## Scores")[0])
    wrong = {name for name in files if not (tmp_path / "masks" / name).exists()}
    assert wrong <= {"skipped.jsonl", "annotations_polygons.json"}
    run_blocks("predict.md", tmp_path, monkeypatch)


def test_new_dataset(tmp_path, monkeypatch):
    monkeypatch.setitem(catalog.BY_NAME, "shapes_3", None)
    monkeypatch.setitem(PREPARATIONS, "shapes", None)
    run_blocks("new_dataset.md", tmp_path, monkeypatch)
    assert (tmp_path / "workdir/shapes_maskclip/metrics.json").exists()


def modules():
    """Dotted name -> module, of all three packages."""
    for package in (clipseg_jax, input_pipeline, weights_convert):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                yield found.name


def lookup(dotted, known):
    """Whether `model.Class.method` or `ops.par.par` names something; by the end of a module."""
    parts = dotted.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        end = ".".join(parts[:cut])
        for name in known:
            if name == end or name.endswith(f".{end}"):
                thing = importlib.import_module(name)
                try:
                    for part in parts[cut:]:
                        thing = inspect.getattr_static(thing, part)
                except AttributeError:
                    continue
                return True
    return False


@pytest.mark.parametrize("path", METHODS, ids=relative)
def test_functions_that_are_named_exist(path):
    """`module.function` in the second column of a table "paper | code"."""
    known, own = [*modules()], f"clipseg_jax.methods.{path.stem}"
    names = []
    for row in re.findall(r"^\|(.*)\|$", prose(path), re.M):
        cells = row.split("|")
        if len(cells) > 1 and "spec " in cells[0] + cells[-1]:
            names += re.findall(r"`([a-z_]\w*(?:\.\w+)+)`", cells[1])
    assert names, "a table of the paper's parts and the functions"
    mine = [name for name in known if name.startswith(f"{own}.")]
    assert not [name for name in names if not lookup(name, mine) and not lookup(name, known)]


def test_architecture_is_the_tree():
    """Every line of the tree exists, and nothing of the library is left out."""
    text = (DOCS / "architecture.md").read_text("utf-8")
    top, named = "", set()
    for indent, name in re.findall(r"^( *)([\w/]+(?:\.py)?)\s", text.split("```")[1], re.M):
        top = top if indent else name
        named.add(f"{top}{name}" if indent else name)
    assert not [name for name in named if not (ROOT / name).exists()]
    packages = [path.parent for path in (ROOT / "clipseg_jax").glob("*/__init__.py")]
    files = [path for path in (ROOT / "clipseg_jax").glob("*.py") if path.stem != "__init__"]
    here = {f"{relative(path)}/" for path in packages} | {*map(relative, files)}
    in_the_line_of_train = {"clipseg_jax/train_step.py", "clipseg_jax/train_best.py"}
    assert here - named <= in_the_line_of_train


def test_architecture_has_the_contract():
    text = (DOCS / "architecture.md").read_text("utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.M) == [*Task._fields]


def test_every_method_is_described():
    folders = {path.parent.name for path in (ROOT / "clipseg_jax/methods").glob("*/__init__.py")}
    assert {path.stem for path in METHODS} == folders
    readme = (ROOT / "README.md").read_text()
    assert all(f"(docs/methods/{name}.md)" in readme for name in folders)
