"""Pickles of other programs, read without executing anything: tensors and plain containers are
read, and every other object is opaque.

A pickle is a program for a stack machine. The machine below is fed by `pickletools`, which takes a
pickle apart and runs nothing. It imports no module, and calls no function and no method that a
pickle names, so a pickle can do nothing but fill lists and dicts.
"""

import pickletools
from dataclasses import dataclass

import torch

# Bounds on a pickle, in bytes and opcodes. The tensors' numbers are not in it.
MOST_PICKLED, MOST_PARTS = 2**26, 2**21
DEEPEST = 100  # of dicts and lists in each other
MOST_DIMENSIONS = 32  # of a tensor; more than any network has
DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
    "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip
STORAGES = {f"torch.{name}Storage": dtype for name, dtype in DTYPES.items()}
DICTS = (
    "builtins.dict", "__builtin__.dict", "collections.OrderedDict", "collections.defaultdict",
    "collections.Counter",
)  # fmt: skip
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
SUBCLASSES = ("torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type")


@dataclass(frozen=True, eq=False)
class Opaque:
    """An object that was not made. name: of its class, or of the function that would make it."""

    name: str


@dataclass(frozen=True, eq=False)
class Storage:
    """Numbers of one type beside the pickle, `count` of them from the one at `start` on."""

    key: str
    dtype: torch.dtype
    start: int
    count: int


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """Which of a storage's numbers a tensor has. Nothing in it has been checked."""

    storage: Storage
    offset: int
    shape: tuple
    stride: tuple


def read_pickle(file, dtypes=None):
    """The value of the pickle at the place of an open file, with each tensor as a StoredTensor.

    The file is left behind the pickle. dtypes: a dict, which takes the type of each storage's key.
    Raises ValueError, LookupError or TypeError if it is broken.
    """
    machine = _Machine({} if dtypes is None else dtypes)
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if number == MOST_PARTS:
            raise ValueError(f"more than {MOST_PARTS} parts beside its tensors")
        machine.step(opcode.name, argument)
    return machine.stack.pop()


