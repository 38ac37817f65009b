"""The `--config` arguments of a command line: found, checked and completed before absl reads them.

absl and ml_collections read `--config=FILE` and `--config.KEY=VALUE`. This module adds recipes by
their name alone, tuples without quotes (`--config.stages=data,text`), and errors of one line.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from clipseg_jax.core.config_names import check_arguments


def complete(arguments: Sequence[str], recipes: Path) -> list[str]:
    """The command line with the recipe's path, and with values as ml_collections reads them.

    Args:
      arguments: the command line, the program first.
      recipes: the installed package of configs, for a recipe that is given by its name.

    Raises:
      ValueError: no such recipe, variant or value, or a value of another type.
    """
    split = _split(arguments)
    named = [value for name, value in split if name == "config" and value]
    if not named:
        raise ValueError("no recipe; pass --config=NAME, such as --config=configs/demo_maskclip.py")
    path, colon, string = named[-1].partition(":")
    file = _find(path, recipes)
    config = _load(file, string if colon else None)
    check_arguments(arguments, flat_names(config))
    out = []
    last = {name: i for i, (name, _) in enumerate(split)}
    for i, (name, value) in enumerate(split):
        if value is not None and i < last[name]:
            continue  # given again; absl would join two lists
        if name == "config":
            out.append(f"--config={file}{colon}{string}")
        elif name.startswith("config.") and value is not None:
            key = name.removeprefix("config.")
            out.append(f"--config.{key}={_value(config, key, value)}")
        else:
            out.append(name)
    return out


def resolve(arguments: Sequence[str], recipes: Path) -> ConfigDict:
    """The config that a command with these `--config` arguments and no others runs.

    Raises:
      ValueError: as `complete`.
    """
    completed = complete(["", *arguments], recipes)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True)
    before, sys.argv = sys.argv, completed  # config flags look for their overrides there
    try:
        values(completed)
    except flags.Error as error:
        raise ValueError(" ".join(str(error).split())) from None
    finally:
        sys.argv = before
    return values["config"].value


def installed(recipe: str, recipes: Path) -> ConfigDict:
    """The config of an installed recipe such as "voc_reclippp:2025", with its own values.

    Args:
      recipe: its name, and a config string after a colon.
      recipes: the installed package of configs.

    Raises:
      ValueError: no such recipe or variant.
    """
    name, colon, string = recipe.partition(":")
    file = recipes / f"{name}.py"
    if not name.isidentifier() or not file.is_file():
        raise ValueError(f"no recipe {name}; there is none of this name in {recipes}")
    _use(recipes)
    return _load(file, string if colon else None)


def _split(arguments: Sequence[str]) -> list[tuple[str, str | None]]:
    """(name, value) of each config argument; whatever else it is comes whole, without a value."""
    out: list[tuple[str, str | None]] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.lstrip("-").partition("=")
        ours = argument.startswith("-") and (name == "config" or name.startswith("config."))
        if argument == "--":
            out += [(argument, None), *((other, None) for other in rest)]
        elif not ours:
            out.append((argument, None))
        elif equals:
            out.append((name, value))
        elif (following := next(rest, None)) is None:
            raise ValueError(f"{argument} has no value; write {argument}=VALUE")
        else:
            out.append((name, following))
    return out


def _find(name: str, recipes: Path) -> Path:
    """The config file: a path, or the name of an installed recipe, with or without folder."""
    path = Path(name)
    if path.is_file():
        return path
    installed = recipes / f"{path.name.removesuffix('.py')}.py"
    if path.parent.name in ("", recipes.name) and installed.is_file():
        _use(recipes)
        return installed
    names = sorted(path.stem for path in recipes.glob("[!_]*.py"))
    hint = _nearest(path.stem, names) or f"; there are {', '.join(names)}"
    raise ValueError(f"no config {name}{hint}")


def _use(recipes: Path) -> None:
    """Makes `import configs` find the installed package, not another one in this folder."""
    name = recipes.name
    spec = importlib.util.spec_from_file_location(
        name, recipes / "__init__.py", submodule_search_locations=[str(recipes)]
    )
    assert spec is not None
    if name not in sys.modules:
        sys.modules[name] = importlib.util.module_from_spec(spec)


def _load(file: Path, string: str | None) -> ConfigDict:
    """The config of a file, in the variant that the string names."""
    try:
        get_config = runpy.run_path(str(file))["get_config"]
    except KeyError:
        raise ValueError(f"{file} has no function get_config; it is not a config") from None
    except SyntaxError as error:
        raise ValueError(f"{file} is not Python: {error}") from None
    if string is None:
        return get_config()
    if not inspect.signature(get_config).parameters:
        raise ValueError(f"{file.name} has no variants; omit {':' + string!r}")
    try:
        return get_config(string)
    except ValueError as error:
        raise ValueError(f"{file.name}:{string}: {error}") from None


def _value(config: ConfigDict, key: str, text: str) -> str:
    """`text` as ml_collections reads it for the config value `key`.

    Raises:
      ValueError: there is no such value, or it has another type.
    """
    section, name = config, key
    while "." in name:
        head, _, name = name.partition(".")
        section = section.get(head)
        if not isinstance(section, ConfigDict):
            raise ValueError(_unknown(config, key))
    if name not in section:
        raise ValueError(_unknown(config, key))
    default = section[name]
    if isinstance(default, ConfigDict):
        inner = ", ".join(f"{key}.{each}" for each in default)
        raise ValueError(f"--config.{key} is a section; set one of its values: {inner}")
    kind = section.get_type(name)
    if kind in (tuple, list):
        return repr(_items(key, text, default))
    if kind is str:
        return text
    try:
        if kind is bool:
            return str({"true": True, "1": True, "false": False, "0": False}[text.lower()])
        return str(kind(text))
    except (ValueError, KeyError):
        kinds = {int: "a whole number", float: "a number", bool: "True or False"}
        wanted = kinds.get(kind, kind.__name__)
        example = "" if default is None else f", such as {default}"
        raise ValueError(f"--config.{key}={text}: it takes {wanted}{example}") from None


def _items(key: str, text: str, default: Sequence[Any] | None) -> tuple:
    """`a,b`, `'a','b'` or `('a','b')` as a tuple whose items have the types of the default's.

    A tuple without default is of whole numbers, such as `clip.heads`; one of no items is of words.
    """
    default = (1, 2) if default is None else default
    example = ",".join(map(str, default)) or "a,b"
    if not text.strip():
        raise ValueError(f"--config.{key} is empty; give values such as {example}, or () for none")
    wrong = ValueError(
        f"--config.{key}={text}: it takes values separated by commas, such as {example}"
    )
    if text.strip()[0] in "(['\"":
        try:
            items = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise wrong from None
        items = tuple(items) if isinstance(items, tuple | list) else (items,)
    else:
        items = tuple(part.strip() for part in text.split(",") if part.strip())
        if default and not isinstance(default[0], str):
            try:
                items = tuple(ast.literal_eval(part) for part in items)
            except (ValueError, SyntaxError):
                raise wrong from None
    allowed: Any = (str,) if not default or isinstance(default[0], str) else (int, float)
    if default and isinstance(default[0], int):
        allowed = (int,)
    if not all(isinstance(x, allowed) and not isinstance(x, bool) for x in items):
        raise wrong
    # Sizes are (height, width) or (long, short); other tuples may have any length.
    if key.endswith("_px") and len(items) != len(default):
        raise ValueError(
            f"--config.{key}={text}: it takes {len(default)} values, such as {example}"
        )
    return items


def _unknown(config: ConfigDict, key: str) -> str:
    names = flat_names(config)
    # What a user leaves out first is the section.
    last = key.rpartition(".")[2]
    same = [name for name in names if name.rpartition(".")[2] == last]
    hint = f"; did you mean {' or '.join(same[:3])}?" if same else _nearest(key, names)
    return f"no config value {key}{hint}; --show lists all"


def flat_names(config: ConfigDict, prefix: str = "") -> list[str]:
    """The full names of all values, such as "dataset.root"."""
    names: list[str] = []
    for key, value in config.items():
        inner = isinstance(value, ConfigDict)
        names += flat_names(value, f"{prefix}{key}.") if inner else [f"{prefix}{key}"]
    return names


def _nearest(name: str, names: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {found[0]}?" if found else ""
