"""Every citation of a specification in docs/specs names a section, or a quirk, that exists."""

from __future__ import annotations

import ast
import functools
import io
import itertools
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPECS = ROOT / "docs" / "specs"
NAMES = sorted(path.stem for path in SPECS.glob("*.md") if path.stem != "README")
TOPS = ("benchmarks", "clipseg_jax", "configs", "input_pipeline", "tests", "weights_convert")

NUMBER = r"\d+(?:\.\d+)*"
NUMBERS = rf"{NUMBER}(?:(?:, | and | to |-){NUMBER})*"
PLACE = rf"(?:[Ss]ections?|[Qq]uirks?) {NUMBERS}"
# "spec weclip, section 5.8"; "section 5.8" is of the file's own; "2021, section 2.4" is a paper's.
CITATION = re.compile(
    r"(?:(?P<paper>\b(?:19|20)\d\d, )|\b[Ss]pec (?P<name>\w+), )?"
    rf"\b(?P<places>{PLACE}(?:, {PLACE})*)"
)
# Alone, "spec weclip", or several: "specs weclip, wtclip".
MENTION = re.compile(
    r"(?<![/\w])[Ss]pec(?P<many>s)?\b(?: (?P<names>\w+(?:, \w+)*)(?=[\s,.;:)`]|$))?"
)
# A name without the word, or without the comma, in front of a section.
BARE = re.compile(rf"\b(?:{'|'.join(NAMES)}),? $")
# Inside the specifications: "section 6", "`clip_es.md` section 6", "§5.3 of weclip.md".
INSIDE = re.compile(
    rf"(?:\b(?P<before>\w+)\.md`?,? )?(?:\b[Ss]ections? |§)(?P<numbers>{NUMBERS})"
    r"(?: of `?(?P<behind>\w+)\.md)?"
)


@functools.cache
def outline(name):
    """The numbers of a specification's sections, items of their lists included, and its quirks."""
    headings, items, quirks, here, title = set(), set(), set(), "", ""
    for line in (SPECS / f"{name}.md").read_text("utf-8").splitlines():
        if found := re.match(rf"##+ ({NUMBER})\.? (.*)", line):
            here, title = found.groups()
            assert here not in headings, f"{name}: two sections {here}"
            headings.add(here)
        elif found := re.match(r"(?:\| (\d+) \||(\d+)\. )", line):
            if found[2]:
                items.add((here, found[2]))
            if title.startswith("Quirks"):
                quirks.add(found[1] or found[2])
    parents = {number.rpartition(".")[0] for number in headings}
    listed = {f"{section}.{item}" for section, item in items if section not in parents}
    return headings | listed, quirks


def missing(name, places):
    """What of "section 3, quirks 4 and 5" the specification `name` lacks."""
    sections, quirks = outline(name)
    for kind, numbers in re.findall(rf"([Ss]ection|[Qq]uirk)s? ({NUMBERS})", places):
        kind = kind.lower()
        known = sections if kind == "section" else quirks
        for number in re.findall(NUMBER, numbers):
            if number not in known:
                yield f"{kind} {number} of spec {name} does not exist"
        for first, last in re.findall(rf"({NUMBER})(?: to |-)({NUMBER})", numbers):
            if [*map(int, first.split("."))] >= [*map(int, last.split("."))]:
                yield f"{kind}s {first} to {last} of spec {name} run backwards"


