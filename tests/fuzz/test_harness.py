"""The harness itself: each kind of bad reader is caught, and a good one is counted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz import harness
from tests.fuzz.harness import check_reader
from tests.fuzz.mutations import mutated

SEEDS = [b"sound " * 50, b"SOUND " * 50]


def damaged(path):
    return path.read_bytes().lower().count(b"sound ") < 48


def sound(path):
    if damaged(path):
        raise ValueError(f"{path} is not sound")


def hangs(path):
    while damaged(path):
        pass


def waits(path):
    if damaged(path):
        os.mkfifo(path.parent / "fifo")
        (path.parent / "fifo").read_bytes()


def crashes(path):
    if damaged(path):
        os.abort()


def starts_a_program(path):
    if damaged(path):
        subprocess.run(["true"])


def runs_code(path):
    if damaged(path):
        exec("1 + 1")


def writes_elsewhere(path):
    if damaged(path):
        (Path(__file__).parent / "written").open("a").close()
        (Path(__file__).parent / "written").unlink()


def fills_memory(path):
    if damaged(path):
        return np.ones(300_000_000, np.uint8)


def asks_for_memory(path):
    if damaged(path):
        try:
            np.zeros(2**40, np.uint8)
        except MemoryError as error:
            raise ValueError(f"{path} is damaged") from error


def raises_another_error(path):
    if damaged(path):
        raise KeyError(path)


def does_not_name_it(path):
    if damaged(path):
        raise ValueError("damaged")


def unprintable(path):
    if damaged(path):
        raise ValueError(f"{path}: \ud800 \x1b[2J")


def test_a_sound_reader_is_counted():
    counts = check_reader(sound, SEEDS, 200, ("ValueError",))
    assert counts.inputs == 200
    assert counts.read + counts.refused["ValueError"] == 200
    assert min(counts.read, counts.refused["ValueError"]) > 10


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (hangs, "hangs"),
        (waits, "no answer after"),
        (crashes, "exit -6"),
        (starts_a_program, "subprocess.Popen"),
        (runs_code, "exec"),
        (writes_elsewhere, "written"),
        (fills_memory, "took 2.. MB"),
        (asks_for_memory, "asked for more memory"),
        (raises_another_error, "KeyError"),
        (does_not_name_it, "does not name the file"),
        (unprintable, "no terminal"),
    ],
)
def test_a_bad_reader_is_caught(read, said, monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "CPU_S", 2.0)
    monkeypatch.setattr(harness, "_WALL_S", 5.0)
    monkeypatch.setattr(harness, "LEAST_BYTES", 2 * 10**8)
    monkeypatch.setattr(harness, "_ENOUGH", 1)
    monkeypatch.setattr(harness, "KEPT", tmp_path)
    with pytest.raises(AssertionError, match=said) as caught:
        check_reader(read, SEEDS, 50, ("ValueError",))
    (kept,) = tmp_path.iterdir()
    assert str(kept) in str(caught.value)
    assert damaged(kept)


def test_a_seed_must_be_read():
    with pytest.raises(AssertionError, match="refuses its seed"):
        check_reader(sound, [b"damaged"], 1, ("ValueError",))


def test_inputs_are_a_function_of_their_numbers():
    assert [mutated(SEEDS, i) for i in range(50)] == [mutated(SEEDS, i) for i in range(50)]
    assert len({mutated(SEEDS, i) for i in range(50)}) > 40
