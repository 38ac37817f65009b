"""The restricted unpickler: a file builds only what a table allows, within a budget; runs nothing.

A table maps (module, name) to what a pickle gets in its place. Entries are stand-ins that a pickle
can neither change nor use for anything else; every other name stops the reading. So does a
structure that takes more memory than the largest real ones. What is read may still refer to one
part a billion times, or to itself: `resolve` makes plain containers of it, and refuses that.
"""

from __future__ import annotations

import codecs
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

Table = Mapping[tuple[str, str], Any]

LEAST_ALLOWED = 750 * 10**6  # bytes that every pickle's objects may take: some 200,000 tensors
_LONGEST_KEY = 10_000
_DEEPEST = 100  # containers within containers
_MOST_ENTRIES = 5_000_000  # with shared parts counted as often as they are referred to


class ForbiddenNameError(pickle.UnpicklingError):
    """A pickle names a class or function that its table does not allow."""

    def __init__(self, module: str, name: str):
        module, name = shown(module), shown(name)
        super().__init__(f"the pickle asks for {module}.{name}, which is not allowed")
        self.module, self.name = module, name


def shown(value: Any) -> str:
    """A value of a stranger's file for a message: short, printable, and without looking inside."""
    if isinstance(value, str):
        if len(value) > 80:
            return f"{value[:60]!a}... ({len(value)} letters)"
        return value if value.isprintable() else ascii(value)
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a very large number"
    if value is None or isinstance(value, (bool, int, float)):
        return str(value)
    return f"a {type(value).__name__}"


def is_name(text: Any) -> bool:
    """Whether a stranger's text may name an array: printable, and of at most 1000 letters."""
    return type(text) is str and len(text) <= 1000 and text.isprintable()


def sizes(value: Any) -> tuple[int, ...]:
    """A shape or strides of a stranger's file.

    Raises:
      UnpicklingError: anything but at most 32 numbers from 0 to 2**62.
    """
    if not isinstance(value, (list, tuple)) or len(value) > 32:
        raise pickle.UnpicklingError(f"{shown(value)} as a shape")
    for number in value:
        if type(number) is not int or not 0 <= number <= 2**62:
            raise pickle.UnpicklingError(f"a size of {shown(number)}")
    return tuple(value)


class Sealed:
    """An object whose attributes no pickle can set (the BUILD instruction calls `__setstate__`)."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"{type(self).__name__} takes no state")


class Function(Sealed):
    """Something that a pickle may call; itself it cannot be changed."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *args: Any) -> Any:
        """Calls it."""
        return self._call(*args)


class Dictionary(dict):
    """Stand-in for a class of dictionaries: plain keys only, and no attributes."""

    def __init__(self, pairs: Any = ()):
        super().__init__()
        for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
            self[plain_key(key)] = value

    def __setstate__(self, state: Any) -> None:
        """Attributes, such as a state dict's `_metadata`, are left out."""


def plain_key(key: Any) -> Any:
    """The key of a dictionary or the member of a set.

    Raises:
      UnpicklingError: anything but short text or bytes, a number or None. To hash a tuple may take
        for ever, or more of the stack than there is.
    """
    if type(key) is str or type(key) is bytes:
        fits = len(key) <= _LONGEST_KEY
    elif type(key) is int:
        fits = -(2**63) <= key < 2**64
    else:
        fits = key is None or type(key) in (bool, float)
    if not fits:
        raise pickle.UnpicklingError(f"{shown(key)} as a key")
    return key


def plain_set(members: Iterable[Any] = ()) -> set:
    """`set`, of plain members."""
    return {plain_key(member) for member in members}