def paragraphs(path):
    """Comments and docstrings of a Python file, or the text of another: lists of (line, text)."""
    source = path.read_text("utf-8")
    lines = source.splitlines()
    if path.suffix != ".py":
        yield [*enumerate(lines, 1)]
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            span = range(node.lineno, node.end_lineno + 1)
            yield [(number, lines[number - 1]) for number in span]
    comments = [
        (token.start[0], token.string.lstrip("#"), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    blocks, open_line = [], None  # a comment behind code is a paragraph of its own
    for number, text, alone in comments:
        if alone and open_line == number - 1:
            blocks[-1].append((number, text))
        else:
            blocks.append([(number, text)])
        open_line = number if alone else None
    yield from blocks


def own_spec(path):
    """The one specification that a Python file's module docstring names, or None."""
    if path.suffix != ".py":
        return None
    text = " ".join((ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split())
    found = {
        name for match in MENTION.finditer(text) for name in (match["names"] or "").split(", ")
    } & set(NAMES)
    return found.pop() if len(found) == 1 else None


def complaints(path):
    """A line for each citation in `path` that leads nowhere."""
    if not re.search(r"[Ss]pec|[Ss]ection|[Qq]uirk|§", path.read_text("utf-8")):
        return
    own = own_spec(path)
    for block in paragraphs(path):
        words = [text.strip() for _, text in block]
        starts = [0, *itertools.accumulate(len(word) + 1 for word in words)]
        text = " ".join(words)

        def where(match, block=block, starts=starts):
            line = max(i for i in range(len(block)) if starts[i] <= match.start())
            return f"{path.relative_to(ROOT)}:{block[line][0]}: {match[0]!r}"

        for match in MENTION.finditer(text):
            names = (match["names"] or "").split(", ")
            named = names if match["many"] else names[:1]
            for name in named:
                if name not in NAMES:
                    yield f"{where(match)}: no such specification"
        for match in CITATION.finditer(text):
            if match["paper"]:
                continue
            name = match["name"] or own
            if not match["name"] and BARE.search(text[: match.start()]):
                yield f"{where(match)}: write `spec NAME, ` before it"
            elif name is None:
                yield f"{where(match)}: of which specification?"
            elif name in NAMES:  # else it was complained of above
                yield from (f"{where(match)}: {what}" for what in missing(name, match["places"]))
        for match in re.finditer(r"§ ?\d\S*", text):
            yield f"{where(match)}: write `section`"


def files():
    for top in TOPS:
        yield from sorted((ROOT / top).rglob("*.py"))
        yield from sorted((ROOT / top).rglob("*.md"))
    yield from sorted((ROOT / "docs").glob("*.md"))
    yield from sorted((ROOT / "docs/methods").glob("*.md"))
    yield from sorted(ROOT.glob("*.md"))


def test_every_citation_leads_somewhere():
    searched = [path for path in files() if path != Path(__file__).resolve()]
    found = [line for path in searched for line in complaints(path)]
    assert not found, "\n" + "\n".join(found)


WRONG = {
    '"""Spec clip_es, section 18."""': "section 18 of spec clip_es does not exist",
    '"""Spec clip_es, sections 4\nto 18."""': "section 18 of spec clip_es does not exist",
    '"""Spec weclip, section 5.10."""': "section 5.10 of spec weclip does not exist",
    "x = 1  # spec weclip, quirk 17": "quirk 17 of spec weclip does not exist",
    "x = 1  # spec densecrf, quirk 1": "quirk 1 of spec densecrf does not exist",
    "x = 1  # spec reclip, section 18, quirk 21": "quirk 21 of spec reclip does not exist",
    "# A comment of two lines; spec\n# clip, section 15": ":1: 'spec clip, section 15': section 15",
    '"""Spec clip, sections 7 to 4."""': "sections 7 to 4 of spec clip run backwards",
    '"""Spec deeplabs, section 1."""': "no such specification",
    '"""Spec reclip++, section 1."""': "no such specification",
    '"""Specs clip, section 2, and deeplab, section 3."""': "no such specification",
    '"""Spec clip_es, section 2; tagclip, section 3."""': "write `spec NAME, ` before it",
    '"""Spec clip_es section 2."""': "write `spec NAME, ` before it",
    "# As the spec says.": "no such specification",
    "# (spec, section 2)": "no such specification",
    "\n\nx = 1  # section 2": ":3: 'section 2': of which specification?",
    '"""Specs clip, weclip."""\n\nx = 1  # quirk 2': ":3: 'quirk 2': of which specification?",
    '"""Spec clip."""\n\nx = 1  # section 20': ":3: 'section 20': section 20 of spec clip",
    '"""Spec clip."""\n\nx = 1  # §2': "write `section`",
}  # fmt: skip
RIGHT = (
    '"""Specs weclip, wtclip."""\n\nx = 1  # spec weclip, section 5.8; spec wtclip, section 2',
    '"""Radford et al. 2021, section 99; spec clip, sections 1, 2 and 10.1 to 10.5."""',
    '"""Spec reclip."""\n\nx = 1  # section 18, quirk 20; sections 5.7 and 15.1, quirks 1 and 2',
    '"""A text with sections, 3 quirks, in_specs and a specification."""',
    'x = "section 99"',
)


@pytest.mark.parametrize("source", WRONG)
def test_wrong_citations_are_found(tmp_path, monkeypatch, source):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "module.py").write_text(source)
    found = [*complaints(tmp_path / "module.py")]
    assert WRONG[source] in "\n".join(found)
    assert all(line.startswith("module.py:") for line in found)


@pytest.mark.parametrize("source", RIGHT)
def test_right_citations_pass(tmp_path, source):
    (tmp_path / "module.py").write_text(source)
    assert not [*complaints(tmp_path / "module.py")]


@pytest.mark.parametrize("name", NAMES)
def test_specifications_are_whole(name):
    """Sections are numbered from 1 on; what they refer to, sections or files, is there."""
    sections, _ = outline(name)
    top = sorted(int(number) for number in sections if "." not in number)
    assert top == [*range(1, len(top) + 1)]
    text = " ".join((SPECS / f"{name}.md").read_text("utf-8").split())
    for match in INSIDE.finditer(text):
        other = match["before"] or match["behind"] or name
        assert other in NAMES, match[0]
        assert not [*missing(other, f"sections {match['numbers']}")], match[0]
    for path in re.findall(r"`((?:tests|clipseg_jax|input_pipeline|docs)/[^` ]*)`", text):
        assert [*ROOT.glob(path)], path
    for path in re.findall(r"`(\w+\.md|\w*classes\.json)`", text):
        assert (SPECS / path).exists(), path


def test_every_specification_is_listed():
    listed = re.findall(r"^- \[(\w+)\]\((\w+)\.md\)", (SPECS / "README.md").read_text(), re.M)
    assert sorted(listed) == [(name, name) for name in NAMES]
