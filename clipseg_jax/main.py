"""Runs a recipe: python -m clipseg_jax.main --config=configs/voc_maskclip.py --workdir=DIR

A recipe is a list of named stages. Each leaves its result and a small record in the work directory;
run again, finished stages are skipped and an interrupted one resumes.
`--config.stages="('evaluate',)"` runs some of them. Any value of the config can be set the same
way; configs/base/loops.py says how they are named.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from clipseg_jax.core import processes
from clipseg_jax.core.command import exit_code
from clipseg_jax.core.config_names import check_arguments
from clipseg_jax.core.files import check_writable, read_json, write_json
from clipseg_jax.core.run_lock import RunLock
from clipseg_jax.methods.clip_es import recipe as clip_es
from clipseg_jax.methods.clip_rc import recipe as clip_rc
from clipseg_jax.methods.maskclip import recipe as maskclip
from clipseg_jax.methods.maskclip_plus import recipe as maskclip_plus
from clipseg_jax.methods.reclip import recipe as reclip
from clipseg_jax.methods.weclip import recipe as weclip
from clipseg_jax.stages import work_directory
from input_pipeline.writing import remove_temporary

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of all results. Default: workdir/<name of the config file>."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes; Slurm, a TPU pod or Open MPI gives its rank."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, with several processes."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator.")
_PROCESS = flags.DEFINE_integer(
    "process", None, "Rank of this process, from 0, with --coordinator."
)

# A method's stages: name -> function(config, workdir), in the order of `config.stages`.
Stage = Callable[[ConfigDict, Path], dict]
METHODS: dict[str, Mapping[str, Stage]] = {
    "maskclip": maskclip.STAGES,
    "maskclip_plus": maskclip_plus.STAGES,
    "reclip": reclip.STAGES,
    "clip_es": clip_es.STAGES,
    "weclip": weclip.STAGES,
    "clip_rc": clip_rc.STAGES,
}


def run(config: ConfigDict, workdir: Path, given: Collection[str] = ()) -> dict[str, dict]:
    """Runs the config's stages; returns each stage's record, also of those skipped.

    `given`: names of the config values that were set on the command line.

    Raises:
      ValueError: unknown method or stage, or a work directory that holds another recipe's results.
    """
    if config.method not in METHODS:
        raise ValueError(f"unknown method {config.method!r}; choose one of {sorted(METHODS)}")
    stages = METHODS[config.method]
    if unknown := [name for name in config.stages if name not in stages]:
        raise ValueError(f"unknown stages {unknown}; {config.method} has {list(stages)}")
    with RunLock(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        return _run_stages(config, workdir, stages, given)


def _run_stages(
    config: ConfigDict, workdir: Path, stages: Mapping[str, Stage], given: Collection[str]
) -> dict[str, dict]:
    main_process = jax.process_index() == 0
    if main_process:
        check_writable(workdir)
        remove_temporary(workdir)
        work_directory.check(config, workdir, given)
    processes.barrier("start")
    records = {}
    for name in config.stages:
        done = workdir / f"{name}.done.json"
        if processes.broadcast_from_main(done.exists()):
            records[name] = read_json(done, f"delete it and run again: stage {name} is repeated")
            shown = ", ".join(f"{k} {v}" for k, v in records[name].items() if k != "prompts")
            if main_process:
                print(f"stage {name}: done before ({shown}); delete {done} to repeat it")
            continue
        if main_process:
            print(f"stage {name}", flush=True)
        started = time.time()
        record = stages[name](config, workdir)
        records[name] = record | {"seconds": round(time.time() - started, 1)}
        if main_process:
            write_json(done, records[name])
            work_directory.record_content(config, workdir)
        processes.barrier(name)
    return records


def _config_name() -> str:
    """ "voc_maskclip" of --config=configs/voc_maskclip.py; a config string becomes part of it."""
    path, _, string = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return "_".join(filter(None, [Path(path).stem, string.replace("/", "_")]))


def main(argv: list[str]) -> int:
    """Entry point of absl; user errors end in one line."""
    if len(argv) > 1:
        print(f"error: unexpected arguments {argv[1:]}", file=sys.stderr)
        return 2
    workdir = _WORKDIR.value or f"workdir/{_config_name()}"

    def work() -> None:
        addresses = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        if _DISTRIBUTED.value or any(value is not None for value in addresses):
            processes.initialize(*addresses)
        given = config_flags.get_override_values(flags.FLAGS["config"])
        processes.exit_if_peer_lost(lambda: run(_CONFIG.value, Path(workdir), given))

    return exit_code(work)


def parse(argv: list[str]) -> list[str]:
    """Reads the flags; an old or unknown name of a config value ends the command in one line."""
    try:
        check_arguments(argv)
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    logging.set_verbosity(logging.WARNING)
    app.run(main, flags_parser=parse)
