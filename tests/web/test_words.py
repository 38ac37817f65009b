"""Words that visitors type."""

from __future__ import annotations

import pytest

from clipseg_jax.web.words import read_words, split_words


def test_separators_blanks_quotes_and_repeats():
    text = ' cat,,sofa; "tv  monitor"\nCat ,\r\n‘\u201clamp\u201d'
    assert split_words(text) == ["cat", "sofa", "tv monitor", "‘\u201clamp"]
    assert split_words(" ,; \n") == []


def test_both_fields():
    assert read_words("cat, dog", "wall") == (["cat", "dog"], ["wall"])
    assert read_words("cat", "wall") == (["cat"], ["wall"])
    assert read_words("cat, dog", "") == (["cat", "dog"], [])


@pytest.mark.parametrize(
    ("words", "background", "message"),
    [
        ("", "wall", "at least one word"),
        ("cat", "", "With 'cat' alone every pixel would be it"),
        ("cat, Wall", "wall", "'wall' is in both fields"),
        (", ".join(map(str, range(65))), "", "65 words; up to 64"),
        ("x" * 81, "wall", "has 81 letters"),
    ],
)
def test_what_to_do_about_it(words, background, message):
    with pytest.raises(ValueError, match=message):
        read_words(words, background)
