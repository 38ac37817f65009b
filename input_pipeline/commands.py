"""What all command lines share: the parser, and errors that end in one line."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def parser(module: str, description: str, examples: str) -> argparse.ArgumentParser:
    """The parser of `python -m module`; wrong usage prints one line and exits with status 2."""
    return _Parser(
        prog=f"python -m {module}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def given(text: str) -> str:
    """An argument that must not be empty, as an unset variable of a shell is."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; is a variable of the shell not set?")
    return text


def local_path(text: str) -> Path:
    """An argument that is a path on this machine."""
    if "://" in given(text):
        raise argparse.ArgumentTypeError(
            f"{text} is an address, which this command cannot use; copy the files to a local "
            f"folder or mount the bucket (gcsfuse)"
        )
    return Path(text)


def stop_at_once() -> None:
    """Makes Ctrl-C end this process in one line: for a command's imports, which take seconds.

    Python would print a traceback of whatever is imported, and JAX's callbacks swallow exceptions.
    A signal that is ignored (`nohup`) stays ignored.
    """
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
        print(f"error: this user has no permission{where}; change its mode", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        top = (error.name or "").partition(".")[0]
        remedy = "; pip install 'clipseg_jax[data]'" if top in _DATA else ""
        print(f"error: {error}{remedy}", file=sys.stderr)
        return 2
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 74 if isinstance(error, OSError) and _passing(error) else 2
    except MemoryError:
        print("error: out of memory; use a machine with more, or smaller images", file=sys.stderr)
        return 74
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130


def _passing(error: OSError) -> bool:
    """Whether the error, or the one that it describes, may be gone by the next run."""
    causes = (error, error.__cause__)
    return any(isinstance(each, OSError) and each.errno in _PASSING for each in causes)