class NumpyDtype(Sealed):
    """Stand-in for `numpy.dtype(code, align, copy)`; of its state only the byte order is used.

    A real dtype would not do: NumPy shares them, and a pickle's state would change them.
    """

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any, objects: bool = False):
        allowed = r"[biufcSU][0-9]{1,4}|[?]" + ("|O8?" if objects else "")
        if type(code) is not str or not re.fullmatch(allowed, code):
            raise pickle.UnpicklingError(f"a numpy dtype {shown(code)}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or type(state[1]) is not str:
            raise pickle.UnpicklingError("the state of a numpy dtype")
        self.order = ">" if state[1] == ">" else "<"

    @property
    def dtype(self) -> np.dtype:
        """The dtype itself, for the reader of the file."""
        return np.dtype(self.order + self.code)


def encode(text: Any, encoding: Any = "utf-8") -> bytes:
    """`_codecs.encode` of text, by which older protocols hold bytes."""
    if type(text) is not str or encoding not in ("latin1", "utf-8"):
        raise pickle.UnpicklingError(f"encoding {shown(text)} as {shown(encoding)}")
    return codecs.encode(text, encoding)


ENCODE: Table = {("_codecs", "encode"): Function(encode)}


# The C unpickler reserves memory for whatever index or length a damaged file names, until the
# machine has none left; this one is slower, which a structure of some thousand names can bear.
_PureUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


def _refuse(_: Any) -> None:
    raise pickle.UnpicklingError("an instruction that no file of arrays and text needs")


_REFUSED = (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4)

# Bytes that the result of an instruction takes, with the references to it; about, and rather more.
_COST = 48
_COSTS = {
    pickle.EMPTY_SET: 224, pickle.FROZENSET: 224, pickle.EMPTY_DICT: 240, pickle.DICT: 240,
    pickle.EMPTY_LIST: 96, pickle.LIST: 96, pickle.MARK: 128, pickle.REDUCE: 300,
    pickle.NEWOBJ: 300, pickle.NEWOBJ_EX: 300, pickle.OBJ: 300, pickle.INST: 300,
    pickle.PERSID: 300, pickle.BINPERSID: 300,
    pickle.PUT: 96, pickle.BINPUT: 96, pickle.LONG_BINPUT: 96, pickle.MEMOIZE: 96,
}  # fmt: skip
# Their results are as large as the file says.
_SIZED = (
    pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.UNICODE, pickle.BINUNICODE,
    pickle.SHORT_BINUNICODE, pickle.BINUNICODE8, pickle.BINBYTES, pickle.SHORT_BINBYTES,
    pickle.BINBYTES8, pickle.INT, pickle.LONG, pickle.LONG1, pickle.LONG4,
)  # fmt: skip


def _charged(instruction: bytes, step: Callable[[Any], None]) -> Callable[[Any], None]:
    """An instruction that is paid for from the budget."""
    cost, sized = _COSTS.get(instruction, _COST), instruction in _SIZED

    def charged(self: SafeUnpickler) -> None:
        self.spend(cost)
        step(self)
        if sized:
            self.spend(sys.getsizeof(self.stack[-1]))

    return charged


class SafeUnpickler(_PureUnpickler):
    """Unpickles with the names of `allowed` only.

    An entry (package, "*") allows every name in a package and in the packages below it.
    `persistent_load` returns the object behind a persistent id; without it there may be none.
    `size` is that of the file in bytes: the objects may take as many, or `LEAST_ALLOWED`.
    """

    dispatch: ClassVar[dict] = {}  # filled below

    def __init__(
        self,
        file: Any,
        allowed: Table,
        persistent_load: Callable[[Any], Any] | None = None,
        size: int = 0,
    ):
        super().__init__(file, encoding="utf-8")
        self._allowed, self._persistent_load = allowed, persistent_load
        self._budget = max(size, LEAST_ALLOWED)

    def spend(self, count: int) -> None:
        """Takes bytes from the budget.

        Raises:
          UnpicklingError: it is used up.
        """
        self._budget -= count
        if self._budget < 0:
            raise pickle.UnpicklingError("a structure that would fill the memory")

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name.

        Raises:
          ForbiddenNameError: a name that the table does not allow.
        """
        for key in ((module, name), (module.split(".")[0], "*")):
            if key in self._allowed:
                return self._allowed[key]
        raise ForbiddenNameError(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """The object behind a persistent id."""
        if self._persistent_load is None:
            raise pickle.UnpicklingError(f"unknown reference {shown(pid)}")
        return self._persistent_load(pid)

    # The instructions below are those that call, copy or hash what a file holds.

    def _call(self, function: Any, arguments: Any) -> Any:
        callable_ = isinstance(function, Function) or (
            isinstance(function, type) and issubclass(function, Dictionary)
        )
        if not callable_ or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError(f"{shown(function)} is no function")
        for argument in arguments:
            self._spend_copy(argument)
        return function(*arguments)

    def _spend_copy(self, value: Any) -> None:
        if isinstance(value, (list, tuple)):
            self.spend(32 * len(value))
        elif isinstance(value, (dict, set, frozenset)):
            self.spend(100 * len(value))
        elif isinstance(value, (str, bytes)):
            self.spend(2 * len(value))

    def load_reduce(self) -> None:
        """REDUCE: calls."""
        arguments, function = self.stack.pop(), self.stack.pop()
        self.append(self._call(function, arguments))

    def load_newobj(self) -> None:
        """NEWOBJ: a new object, whose arguments only `__init__` would use."""
        _, function = self.stack.pop(), self.stack.pop()
        self.append(self._call(function, ()))

    def load_newobj_ex(self) -> None:
        """NEWOBJ_EX: the same with keywords."""
        self.stack.pop()
        self.load_newobj()

    def _instantiate(self, klass: Any, args: list[Any]) -> None:
        self.append(self._call(klass, tuple(args)))

    def load_build(self) -> None:
        """BUILD: sets a state, of what takes one."""
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, (Sealed, Dictionary)):
            raise pickle.UnpicklingError(f"{shown(target)} takes no state")
        self._spend_copy(state)
        target.__setstate__(state)

    def load_setitem(self) -> None:
        """SETITEM: a key and a value for a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        """SETITEMS: keys and values for a dictionary."""
        self._set_items(self.pop_mark())

    def load_dict(self) -> None:
        """DICT: a dictionary of keys and values."""
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise pickle.UnpicklingError(f"keys and values for {shown(target)}")
        for i in range(0, len(items), 2):
            target[plain_key(items[i])] = items[i + 1]

    def load_additems(self) -> None:
        """ADDITEMS: members for a set."""
        members, target = self.pop_mark(), self.stack[-1]
        if not isinstance(target, set):
            raise pickle.UnpicklingError(f"members for {shown(target)}")
        target |= plain_set(members)

    def load_frozenset(self) -> None:
        """FROZENSET: a set, of what is on the stack."""
        self.append(plain_set(self.pop_mark()))


_METHODS = {
    pickle.REDUCE: "load_reduce", pickle.NEWOBJ: "load_newobj", pickle.BUILD: "load_build",
    pickle.NEWOBJ_EX: "load_newobj_ex", pickle.SETITEM: "load_setitem", pickle.DICT: "load_dict",
    pickle.SETITEMS: "load_setitems", pickle.ADDITEMS: "load_additems",
    pickle.FROZENSET: "load_frozenset",
}  # fmt: skip
for _code, _step in _PureUnpickler.dispatch.items():
    _instruction = bytes([_code])
    _step = getattr(SafeUnpickler, _METHODS[_instruction]) if _instruction in _METHODS else _step
    _step = _refuse if _instruction in _REFUSED else _step
    SafeUnpickler.dispatch[_code] = _charged(_instruction, _step)


def resolve(content: Any, leaf: Callable[[Any], Any] = lambda value: value) -> Any:
    """A structure with plain dictionaries and lists for its containers, and `leaf` of the rest.

    A part that is referred to several times is made once, a `Sealed` leaf as well.

    Raises:
      UnpicklingError: a container that holds itself, too many within each other, or shared parts
        that whoever goes through the structure would meet millions of times.
    """
    done: dict[int, tuple[Any, int, int] | None] = {}  # by identity; None: being made
    too_deep = pickle.UnpicklingError(f"more than {_DEEPEST} containers within each other")

    def walk(value: Any, depth: int) -> tuple[Any, int, int]:
        """The result, its number of entries, and how deep it is."""
        if not isinstance(value, (dict, list, tuple, set, Sealed)):
            return leaf(value), 1 + (len(value) // 64 if isinstance(value, (str, bytes)) else 0), 0
        if id(value) in done:
            if (found := done[id(value)]) is None:
                raise pickle.UnpicklingError("a container that holds itself")
            return found
        if isinstance(value, Sealed):
            done[id(value)] = found = leaf(value), 1, 0
            return found
        if depth == _DEEPEST:
            raise too_deep
        done[id(value)] = None
        entries, height = 1, 0

        def item(inner: Any) -> Any:
            nonlocal entries, height
            result, count, below = walk(inner, depth + 1)
            entries, height = entries + count, max(height, below + 1)
            if height > _DEEPEST:  # by parts that are made already
                raise too_deep
            if entries > _MOST_ENTRIES:
                raise pickle.UnpicklingError(f"more than {_MOST_ENTRIES} entries by shared parts")
            return result

        result: Any
        if isinstance(value, dict):
            result = {key: item(inner) for key, inner in dict.items(value)}
        else:
            result = [item(inner) for inner in value]
        done[id(value)] = found = result, entries, height
        return found

    return walk(content, 0)[0]
