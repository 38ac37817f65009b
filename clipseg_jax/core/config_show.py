"""A recipe's values, each with its comment in the source of the configs."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from clipseg_jax.core.config_arguments import flat_names


def shown(config: ConfigDict, sources: Iterable[Path]) -> Iterator[str]:
    """One line for each value of the config, `name = value  # comment`.

    Args:
      config: the recipe.
      sources: files that set its values; of two comments on one value the later file's counts.
    """
    comments: dict[str, str] = {}
    for source in sources:
        comments |= _comments(source.read_text("utf-8"))
    for name in flat_names(config):
        value = config
        for part in name.split("."):
            value = value[part]
        text = f"{name} = {value!r}"
        # A function that several sections share calls its own just `section` or `optim`.
        section, _, last = name.rpartition(".")
        shared = f"{section.rpartition('.')[2]}.{last}"
        comment = comments.get(name) or comments.get(shared)
        yield f"{text}  # {comment}" if comment else text


def _comments(source: str) -> dict[str, str]:
    """The comment on or above each assignment to a config value, by the value's name."""
    lines = {
        token.start[0]: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, str] = {}
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if not isinstance(node, ast.Assign):
                continue
            above: list[str] = []
            line = node.lineno - 1
            while line in lines and lines[line][1]:
                above.insert(0, lines[line][0])
                line -= 1
            span = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            text = " ".join([*above, *(lines[n][0] for n in span if n in lines)])
            for target in _targets(node):
                root, _, name = ast.unparse(target).partition(".")
                # `section` is named after its function (configs/base/loops.py).
                prefix = {"config": "", "section": f"{function.name}."}.get(root, f"{root}.")
                if name and text:
                    found[prefix + name] = text
    return found


def _targets(node: ast.Assign) -> Iterator[ast.Attribute]:
    for target in node.targets:
        for each in target.elts if isinstance(target, ast.Tuple) else [target]:
            if isinstance(each, ast.Attribute):
                yield each
