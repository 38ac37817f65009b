"""A work directory in a bucket: trained, interrupted, resumed, evaluated, reported, locked."""

from __future__ import annotations

import dataclasses
import json
import threading
import time

import numpy as np
import pytest

from clipseg_jax import main
from clipseg_jax.core import bucket_lock, json_lines
from clipseg_jax.core.bucket_lock import BucketLock
from clipseg_jax.core.files import check_place, load_arrays, read_json, write_json
from clipseg_jax.core.interrupt import Interrupted
from clipseg_jax.core.json_lines import RemoteLines, append_partial, read_lines, read_partial
from clipseg_jax.demo import world
from clipseg_jax.reports.__main__ import main as report
from configs import demo_clip_es, demo_reclippp, demo_weclip
from input_pipeline.commands import passing
from input_pipeline.places import bucket_errors, is_remote, place
from input_pipeline.walk import open_regular
from input_pipeline.writing import CannotWrite, remove_temporary, write_atomic
from tests import bucket, toy_task
from tests.test_train import OPTIM, SHORT, assert_same, make_mesh, train


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bucket_lock, "_SILENT_S", 0.5)
    monkeypatch.setattr(bucket_lock, "_LOOKED_S", 0.1)
    monkeypatch.setattr(bucket_lock, "_RENEWED_S", 0.2)
    yield bucket.serve(tmp_path / "store", monkeypatch)
    assert not (tmp_path / "gs:").exists()


def test_paths():
    assert is_remote("gs://b/a")
    assert not is_remote("gs:/b/a")
    path = place("gs://b/a") / "c.npz"
    assert (str(path), path.name, str(path.with_suffix(""))) == (
        "gs://b/a/c.npz", "c.npz", "gs://b/a/c",
    )  # fmt: skip
    assert place(path) == path
    with pytest.raises(ValueError, match="hdfs://x is an address, not a folder"):
        check_place("hdfs://x", "--workdir")


def test_objects_are_written_whole(served):
    path = write_json(place("gs://b/deep/a.json"), {"x": 1})
    assert read_json(path, "") == {"x": 1}
    assert served.writes == {"gs://b/deep/a.json": 1}
    write_atomic(path.with_suffix(".npz"), lambda file: np.savez(file, x=np.arange(3)))
    assert load_arrays(path.with_suffix(".npz"), "", "x")["x"].tolist() == [0, 1, 2]
    assert remove_temporary(place("gs://b")) == 0
    with pytest.raises(FileNotFoundError, match="gs://b/none"):
        open_regular(place("gs://b/none"))

    def fails(path, mode):
        raise RuntimeError("403 Forbidden\nno rights")

    served.open = fails
    with pytest.raises(CannotWrite, match="RuntimeError: 403 Forbidden no rights; check the buck"):
        write_json(path, {})
    with pytest.raises(OSError, match=r"cannot read gs://b/deep/a\.json: RuntimeError: 403"):
        open_regular(path)


def library_error(name):
    return type(name, (Exception,), {"__module__": "google.api_core.exceptions"})("503\nbusy")


def test_what_a_restart_may_mend():
    busy = "the bucket failed: ServiceUnavailable: 503 busy"
    with pytest.raises(OSError, match=busy) as failed, bucket_errors("gs://b"):
        raise library_error("ServiceUnavailable")
    assert passing(failed.value)
    with pytest.raises(OSError, match="Forbidden") as failed, bucket_errors("gs://b"):
        raise library_error("Forbidden")
    assert not passing(failed.value)
    with pytest.raises(KeyError), bucket_errors("gs://b"):
        raise KeyError
    local = library_error("ServiceUnavailable")
    with pytest.raises(type(local)), bucket_errors("run"):
        raise local


def test_a_report_of_a_bucket_that_does_not_answer(served, monkeypatch, capsys):
    def fails(path):
        raise library_error("ServiceUnavailable")

    monkeypatch.setattr(served, "exists", fails)
    assert report(["gs://b/run"]) == 74
    error = "error: the bucket failed: ServiceUnavailable: 503 busy\n"
    assert capsys.readouterr().err == error


def test_lines_are_appended_by_writing_the_object_again(served, monkeypatch):
    folder = place("gs://b/parts")
    with append_partial(folder) as file:
        for index in range(50):
            file.write(f'{{"index": {index}}}\n')
        assert len(read_partial(folder, index=int)) == 1  # the others within ten seconds
    assert [line["index"] for line in read_partial(folder, index=int)] == [*range(50)]
    assert served.writes.total() == 3  # the empty one, the first line, all
    monkeypatch.setattr(json_lines, "_REWRITTEN_S", 0.0)
    with append_partial(folder) as file:
        assert isinstance(file, RemoteLines)
        file.write('{"index": 50}\n')
        assert len(read_partial(folder, index=int)) == 51


def test_one_run_at_a_time(served):
    folder = place("gs://b/run")
    with BucketLock(folder) as lock:
        assert json.loads(open_regular(lock.path).read())["host"]
        with pytest.raises(ValueError, match=r"gs://b/run is in use by a run on .*, process"):
            BucketLock(folder).__enter__()
    assert not lock.path.exists()
    # A killed run's lock does not change any more.
    write_json(lock.path, {"host": "gone", "pid": 1, "run": "x", "renewed": 3})
    began = time.monotonic()
    with BucketLock(folder):
        assert time.monotonic() - began > 0.5
    # One that is about to end is waited for.
    first = BucketLock(folder)
    first.__enter__()
    threading.Timer(0.15, first.__exit__, (None, None, None)).start()
    with BucketLock(folder):
        pass


