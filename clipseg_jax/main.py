"""Runs a recipe: python -m clipseg_jax.main --config=configs/voc_maskclip.py --workdir=DIR

A recipe is a list of named stages. Each leaves its result and a small record in the work directory;
run again, finished stages are skipped and an interrupted one resumes.
`--config.stages=evaluate` runs one of them, `--config.stages=data,text` two. Any value of the
config can be set the same way; `--show` lists them. `--config=voc_maskclip` finds an installed
recipe from any folder. Weights may be names, such as `--config.clip.weights=ViT-B/16`: they are
downloaded once, into $CLIPSEG_JAX_CACHE (~/.cache/clipseg_jax).

Exit codes: 0 done, 2 wrong input, 74 a disk or the network failed, 75 another process was lost, 130
and 143 stopped by Ctrl-C and SIGTERM, 1 anything else.
"""

from __future__ import annotations

if __name__ == "__main__":
    from input_pipeline import commands

    commands.begin()  # before the imports below

import contextlib
import importlib
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

# What needs JAX is imported where it is used: --help and wrong options are answered without it.
from clipseg_jax.core import compile_cache
from clipseg_jax.core.bucket_lock import BucketLock
from clipseg_jax.core.config_arguments import complete
from clipseg_jax.core.config_show import shown
from clipseg_jax.core.files import check_place, check_writable, read_json, write_json
from clipseg_jax.core.run_lock import RunLock
from input_pipeline import commands
from input_pipeline.places import bucket_errors, is_remote, place
from input_pipeline.text_lists import printable
from input_pipeline.writing import remove_temporary

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of all results, also gs://BUCKET/DIR. Default: workdir/<config file>_<config string>.",
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
_SHOW = flags.DEFINE_bool("show", False, "Prints the recipe's values with comments; runs nothing.")
_HELP = ("helpshort", "helpfull", "helpxml")  # absl's own

# The folder of recipes, beside this package, in a checkout as in an installation.
RECIPES = Path(__file__).resolve().parent.parent / "configs"

# The module of each method's recipe. Imported when it runs: all but --help needs the extra "data".
METHODS = {
    name: f"clipseg_jax.methods.{name}.recipe"
    for name in (
        *("maskclip", "maskclip_plus", "readouts", "reclip", "clip_es", "weclip", "clip_rc"),
    )
}

Stage = Callable[[ConfigDict, Path], dict]


def stages_of(method: str) -> Mapping[str, Stage]:
    """A method's stages: name -> function(config, workdir).

    Raises:
      ValueError: unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {sorted(METHODS)}")
    return importlib.import_module(METHODS[method]).STAGES


def run(
    config: ConfigDict, workdir: Path, given: Collection[str] = (), *, recipe: str = ""
) -> dict[str, dict]:
    """Runs the config's stages; returns each stage's record, also of those skipped.

    Afterwards report.html in the work directory shows what is there.

    Args:
      given: names of the config values that were set on the command line.
      recipe: whose config it is, such as "voc_reclippp:2025", for the report.

    Raises:
      ValueError: unknown method, unknown stages or stages out of order, or a work directory that
        holds another recipe's results.
    """
    import jax

    stages = stages_of(config.method)
    if unknown := [name for name in config.stages if name not in stages]:
        raise ValueError(
            f"unknown stages {', '.join(unknown)}; {config.method} has {', '.join(stages)}"
        )
    if not config.stages:
        raise ValueError(f"no stages; set --config.stages to some of {','.join(stages)}")
    in_order = [name for name in stages if name in config.stages]
    if [*config.stages] != in_order:
        raise ValueError(
            f"stages {','.join(config.stages)} are not in the order in which they run, each once; "
            f"set --config.stages={','.join(in_order)}"
        )
    lock = BucketLock(workdir) if is_remote(workdir) else RunLock(workdir)
    with lock if jax.process_index() == 0 else contextlib.nullcontext():
        return _run_stages(config, workdir, stages, given, recipe)


def _run_stages(
    config: ConfigDict,
    workdir: Path,
    stages: Mapping[str, Stage],
    given: Collection[str],
    recipe: str,
) -> dict[str, dict]:
    import jax

    from clipseg_jax.core import processes

    # Like the recipes, these need the extra "data".
    from clipseg_jax.stages import completion, preflight, run_record, work_directory

    main_process = jax.process_index() == 0
    if main_process:
        commands.say(processes.describe())
        check_writable(workdir)
        remove_temporary(workdir)
    to_come = [name for name in config.stages if not _done(workdir, name).exists()]
    preflight.fetch(config, to_come)  # on every host, before processes wait for each other
    config = completion.completed(config, workdir)
    if main_process:
        work_directory.check(config, workdir, given)
        preflight.check(config, to_come)
        run_record.append_run(workdir, recipe)
    processes.barrier("start")
    records = {}
    for name in config.stages:
        done = _done(workdir, name)
        if processes.broadcast_from_main(done.exists()):
            records[name] = read_json(done, f"delete it and run again: stage {name} is repeated")
            parts = (f"{k} {v}" for k, v in records[name].items() if k != "prompts")
            shown = printable(", ".join(parts))
            if main_process:
                commands.say(f"stage {name}: done before ({shown}); delete {done} to repeat it")
            continue
        if main_process:
            commands.say(f"stage {name}")
        started = time.time()
        record = stages[name](config, workdir)
        records[name] = record | {"seconds": round(time.time() - started, 1)}
        if main_process:
            write_json(done, records[name])
            work_directory.record_content(config, workdir)
        processes.barrier(name)
    if main_process:
        _report(workdir)
    return records


def _report(workdir: Path) -> None:
    """Leaves report.html; a run whose results are there does not fail for want of it."""
    from clipseg_jax.reports.report import write_report

    try:
        commands.say(f"report: {write_report(workdir)}")
    except Exception as error:
        logging.warning(
            "no report: %s; try again: python -m clipseg_jax.reports %s",
            printable(f"{type(error).__name__}: {error}"),
            workdir,
        )


def _done(workdir: Path, stage: str) -> Path:
    return workdir / f"{stage}.done.json"


def _recipe() -> str:
    """ "voc_maskclip" of --config=configs/voc_maskclip.py; a config string follows after ":"."""
    path, colon, string = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return f"{Path(path).stem}{colon}{string}"


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command and exits with its status; see above. `argv`: the program first."""
    flags.mark_flag_as_required("config")
    logging.set_verbosity(logging.WARNING)
    app.run(_run_flags, argv=None if argv is None else [*argv], flags_parser=parse)


