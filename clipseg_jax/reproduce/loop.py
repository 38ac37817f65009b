"""The loop over the rows: what state each is in, their runs, and the table after each of them."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipseg_jax.reproduce import listing, table
from clipseg_jax.reproduce.plan import Folders, Missing, Plan, plans
from clipseg_jax.reproduce.results import (
    DONE,
    FAILED,
    INTERRUPTED,
    MISSING,
    READY,
    Entry,
    Number,
    done,
    is_done,
    is_finished,
    not_run,
)
from clipseg_jax.reproduce.runs import Signals, run, wait_for_other
from clipseg_jax.reproduce.verdicts import printed
from clipseg_jax.stages.work_directory import LOG
from input_pipeline import commands
from input_pipeline.text_lists import escaped
from input_pipeline.writing import remove_temporary

STOPPED = "stopped; run the same command again to resume"


@dataclass
class Board:
    """The plan of every row; the entries of the chosen ones and of others that ran."""

    folders: Folders
    chosen: Collection[str]
    plans: dict[str, Plan]
    entries: dict[str, Entry]

    def in_state(self, *states: str) -> list[str]:
        """The chosen rows in one of these states."""
        return [name for name in self.chosen if self.entries[name].state in states]

    def earlier(self, name: str) -> list[str]:
        """The rows that must be finished before a row, and are not."""
        return [row for row in self.plans[name].earlier if not is_finished(self.plans[row])]

    def settle(self, name: str, state: str, reason: str) -> Entry:
        """Notes that a row is done, if it is, or else why it is not; writes the table."""
        each = self.plans[name]
        try:
            entry = done(each) if is_done(each) else not_run(each.row, state, reason)
        except ValueError as error:
            entry = not_run(each.row, FAILED, str(error))
        self.entries[name] = entry
        self.write()
        return entry

    def write(self) -> None:
        """Writes the table, in the order of the rows."""
        table.write(
            self.folders.out, [self.entries[name] for name in self.plans if name in self.entries]
        )


def look(folders: Folders, chosen: Collection[str], given: Sequence[str]) -> Board:
    """The state of the chosen rows, in their order, and of others that ran; nothing runs.

    Raises:
      ValueError: a value in `given` of another type, or a damaged table.
    """
    board = Board(folders, chosen, plans(folders, chosen, given), {})
    before = table.read(folders.out)
    for name in board.plans:
        if entry := _entry(board, name, before.get(name, {})):
            board.entries[name] = entry
    return board


def _entry(board: Board, name: str, before: Mapping[str, Any]) -> Entry | None:
    """A row's entry, by its work directory and an earlier table; None: it has none."""
    each, wanted = board.plans[name], name in board.chosen
    try:
        if is_done(each) if wanted else is_finished(each):
            return done(each)
    except ValueError as error:
        return not_run(each.row, FAILED, str(error))
    if not wanted:
        state = before.get("state")
        return (
            not_run(each.row, state, before["reason"]) if state in (FAILED, INTERRUPTED) else None
        )
    lacks = [missing.name for missing in each.missing]
    for row in board.earlier(name):  # which has its entry before, if it is chosen
        if row not in board.chosen or board.entries[row].state == MISSING:
            lacks.append(f"the row {row}")
    return not_run(each.row, MISSING if lacks else READY, ", ".join(lacks))


def tell(board: Board) -> None:
    """Prints the state of every row, and where what is missing is had."""
    rows = [(name, entry.state, entry.reason) for name, entry in board.entries.items()]
    commands.say(listing.states(rows))
    needed: Counter[Missing] = Counter()
    for name in board.in_state(MISSING):
        needed.update(board.plans[name].missing)
    if needed:
        commands.say(f"\nmissing:\n{listing.shopping_list(needed)}")


def reproduce(board: Board) -> int:
    """Runs all rows that can run, one after the other, and writes the table after each.

    Returns:
      The command's exit code: 0; 2 where a row failed, or nothing could run and nothing is done;
      128 + signal.
    """
    todo = board.in_state(READY, FAILED)
    missing, finished = len(board.in_state(MISSING)), len(board.in_state(DONE))
    commands.say(
        f"{len(todo)} to run, {finished} done before, {missing} lack something"
        + (" (--dry-run says what)" if missing else "")
    )
    remove_temporary(board.folders.out, below=False)
    with Signals() as signals:
        board.write()
        for i, name in enumerate(todo, 1):
            if signals.number is None:
                _run(board, name, signals, f"[{i}/{len(todo)}] {name}")
    commands.say(f"table: {board.folders.out / 'table.md'}, table.html and table.json beside it")
    if signals.number is not None:
        commands.say(STOPPED, error=True)
        return 128 + signals.number
    return 2 if board.in_state(FAILED) or not board.in_state(DONE) else 0


def _run(board: Board, name: str, signals: Signals, title: str) -> None:
    """Runs a row to its end, or to a signal."""
    if lacks := board.earlier(name):
        board.settle(name, MISSING, f"the row {', '.join(lacks)}")
        commands.say(f"{title}: not run without the row {', '.join(lacks)}")
        return
    each, started = board.plans[name], time.monotonic()
    wait_for_other(each.workdir, signals)
    if signals.number is not None:
        return
    commands.say(f"{title}: log {each.workdir / LOG}")

    def show(line: str) -> None:
        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns
            text = f"{_clock(time.monotonic() - started)}  {line}"
            print(f"\r\x1b[K{text[: width - 1]}", end="", file=sys.stderr, flush=True)

    _, ending = run(each.command, each.workdir / LOG, signals, show)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    stopped = signals.number is not None
    entry = board.settle(name, INTERRUPTED if stopped else FAILED, STOPPED if stopped else ending)
    says = "; ".join(map(_says, entry.numbers)) if entry.state == DONE else escaped(entry.reason)
    commands.say(f"{title}: {entry.state} in {_clock(time.monotonic() - started)}: {says}")


def _says(number: Number) -> str:
    name = ", ".join(filter(None, (number.metric, number.what)))
    return f"{name} {number.ours}, paper {printed(number.paper)}, {number.verdict}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