def toy(workdir, cfg=SHORT, data=toy_task.batches):
    task, mesh = toy_task.build(), make_mesh(2)
    return train(task, data, OPTIM, cfg, mesh=mesh, workdir=workdir, name="toy")


def test_training_resumes_bit_for_bit(served, tmp_path):
    def killed(start):
        for i, batch in enumerate(toy_task.batches(start), start):
            if i == 8:
                raise RuntimeError("killed")
            yield batch

    cfg = dataclasses.replace(SHORT, log_every_steps=1, profile_steps=(6, 7))
    with pytest.raises(RuntimeError, match="killed"):
        toy(place("gs://b/toy"), cfg, killed)
    resumed = toy(place("gs://b/toy"), cfg).model
    assert_same(resumed, toy(tmp_path / "local").model)
    assert [line["step"] for line in read_lines(place("gs://b/toy/toy.jsonl"))] == [*range(1, 13)]
    store = tmp_path / "store/b/toy"
    assert len([*(store / "tensorboard/toy").glob("events.*")]) == 2
    assert [*(store / "profile/toy").rglob("*.xplane.pb")]
    assert sorted(int(p.name) for p in (store / "checkpoints/toy").iterdir()) == [10, 12]
    # A checkpoint without the mark that it is whole counts as none.
    marks = [*(store / "checkpoints/toy/12").glob("commit_success*")]
    assert marks
    marks[0].unlink()
    assert_same(toy(place("gs://b/toy"), cfg).model, resumed)


def test_checkpoints_are_in_folders_and_gs_alone():
    with pytest.raises(ValueError, match=r"s3://b/toy/.*: checkpoints can be .* alone; mount"):
        toy(place("s3://b/toy"))


def of_images(config, root):
    world.write_dataset(root, 6, 64)
    world.write_dataset(root / "train", 8, 64, "train")
    config.dataset.name, config.dataset.root = "folder", str(root)
    config.run.log_every_steps, config.run.checkpoint_every_steps = 1, 2
    config.run.devices = 1
    return config


@pytest.mark.slow
def test_a_recipe_is_interrupted_resumed_evaluated_and_reported(served, tmp_path, capsys):
    config = of_images(demo_weclip.get_config(), tmp_path / "world")
    config.head.total_steps, config.head.batch_size, config.head.crop_px = 6, 4, (64, 64)
    config.head.evaluate_every_steps = 0
    config.run.pictures, config.run.predictions = 2, True
    config.stages = ("data", "text", "train", "evaluate")
    work = place("gs://bucket/runs/weclip")
    with pytest.MonkeyPatch.context() as patch:
        write = json_lines.RemoteLines.write

        def stop(self, text):
            if '"step": 4' in text:
                raise Interrupted
            return write(self, text)

        patch.setattr(json_lines.RemoteLines, "write", stop)
        with pytest.raises(Interrupted):
            main.run(config, work)
    assert not (work / "train.done.json").exists()
    remote = main.run(config, work)
    local = main.run(config, tmp_path / "local")
    for stage, record in local.items():
        for name, value in record.items():
            if name != "seconds":
                assert remote[stage][name] == value, (stage, name)
    store = tmp_path / "store/bucket/runs/weclip"
    for name in ("metrics.json", "image_scores.jsonl", "confusion.npy"):
        assert (store / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name
    for folder in ("predictions", "pictures", "examples"):
        names = sorted(path.name for path in (tmp_path / "local" / folder).iterdir())
        assert names
        for name in names:
            ours = (store / folder / name).read_bytes()
            assert ours == (tmp_path / "local" / folder / name).read_bytes(), name
    ours, theirs = ({p.name for p in f.iterdir()} for f in (store, tmp_path / "local"))
    assert ours == theirs
    (store / "report.html").unlink()
    capsys.readouterr()
    assert report([str(work)]) == 0
    assert capsys.readouterr().out == f"report: {work}/report.html\n"
    assert "Training: train" in (store / "report.html").read_text()
    # Again: all is skipped, and what is behind the folder's values is still checked.
    assert main.run(config, work) == remote
    config.head.total_steps = 8
    with pytest.raises(ValueError, match=r"gs://bucket/runs/weclip holds results of another conf"):
        main.run(config, work)


def clip_es(config):
    config.student.total_steps, config.student.batch_size = 2, 4


def reclip(config):
    for section in (config.rectifier, config.student):
        section.batch_size, section.total_epochs, section.evaluate_every_epochs = 4, 1, 0
        section.checkpoint = "last"


@pytest.mark.long
@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(("recipe", "shorten"), [(demo_clip_es, clip_es), (demo_reclippp, reclip)])
def test_tags_cams_and_masks_in_a_bucket(recipe, shorten, tmp_path):
    config = of_images(recipe.get_config(), tmp_path / "world")
    shorten(config)
    remote = main.run(config, place("gs://b/run"))
    local = main.run(config, tmp_path / "local")

    def told(records):
        said = {name: dict(record) for name, record in records.items()}
        return {
            (stage, key): value
            for stage, record in said.items()
            for key, value in record.items()
            if key not in ("seconds", "file")
        }

    def files(root):
        apart = ("checkpoints", "tensorboard")  # whose names hold times
        paths = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        return sorted(str(path) for path in paths if path.parts[0] not in apart)

    assert told(remote) == told(local)
    assert files(tmp_path / "store/b/run") == files(tmp_path / "local")
