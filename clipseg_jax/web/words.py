"""Words that visitors type, and what they are told when something is wrong."""

from __future__ import annotations

import re

MOST_WORDS = 64  # in one run; each costs a map of probabilities
_MOST_LETTERS = 80  # of a word
_QUOTES = "\"'`\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"


def split_words(text: str) -> list[str]:
    """The words of a text, which commas, semicolons or lines separate; each once, in order.

    Raises:
      ValueError: a word of too many letters.
    """
    words: dict[str, str] = {}
    for part in re.split(r"[,;\n\r]", text):
        word = " ".join(part.split()).strip(_QUOTES).strip()
        if len(word) > _MOST_LETTERS:
            raise ValueError(
                f"{word[:20]!r}... has {len(word)} letters; give short names, with commas between"
            )
        if word:
            words.setdefault(word.lower(), word)
    return list(words.values())


def read_words(words: str, background: str) -> tuple[list[str], list[str]]:
    """Class names and background words of the two fields.

    Raises:
      ValueError: none, too many, or one in both fields; the message says what to do.
    """
    names, others = split_words(words), split_words(background)
    if not names:
        raise ValueError("Type at least one word for what is in the photo: cat, sofa")
    if len(names) + len(others) > MOST_WORDS:
        raise ValueError(
            f"{len(names) + len(others)} words; up to {MOST_WORDS} are taken in one run"
        )
    both = {word.lower() for word in names} & {word.lower() for word in others}
    if both:
        raise ValueError(f"{min(both)!r} is in both fields; leave it in one of them")
    if len(names) == 1 and not others:
        raise ValueError(
            f"With {names[0]!r} alone every pixel would be it; add words for what else is there, "
            "or background words"
        )
    return names, others
