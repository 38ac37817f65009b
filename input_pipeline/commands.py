"""What all command lines share: the parser, and errors that end in one line."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable
from pathlib import Path
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


def exit_code(
    run: Callable[[], int], *, interrupted: str = "stopped; run the same command again to resume"
) -> int:
    """Runs a command and returns its status; errors print one line instead of a traceback.

    Returns:
      What `run` returns; 2 after an error of input or files or a missing package; 74 (EX_IOERR)
      where a disk, the network or memory failed, which another run may find mended; 130 after
      Ctrl-C, which prints `interrupted`.
    """
    try:
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