class _Machine:
    """The stack and the memo of a pickle that is being read."""

    def __init__(self, dtypes):
        self.dtypes = dtypes
        self.stack, self.marks, self.memo = [], [], {}
        self.copied = 0  # entries of lists that became dicts

    def step(self, name, argument):
        stack = self.stack
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case (
                "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4"
                | "FLOAT" | "BINFLOAT" | "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "BINBYTES"
                | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8" | "UNICODE" | "BINUNICODE"
                | "SHORT_BINUNICODE" | "BINUNICODE8"
            ):  # fmt: skip
                stack.append(argument)
            case "MARK":
                self.marks.append(len(stack))
            case "POP":
                if self.marks and self.marks[-1] == len(stack):
                    self.marks.pop()
                else:
                    stack.pop()
            case "POP_MARK":
                self.pop_to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "LIST" | "FROZENSET":
                stack.append(self.pop_to_mark())
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(self.pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.pop(int(name[-1]))))
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                stack.append(_dict_of(self.pop_to_mark()))
            case "APPEND":
                _extend(stack[-2], self.pop(1))
            case "APPENDS" | "ADDITEMS":
                items = self.pop_to_mark()
                _extend(stack[-1], items)
            case "SETITEM":
                _update(stack[-3], self.pop(2))
            case "SETITEMS":
                items = self.pop_to_mark()
                _update(stack[-1], items)
            case "GLOBAL":
                stack.append(Opaque(".".join(argument.split(" "))))
            case "STACK_GLOBAL":
                stack.append(Opaque(".".join(self.pop(2))))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(Opaque(f"extension {argument}"))
            case "INST":
                self.pop_to_mark()
                stack.append(Opaque(".".join(argument.split(" "))))
            case "OBJ":
                stack.append(self.make(*self.pop_to_mark()[:1], ()))
            case "REDUCE" | "NEWOBJ":
                stack.append(self.make(*self.pop(2)))
            case "NEWOBJ_EX":
                stack.append(self.make(*self.pop(3)[:2]))
            case "BUILD":  # the state of an object: none is made, and none of a dict is needed
                stack.pop()
            case "BINPERSID":
                stack.append(self.storage_of(stack.pop()))
            case _:
                raise ValueError(f"its opcode {name} is not read")

    def pop(self, count):
        """The topmost entries of the stack, which are taken off it."""
        if count > len(self.stack):
            raise ValueError("its stack is empty")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def pop_to_mark(self):
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def make(self, function, arguments):
        """What a function of a pickle would return: a tensor, a dict, or something opaque."""
        if type(function) is not Opaque or type(arguments) is not tuple:
            raise TypeError("it calls what is no function")
        name = function.name
        if name in TENSORS:
            return _tensor_of(*arguments[:4])
        if name in PARAMETERS:
            return arguments[0]
        if name in SUBCLASSES and arguments[0].name in TENSORS + PARAMETERS:
            return self.make(arguments[0], arguments[2])
        if name == "torch.Size":
            return arguments[0]
        if name in DICTS:
            pairs = arguments[0] if arguments and type(arguments[0]) is list else []
            self.copied += len(pairs)
            if self.copied > MOST_PARTS:
                raise ValueError(f"more than {MOST_PARTS} parts beside its tensors")
            return _dict_of([part for pair in pairs for part in pair])
        if name == "copyreg._reconstructor" or name == "copy_reg._reconstructor":
            return arguments[0]
        return Opaque(name)

    def storage_of(self, identity):
        """The storage that torch.save names by ("storage", class, key, device, count, view)."""
        if (
            type(identity) is not tuple
            or len(identity) < 2
            or identity[0] not in ("storage", "module")
        ):
            raise ValueError("it names what is no storage")
        if identity[0] == "module":  # a class, with its source code
            return identity[1]
        _, kind, key, _, count, *view = identity
        if kind.name not in STORAGES:
            return Opaque(kind.name)
        dtype, key, start = STORAGES[kind.name], str(key), 0
        self.dtypes[key] = dtype
        if view and view[0] is not None:
            _, start, count = view[0]
        return Storage(key, dtype, start, count)


def _extend(target, items):
    if type(target) is list:
        target.extend(items)
    elif type(target) is not Opaque:
        raise TypeError("it appends to what is no list")


def _update(target, items):
    if type(target) is dict:
        target.update(_dict_of(items))
    elif type(target) is not Opaque:
        raise TypeError("it sets items of what is no dict")


def _dict_of(items):
    """The dict of [key, value, key, value, ...]."""
    keys = [
        key if isinstance(key, (str, int, float, bytes, type(None), Opaque)) else Opaque("key")
        for key in items[::2]
    ]
    return dict(zip(keys, items[1::2], strict=True))


def _tensor_of(storage, offset, shape, stride):
    if type(storage) is Opaque:
        return Opaque(f"torch._utils._rebuild_tensor of {storage.name}")
    return StoredTensor(storage, offset, shape, stride)


def plain(value, tensor_of):
    """The same nested value with tensors: dicts, lists (of tuples too), numbers, text, Opaque.

    tensor_of: gives the tensor of a StoredTensor. Raises ValueError if containers hold each other.
    """
    copies = {}

    def copy(value, depth):
        if type(value) not in (dict, list, tuple, StoredTensor):
            if type(value) is Storage:
                return Opaque("torch.storage")
            return bytes(value) if type(value) is bytearray else value
        if id(value) in copies:
            if copies[id(value)] is None:
                raise ValueError("its parts hold each other")
            return copies[id(value)]
        if depth > DEEPEST:
            raise ValueError("its parts are nested too deeply")
        copies[id(value)] = None
        if type(value) is dict:
            result = {key: copy(item, depth + 1) for key, item in value.items()}
        elif type(value) is StoredTensor:
            result = tensor_of(value)
        else:
            result = [copy(item, depth + 1) for item in value]
        copies[id(value)] = result
        return result

    return copy(value, 0)
