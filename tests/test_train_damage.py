"""Training after damage: checkpoints, logs and a full disk never cost more than time."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil

import orbax.checkpoint as ocp
import pytest
from tensorboardX.event_file_writer import EventsWriter

from clipseg_jax.core.writer import Writer
from clipseg_jax.train import Evaluated
from tests import toy_task
from tests.test_train import SHORT, assert_same, run

EVALUATED = dataclasses.replace(SHORT, evaluate_every_steps=4)
SCORES = {4: 1.0, 8: 3.0, 12: 2.0}


def evaluated(workdir, stop=None, **options):
    """A run whose best evaluation is that of step 8; `stop`: it is killed at that step."""

    def data(start):
        for i, batch in enumerate(toy_task.batches(start), start):
            if i == stop:
                raise RuntimeError("killed")
            yield batch

    def evaluate(model, step):
        return Evaluated({"mIoU": SCORES[step]})

    return run(workdir, EVALUATED, data=data, evaluate=evaluate, **options)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The work directory of a run killed after step 8, and what the unbroken one returns."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.raises(RuntimeError, match="killed"):
        evaluated(folder / "killed", stop=11)
    return folder / "killed", evaluated(folder / "whole")


HARMS = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("part", ["record/metadata", "state/manifest.ocdbt", "state/d/*"])
def test_a_damaged_best_checkpoint_lends_its_metrics_to_no_other(tmp_path, killed, part, harm):
    before, whole = killed
    work = shutil.copytree(before, tmp_path / "work")
    for path in (work / "checkpoints/toy_best/8").glob(part):
        HARMS[harm](path)
    done = evaluated(work)
    assert_same(done.model, whole.model)
    assert_same(done.best, whole.model)  # the best of the evaluations that are left
    assert done.metrics["best"] == {"step": 12, "chosen_by": "mIoU", "mIoU": 2.0}


def test_a_changed_number_in_a_record_is_noticed(tmp_path, killed):
    work = shutil.copytree(killed[0], tmp_path / "work")
    record = work / "checkpoints/toy_best/8/record/metadata"
    record.write_text(record.read_text().replace("3.0", "9.0"))
    assert evaluated(work).metrics["best"]["step"] == 12


def test_a_best_checkpoint_that_is_damaged_after_the_last_evaluation(tmp_path, killed, caplog):
    work = shutil.copytree(killed[0].parent / "whole", tmp_path / "work")
    HARMS["emptied"](work / "checkpoints/toy_best/8/record/metadata")
    done = evaluated(work)
    assert done.metrics["best"] == {}
    assert_same(done.best, done.model)
    assert "8 is damaged" in caplog.text


def test_checkpoints_damaged_again_and_all_at_once(tmp_path, killed):
    before, whole = killed
    work = shutil.copytree(before, tmp_path / "work")
    folder = work / "checkpoints/toy"
    for _ in range(2):
        for path in [path for path in folder.iterdir() if path.name.isdigit()]:
            HARMS["emptied"](path / "state/manifest.ocdbt")
        with pytest.raises(RuntimeError, match="killed"):
            evaluated(work, stop=11)
        assert (folder / "8").is_dir()  # made again beside the damaged one
    assert {path.name for path in folder.glob("8.*")} == {"8.damaged", "8.damaged.2"}
    done = evaluated(work)
    assert_same(done.model, whole.model)
    assert_same(done.best, whole.best)


def test_a_full_disk_costs_nothing_but_time(tmp_path, killed, monkeypatch):
    before, whole = killed
    work = shutil.copytree(before, tmp_path / "work")
    with monkeypatch.context() as full:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        full.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OSError, match=r"cannot write .*toy.*/12 of .* MB: no space.*resume"):
            evaluated(work)

    def no_space(*_, **__):  # a quota is used up, in a thread of Orbax
        raise ValueError("RESOURCE_EXHAUSTED: Error writing\n local file")

    with monkeypatch.context() as full:
        full.setattr(ocp.CheckpointManager, "wait_until_finished", no_space)
        with pytest.raises(OSError, match=r"cannot write the checkpoint .*: no space") as error:
            evaluated(work)
    assert "\n" not in str(error.value)

    def os_error(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(EventsWriter, "flush", os_error)
        with pytest.raises(OSError, match=r"cannot write .*tensorboard.toy: No space left"):
            evaluated(work)
    done = evaluated(work)
    assert_same(done.model, whole.model)
    assert_same(done.best, whole.best)
    assert done.metrics == whole.metrics


@pytest.mark.parametrize(
    "line",
    [b"", b'{"step": 2, "lo', b"[]\n", b'{"step": "x"}\n', b"\xff\0\n", b"[" * 10**5 + b"\n"],
)
def test_a_damaged_log_is_mended(tmp_path, killed, line):
    work = shutil.copytree(killed[0], tmp_path / "work")
    log = work / "toy.jsonl"
    first, _, rest = log.read_bytes().partition(b"\n")
    log.write_bytes(first + b"\n" + line + b"\n" + rest)
    writer = Writer(work, "toy", start=6)
    writer.write(9, {"loss": float("nan"), "rate": 0.5})
    writer.close()
    lines = [json.loads(x, parse_constant=pytest.fail) for x in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9]
    assert lines[-1] == {"step": 9, "loss": None, "rate": 0.5}
