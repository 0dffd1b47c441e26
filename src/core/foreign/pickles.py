"""Pickles of strangers, read by a machine that builds containers and records and can call nothing.

A pickle is a program that names functions and has them called. `pickle.Unpickler`, even with a `find_class` of one's
own, calls what it is given, allocates what the file announces (nine bytes can ask for gigabytes), hashes keys that
take for ever and sets attributes. Here the program's some forty harmless instructions are carried out by hand: a
global is its name, a call is a `Record` of name and arguments, and every instruction is paid from a budget before it
runs. What the records mean is the business of who asked: see `tensors` and `frames`.
"""

import codecs
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

MAX_BYTES: Final = 1 << 28  # of a pickle
MAX_DEPTH: Final = 100  # of containers in containers
MAX_NODES: Final = 20_000_000  # of the tree, a container counted as often as it is referred to

_MEMORY: Final = 400_000_000  # what the values of one pickle may take, roughly
_PER_INSTRUCTION: Final = 40  # bytes: a number and its place on the stack
_PER_CONTAINER: Final = 100  # bytes more: a container, a record, a place in the memo
_MAX_ODD_KEYS: Final = 10_000  # keys that are no text: numbers can be chosen so that their hashes collide
_MAX_INTEGER_BYTES: Final = 32
_MAX_NAME: Final = 500
_BUILTINS: Final = ("builtins", "__builtin__")  # the latter from Python 2, and in protocol 2
_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})


class DamagedPickle(ValueError):
    """The bytes are no pickle, or one that no sound program would write."""


class RefusedName(Exception):
    """The pickle names a class or function that its reader does not admit."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it names {name}")
        self.name = name


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function, not loaded: `module.name`."""

    path: str


@dataclass(slots=True, eq=False)
class Record:
    """Stands for the result of a call that was not made, such as an object of a class that is not loaded.

    Attributes:
        name: `module.name` of what was to be called; with `()` behind it where a result of it was to be.
        args: its arguments.
        state: what the object was to take over as its attributes, None if nothing.
        entries: what was to be put into the object as into a dictionary.
    """

    name: str
    args: tuple
    state: Any
    entries: dict


@dataclass(slots=True, eq=False)
class Reference:
    """A persistent id: something that is kept outside of the pickle."""

    id: Any


@dataclass(frozen=True)
class Loaded:
    """A pickle's value, its persistent ids, and where in the bytes it ends."""

    value: Any
    references: list[Reference]
    end: int


def load_pickle(data: bytes, admits: Callable[[str], bool], start: int = 0) -> Loaded:
    """Read the pickle (protocol 2 to 5) at `start`.

    Args:
        admits: whether a `module.name` may occur; it is never imported in any case.

    Returns:
        None, booleans, numbers, text, bytes, lists, tuples, dictionaries, `Name`, `Record` and `Reference`; a tree of
        at most `MAX_DEPTH` levels and `MAX_NODES` nodes. Containers that the pickle refers to twice are one object.

    Raises:
        DamagedPickle: not a pickle, or one beyond the bounds of this module.
        RefusedName: a name that is not admitted.
    """
    if len(data) - start > MAX_BYTES:
        raise DamagedPickle(f"a pickle of {len(data) - start} bytes, at most {MAX_BYTES} are read")
    machine = _Machine(data, start, admits)
    try:
        value = machine.run()
        _check_tree(value)
    except (IndexError, KeyError, UnicodeError, struct.error) as error:
        raise DamagedPickle(f"damaged before byte {machine.at} ({type(error).__name__})") from None
    return Loaded(value, machine.references, machine.at)