def _run_flags(argv: list[str]) -> int:
    """Entry point of absl; user errors end in one line."""
    if len(argv) > 1:
        print(f"error: unexpected arguments {' '.join(argv[1:])}; see --help", file=sys.stderr)
        return 2
    if _SHOW.value:
        commands.say("\n".join(shown(_CONFIG.value, _sources())))
        return 0
    from clipseg_jax.core import processes
    from clipseg_jax.core.command import exit_code
    from clipseg_jax.core.interrupt import signals

    own_folder = "_".join(filter(None, _recipe().replace("/", "_").split(":", 1)))
    workdir = f"workdir/{own_folder}" if _WORKDIR.value is None else _WORKDIR.value

    def work() -> None:
        check_place(workdir, "--workdir")
        addresses = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        if _DISTRIBUTED.value or any(value is not None for value in addresses):
            processes.initialize(*addresses)
        else:  # several processes can wait for one that writes into the cache
            compile_cache.enable()
        given = config_flags.get_override_values(flags.FLAGS["config"])
        with bucket_errors(workdir):
            run(_CONFIG.value, place(workdir), given, recipe=_recipe())

    with signals():
        return processes.end_together(lambda: exit_code(lambda: processes.exit_if_peer_lost(work)))


def _sources() -> list[Path]:
    """The files whose functions made the config: all of configs/base that were imported."""
    modules = [module for name, module in sys.modules.items() if name.startswith("configs.base.")]
    named = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    return [*(Path(str(module.__file__)) for module in modules), Path(named)]


def parse(argv: list[str]) -> list[str]:
    """Reads the flags; wrong ones end the command in one line."""
    options = {argument.lstrip("-") for argument in argv if argument.startswith("-")}
    if options & {"help", "h", "version"}:
        commands.say(commands.version() if "version" in options else _help())
        raise SystemExit(0)
    if options & {*_HELP}:
        with contextlib.suppress(SystemExit):  # absl exits with 1 after help
            app.parse_flags_with_usage(argv)
        raise SystemExit(0)
    try:
        # Config flags look for their overrides in the command line.
        sys.argv = complete(argv, RECIPES)
        return flags.FLAGS(sys.argv)
    except flags.Error as error:
        print(f"error: {' '.join(str(error).split())}; see --help", file=sys.stderr)
    except (ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


def _help() -> str:
    module = "clipseg_jax.main"
    text = (__doc__ or "").replace(f"python -m {module}", commands.program(module))
    lines = [f"{text}\n{compile_cache.help_lines()}\n\noptions:"]
    for holder in (_CONFIG, _WORKDIR, _SHOW, _DISTRIBUTED, _COORDINATOR, _PROCESSES, _PROCESS):
        lines.append(f"  --{holder.name:<13}{flags.FLAGS[holder.name].help}")
    lines += ["  --version      the version, and exit", "  --helpfull     also the options of absl"]
    indent = " " * 17
    return "\n".join(
        textwrap.fill(line, 79, subsequent_indent=indent) if line.startswith("  --") else line
        for line in lines
    )


if __name__ == "__main__":
    main()
