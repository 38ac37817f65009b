"""What all command lines share: the parser, and errors that end in one line."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib.metadata
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from input_pipeline.places import is_remote, place
from input_pipeline.writing import CannotWrite

# What a later run may find mended: the disk, the network or the machine's memory, not the command.
_PASSING = {
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EREMOTEIO, errno.ENOLINK),
    *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE),
    *(errno.EAGAIN, errno.ENOMEM, errno.ENFILE, errno.EMFILE),
}
# Packages of the extra "data".
_DATA = {"array_record", "cv2", "pycocotools", "tensorflow", "tensorflow_datasets"}

_STOPPED = "stopped; run the same command again to resume"


class Parser(argparse.ArgumentParser):
    """The parser of a command line; see `parser`.

    `--help` fits a screen: it has what most users need. `--help-all` has the options of `more` and
    the details as well.
    """

    def __init__(self, *, details: str = "", **given: Any):
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **given
        )
        self.details = details
        if details:
            text = "show the help with all options and exit"
            self.add_argument("--help-all", action=_HelpAll, nargs=0, help=text)
        self.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
        self.more = self.add_argument_group("more options")

    def format_help(self, *, everything: bool = False) -> str:
        """The text of `--help`, or of `--help-all`."""
        hidden = [] if everything else self.more._group_actions
        helps, epilog = [action.help for action in hidden], self.epilog
        for action in hidden:
            action.help = argparse.SUPPRESS
        if everything:
            self.epilog = self.details or epilog
        try:
            return super().format_help()
        finally:
            self.epilog = epilog
            for action, text in zip(hidden, helps, strict=True):
                action.help = text

    def answer(self, text: str) -> NoReturn:
        """Prints `text` and ends the command."""
        self._print_message(text, sys.stdout)
        self.exit()

    def error(self, message: str) -> NoReturn:
        """Ends the command in one line, with status 2."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        assert isinstance(parser, Parser)
        parser.answer(parser.format_help(everything=True))


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        assert isinstance(parser, Parser)
        parser.answer(f"{version()}\n")


def version() -> str:
    """ "clipseg_jax 0.1.0"."""
    return f"clipseg_jax {importlib.metadata.version('clipseg_jax')}"


def program(module: str) -> str:
    """What a command is called: as it was started, `clipseg-predict` or `python -m ...`."""
    name = Path(sys.argv[0]).stem
    return name if name.startswith("clipseg-") else f"python -m {module}"


def parser(module: str, description: str, examples: str, details: str = "") -> Parser:
    """The parser of a command; wrong usage prints one line and exits with status 2.

    Args:
      module: that `python -m` runs, and a word that chooses one of its parsers.
      description: of the command.
      examples: what is told after the options.
      details: what `--help-all` tells instead.
    """
    module, _, word = module.partition(" ")
    name = program(module)
    epilog, details = (text.replace(f"python -m {module}", name) for text in (examples, details))
    return Parser(
        prog=f"{name} {word}".rstrip(), description=description, epilog=epilog, details=details
    )


def say(text: str, *, error: bool = False) -> None:
    """Prints a line to standard output or, `error`, to standard error, at once.

    The work goes on where nobody reads it any more, such as `head`, and where standard error is
    closed or full.

    Raises:
      CannotWrite: standard output is full.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError as failed:
        with contextlib.suppress(OSError):  # what is buffered must not fail again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if not (error or isinstance(failed, BrokenPipeError)):
            raise CannotWrite(f"cannot write to standard output: {failed.strerror}") from failed


def given(text: str) -> str:
    """An argument that must not be empty, as an unset variable of a shell is."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; is a variable of the shell not set?")
    return text


def any_path(text: str) -> Path:
    """An argument that is a path on this machine or in a bucket."""
    return place(text) if is_remote(given(text)) else local_path(text)


def local_path(text: str) -> Path:
    """An argument that is a path on this machine."""
    if "://" in given(text):
        raise argparse.ArgumentTypeError(
            f"{text} is an address, which this command cannot use; copy the files to a local "
            f"folder or mount the bucket (gcsfuse)"
        )
    return Path(text)


def begin() -> None:
    """Readies the process of a command, before its imports, which take seconds.

    Ctrl-C ends it in one line: Python would print a traceback of whatever is imported, and JAX's
    callbacks swallow exceptions. A signal that is ignored (`nohup`) stays ignored. Streams that are
    closed become null: a data file would get their number, and other libraries' messages.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(opened)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    with contextlib.suppress(Exception):  # the signal may have come in the middle of a print
        sys.stdout.flush()
    os.write(2, f"{_STOPPED}\n".encode())
    os._exit(128 + number)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C is an exception in the block, so that what is half written is removed."""
    early = signal.getsignal(signal.SIGINT) is _stop
    if early:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if early:
            signal.signal(signal.SIGINT, _stop)


def exit_code(run: Callable[[], int], *, interrupted: str = _STOPPED) -> int:
    """Runs a command and returns its status; errors print one line instead of a traceback.

    Returns:
      What `run` returns; 2 after an error of input or files or a missing package; 74 (EX_IOERR)
      where a disk, the network or memory failed, which another run may find mended; 130 after
      Ctrl-C, which prints `interrupted`.
    """
    try:
        with _interruptible():
            return run()
    except PermissionError as error:
        where = f" for {error.filename}" if error.filename else f": {error}"
        say(f"error: this user has no permission{where}; change its mode", error=True)
        return 2
    except ModuleNotFoundError as error:
        top = (error.name or "").partition(".")[0]
        remedy = "; pip install 'clipseg_jax[data]'" if top in _DATA else ""
        say(f"error: {error}{remedy}", error=True)
        return 2
    except (ValueError, OSError, ImportError) as error:
        say(f"error: {error}", error=True)
        return 74 if isinstance(error, OSError) and passing(error) else 2
    except MemoryError:
        say("error: out of memory; use smaller images or batches, or another machine", error=True)
        return 74
    except KeyboardInterrupt:
        say(interrupted, error=True)
        return 130


def passing(error: OSError) -> bool:
    """Whether the error, or the one that it describes, may be gone by the next run."""
    causes = (error, error.__cause__)
    return any(isinstance(each, OSError) and each.errno in _PASSING for each in causes)