class _Machine:
    """Stack, memo and position of a pickle that is being read."""

    def __init__(self, data: bytes, start: int, admits: Callable[[str], bool]) -> None:
        self.data, self.at, self.admits = data, start, admits
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.references: list[Reference] = []
        self.memory, self.odd_keys = _MEMORY, _MAX_ODD_KEYS

    def run(self) -> Any:
        stop = pickle.STOP[0]
        while True:
            code = self.data[self.at]
            self.at += 1
            if code == stop:
                return self.stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise DamagedPickle(f"byte {self.at - 1} is {code:#04x}, no instruction that data needs")
            self.memory -= _PER_INSTRUCTION
            if self.memory < 0:
                self.spend(0)
            step(self)

    def spend(self, amount: int) -> None:
        self.memory -= amount
        if self.memory < 0:
            raise DamagedPickle(f"its values would take more than {_MEMORY} bytes")

    # --- reading the arguments that follow an instruction ----------------------------------------------------

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.at:
            raise DamagedPickle(f"byte {self.at} announces {count} bytes, the file has {len(self.data) - self.at} more")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, width: int, signed: bool = False) -> int:
        start, self.at = self.at, self.at + width
        digits = self.data[start : self.at]
        if len(digits) < width:
            raise DamagedPickle(f"the file ends in an argument of {width} bytes")
        return int.from_bytes(digits, "little", signed=signed)

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + _MAX_NAME)
        if end < 0:
            raise DamagedPickle(f"byte {self.at} begins no name")
        line = self.take(end - self.at)
        self.at += 1
        return line.decode()

    def pop_to_mark(self) -> list[Any]:
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items

    # --- instructions ----------------------------------------------------------------------------------------

    def protocol(self) -> None:
        version = self.number(1)
        if version > pickle.HIGHEST_PROTOCOL:
            raise DamagedPickle(f"protocol {version}, at most {pickle.HIGHEST_PROTOCOL} is known")

    def frame(self) -> None:
        length = self.number(8)
        if length > len(self.data) - self.at:
            raise DamagedPickle(f"a frame of {length} bytes, the file has {len(self.data) - self.at} more")

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def integer(self, width: int) -> None:
        if width > _MAX_INTEGER_BYTES:
            raise DamagedPickle(f"an integer of {width} bytes, at most {_MAX_INTEGER_BYTES} are read")
        self.stack.append(self.number(width, signed=True))

    def text(self, length: int) -> None:
        self.spend(_PER_CONTAINER + 4 * length)
        self.stack.append(self.take(length).decode("utf-8", "surrogatepass"))

    def raw(self, length: int) -> None:
        self.spend(_PER_CONTAINER + length)
        self.stack.append(self.take(length))

    def container(self, value: Any) -> None:
        self.spend(_PER_CONTAINER)
        self.stack.append(value)

    def tuple_of(self, count: int) -> None:
        if count > len(self.stack):
            raise DamagedPickle(f"byte {self.at - 1} takes {count} values from a shorter stack")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.container(items)

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise DamagedPickle(f"byte {self.at - 1} adds to something that is no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.entries if type(target) is Record else target
        if type(entries) is not dict or len(items) % 2:
            raise DamagedPickle(f"byte {self.at - 1} adds to something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.check_key(key)
            entries[key] = value

    def check_key(self, key: Any) -> None:
        """Keys whose hash is quick: text, and few numbers or flat tuples."""
        if type(key) is str:
            return
        self.odd_keys -= 1
        flat = type(key) is not tuple or (len(key) <= MAX_DEPTH and all(type(part) in _SCALARS for part in key))
        if self.odd_keys < 0 or not flat or type(key) not in _SCALARS | {tuple}:
            raise DamagedPickle(f"byte {self.at - 1} uses {type(key).__name__} number {_MAX_ODD_KEYS} or more as a key")

    def put(self, index: int) -> None:
        self.spend(_PER_CONTAINER)
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def name(self, module: str, name: str) -> None:
        if len(module) + len(name) > _MAX_NAME:
            raise DamagedPickle(f"a name of {len(module) + len(name)} characters")
        path = f"{module}.{name}"
        if not self.admits(path) and path not in _BYTES:
            raise RefusedName(path)
        self.container(Name(path))

    def stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise DamagedPickle(f"byte {self.at - 1} names a function by something that is no text")
        self.name(module, name)

    def call(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if type(function) not in (Name, Record) or type(args) is not tuple:
            raise DamagedPickle(f"byte {self.at - 1} calls something that is no function")
        path = function.path if type(function) is Name else f"{function.name.removesuffix('()')}()"
        if path in _BYTES:
            self.stack.append(_bytes_of(args))
        else:
            self.spend(2 * _PER_CONTAINER)
            self.container(Record(path, args, None, {}))

    def set_state(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is not Record or target.state is not None:
            raise DamagedPickle(f"byte {self.at - 1} sets the state of something that has none")
        target.state = state

    def reference(self) -> None:
        content = self.stack.pop()
        if type(content) is tuple and content[:1] == ("module",) and len(content) == 4 and type(content[1]) is Name:
            self.stack.append(content[1])  # before torch 1.6 a class goes with its source: name, file, text
            return
        self.references.append(Reference(content))
        self.container(self.references[-1])


# Old protocols have no instruction for bytes; these calls alone are understood, not made.
_BYTES: Final = frozenset(
    {"_codecs.encode", *(f"{module}.{kind}" for module in _BUILTINS for kind in ("bytes", "bytearray"))}
)


def _bytes_of(args: tuple) -> bytes:
    if args == ():
        return b""
    if len(args) == 1 and type(args[0]) is bytes:
        return args[0]
    if len(args) == 2 and type(args[0]) is str and args[1] in ("latin1", "latin-1"):
        return codecs.latin_1_encode(args[0])[0]
    raise DamagedPickle("bytes that are neither bytes nor Latin-1 text")


_STEPS: Final[dict[int, Callable[[_Machine], None]]] = {
    code[0]: step
    for code, step in (
        (pickle.PROTO, _Machine.protocol),
        (pickle.FRAME, _Machine.frame),
        (pickle.MARK, _Machine.mark),
        (pickle.NONE, lambda m: m.stack.append(None)),
        (pickle.NEWTRUE, lambda m: m.stack.append(True)),
        (pickle.NEWFALSE, lambda m: m.stack.append(False)),
        (pickle.BININT, lambda m: m.stack.append(m.number(4, signed=True))),
        (pickle.BININT1, lambda m: m.stack.append(m.number(1))),
        (pickle.BININT2, lambda m: m.stack.append(m.number(2))),
        (pickle.LONG1, lambda m: m.integer(m.number(1))),
        (pickle.LONG4, lambda m: m.integer(m.number(4))),
        (pickle.BINFLOAT, lambda m: m.stack.append(struct.unpack(">d", m.take(8))[0])),
        (pickle.SHORT_BINSTRING, lambda m: m.text(m.number(1))),  # text of Python 2
        (pickle.BINSTRING, lambda m: m.text(m.number(4))),
        (pickle.SHORT_BINUNICODE, lambda m: m.text(m.number(1))),
        (pickle.BINUNICODE, lambda m: m.text(m.number(4))),
        (pickle.BINUNICODE8, lambda m: m.text(m.number(8))),
        (pickle.SHORT_BINBYTES, lambda m: m.raw(m.number(1))),
        (pickle.BINBYTES, lambda m: m.raw(m.number(4))),
        (pickle.BINBYTES8, lambda m: m.raw(m.number(8))),
        (pickle.BYTEARRAY8, lambda m: m.raw(m.number(8))),
        (pickle.EMPTY_LIST, lambda m: m.container([])),
        (pickle.EMPTY_DICT, lambda m: m.container({})),
        (pickle.EMPTY_TUPLE, lambda m: m.stack.append(())),
        (pickle.TUPLE, lambda m: m.container(tuple(m.pop_to_mark()))),
        (pickle.TUPLE1, lambda m: m.tuple_of(1)),
        (pickle.TUPLE2, lambda m: m.tuple_of(2)),
        (pickle.TUPLE3, lambda m: m.tuple_of(3)),
        (pickle.APPEND, lambda m: m.append([m.stack.pop()])),
        (pickle.APPENDS, lambda m: m.append(m.pop_to_mark())),
        (pickle.SETITEM, lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()])),
        (pickle.SETITEMS, lambda m: m.set_items(m.pop_to_mark())),
        (pickle.BINPUT, lambda m: m.put(m.number(1))),
        (pickle.LONG_BINPUT, lambda m: m.put(m.number(4))),
        (pickle.MEMOIZE, lambda m: m.put(len(m.memo))),
        (pickle.BINGET, lambda m: m.get(m.number(1))),
        (pickle.LONG_BINGET, lambda m: m.get(m.number(4))),
        (pickle.GLOBAL, lambda m: m.name(m.line(), m.line())),
        (pickle.STACK_GLOBAL, _Machine.stack_name),
        (pickle.REDUCE, _Machine.call),
        (pickle.NEWOBJ, _Machine.call),
        (pickle.BUILD, _Machine.set_state),
        (pickle.BINPERSID, _Machine.reference),
    )
}


def _check_tree(root: Any) -> None:
    """Refuse what nobody who walks through the value would come out of: depth, circles, a large tree in few bytes."""
    known: dict[int, tuple[int, int]] = {}  # id of a container of containers -> its height and nodes
    open_ids: set[int] = set()

    def measure(value: Any, depth: int) -> tuple[int, int]:
        if type(value) in _SCALARS:
            return 0, 1
        parts = _parts(value)
        if set(map(type, parts)) <= _SCALARS:
            height, nodes = 1, len(parts) + 1
        elif id(value) in known:
            height, nodes = known[id(value)]
        elif id(value) in open_ids:
            raise DamagedPickle("a container that contains itself")
        else:
            check(depth + 1, 1)
            open_ids.add(id(value))
            height, nodes = 0, 1
            for part in parts:
                below, more = measure(part, depth + 1)
                height, nodes = max(height, below + 1), nodes + more
                check(depth + height, nodes)
            open_ids.remove(id(value))
            known[id(value)] = height, nodes
        check(depth + height, nodes)
        return height, nodes

    def check(depth: int, nodes: int) -> None:
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            raise DamagedPickle(f"a tree of more than {MAX_DEPTH} levels or {MAX_NODES} nodes")

    measure(root, 0)


def _parts(value: Any) -> list[Any]:
    if type(value) in (list, tuple):
        return value
    if type(value) is dict:
        return list(value.values())
    if type(value) is Record:
        return [value.args, value.state, value.entries]
    return [value.id] if type(value) is Reference else []
