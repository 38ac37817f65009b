"""Worker processes make the rows that threads make, and end with what they serve."""

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.batches.packed import Packed
from input_pipeline.batches.row_processes import rows_by_processes
from input_pipeline.batches.training import make_training_batches
from input_pipeline.batches.weclip_views import random_placement_batches
from input_pipeline.batches.zero_shot import hide_unseen
from input_pipeline.datasets.images import BadImage
from tests.input_pipeline.batches.test_training import (
    CLASSES,
    SIZES,
    made_at_scales,
    same,
    spoil,
    view_batches,
    write,
)

ROOT = Path(__file__).resolve().parents[3]
SPECS = [("int32", ()), ("float32", (3,))]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write(tmp_path_factory.mktemp("world"), SIZES)


def workers(pid="self"):
    """The processes that a process has started and that still run."""
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
        if b"row_worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def gone(pids):
    return all(not Path(f"/proc/{pid}").exists() for pid in pids)


def taken(data, count, start=0, processes=0):
    stream = data.batches(start, processes=processes)
    batches = [next(stream) for _ in range(count)]
    stream.close()
    return batches


def placed(dataset, **options):
    examples = dataset.index("", labels=False)
    return random_placement_batches(
        dataset, examples, **{"batch_size": 4, "crop_hw": (32, 40), **options}
    )


def hidden(dataset, **options):
    return hide_unseen(view_batches(dataset, **options), "transductive", (1, 2))


@pytest.mark.parametrize("made", [view_batches, made_at_scales, placed, hidden])
def test_rows_are_those_of_threads(world, made):
    """From the second step on, over the end of an epoch of two; no batch that is kept changes."""
    by_threads = taken(made(world), 8, 1)
    for one, other in zip(by_threads, taken(made(world), 8, 1, processes=2), strict=True):
        same(one, other)
        assert {k: v.dtype for k, v in one.items()} == {k: v.dtype for k, v in other.items()}
    assert not workers()


def test_hosts_of_one_row_and_more_workers_than_rows(world):
    whole = taken(view_batches(world), 9)
    part = taken(view_batches(world, process_index=3, process_count=4), 9, processes=3)
    for one, other in zip(whole, part, strict=True):
        same({key: value[3:] for key, value in one.items()}, other)


def test_bad_files(tmp_path, caplog):
    world = write(tmp_path, SIZES)
    spoil(tmp_path)
    threads, processes = (view_batches(world, on_bad="skip") for _ in range(2))
    for one, other in zip(taken(threads, 4), taken(processes, 4, processes=2), strict=True):
        same(one, other)
    assert len(processes.skipped) == 4
    assert sorted(map(str, threads.skipped)) == sorted(map(str, processes.skipped))
    with pytest.raises(BadImage) as by_threads:
        taken(view_batches(world), 2)
    with pytest.raises(BadImage) as by_processes:
        taken(view_batches(world), 2, processes=2)
    assert str(by_threads.value) == str(by_processes.value)
    assert not workers()


def noted_row(number):
    logging.getLogger("rows").warning("first of its folder")
    note = KeyError("a mistake of ours") if number == 9 else number
    return (number, np.full(3, number / 2)), note


def test_notes_and_logs(caplog):
    stream = rows_by_processes(noted_row, SPECS, 3, start=3, processes=2)
    for first in (3, 6):
        (numbers, halves), notes = next(stream)
        assert notes == numbers.tolist() == [first, first + 1, first + 2]
        np.testing.assert_array_equal(halves, np.repeat(numbers[:, None] / 2, 3, axis=1))
    _, (mistake, *_) = next(stream)
    assert isinstance(mistake, KeyError)
    assert "In a worker process" in mistake.__notes__[0]
    assert caplog.text.count("first of its folder") == 1
    stream.close()
    with pytest.raises(ValueError, match="define views as functions of a module"):
        next(rows_by_processes(lambda number: noted_row(number), SPECS, 3, processes=1))


def test_memory_is_used_again():
    """Slots of arrays that nothing uses any more; views of them count as use."""
    stream = rows_by_processes(noted_row, SPECS, 1, processes=1)
    addresses, kept = set(), next(stream)[0][1][0, 1:]
    for number in range(1, 8):
        (numbers, halves), _ = next(stream)
        addresses.add(numbers.__array_interface__["data"][0])
        assert halves[0, 0] == number / 2
    assert len(addresses) < 7
    stream.close()
    assert (kept == 0).all()


def test_a_killed_worker(world):
    stream = view_batches(world).batches(processes=2)
    next(stream)
    os.kill(workers()[1], signal.SIGKILL)
    with pytest.raises(ChildProcessError, match=r"killed by SIGKILL.*loader_processes=N"):
        list(itertools.islice(stream, 9))
    assert not workers()


PROGRAM = """
import itertools, sys, time
from input_pipeline.datasets.catalog import folder
from input_pipeline.batches.training import random_view_batches
print("started")
world = folder(sys.argv[1], {classes!r})
data = random_view_batches(
    world, world.index(""), batch_size=4, scale=(2048, 512), crop_hw=(512, 512)
)
stream = data.batches(processes=2)
print(len(list(itertools.islice(stream, 3))), "jax" in sys.modules, flush=True)
time.sleep(float(sys.argv[2]))
"""


def program(tmp_path, seconds):
    """A script without `if __name__ == "__main__"`, in the middle of its rows."""
    (tmp_path / "script.py").write_text(PROGRAM.format(classes=CLASSES))
    write(tmp_path, [(500, 375)] * 8)
    return subprocess.Popen(
        [sys.executable, tmp_path / "script.py", tmp_path, str(seconds)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_program_may_end_in_the_middle(tmp_path):
    out, err = program(tmp_path, 0).communicate(timeout=120)
    assert (out, err) == ("started\n3 False\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_program(tmp_path, number):
    running = program(tmp_path, 100)
    assert running.stdout.readline() == "started\n"
    assert running.stdout.readline() == "3 False\n"
    started = workers(running.pid)
    assert len(started) == 2
    for worker in started:  # theirs to ignore: the program may want to save first
        os.kill(worker, signal.SIGTERM)
    time.sleep(0.2)
    assert workers(running.pid) == started
    running.send_signal(number)
    running.communicate(timeout=60)
    until = time.monotonic() + 30
    while not gone(started) and time.monotonic() < until:
        time.sleep(0.05)
    assert gone(started)


def broken_view(image, label, rng):
    raise ZeroDivisionError("a mistake in a view")


def test_mistakes_raise(world):
    options = {"crop_hw": (32, 40), "dtype": "uint8", "hidden": (), "batch_size": 4}
    data = make_training_batches(
        world, world.index(""), view=broken_view, unlabelled_view=broken_view, **options
    )
    with pytest.raises(ZeroDivisionError, match="a mistake in a view"):
        taken(data, 1, processes=1)


def test_packed():
    items = ["a", ("b", 2), None]
    assert list(Packed(items)) == items
    assert len(Packed([])) == 0
