"""Values between a program and its tests, which run in two sandboxes (`call_bridge`): an encoding that is safe to read.

Values cross by copy: None, bool, int, float, complex, str, bytes, bytearray, range, list, tuple, set, frozenset, dict
and some types of the standard library (`_CONSTRUCTORS`); subclasses cross as what they extend. What is read is built
out of exact built-in types, whoever wrote it. Other objects stay where they are, and the other end has a `Remote` of
them. Strings of bytes that are no value raise one of many kinds of exception.
"""

import builtins
import struct

# Each type's attributes that make the arguments of its constructor; by name, so that nothing is imported for it.
_CONSTRUCTORS = {
    "fractions.Fraction": lambda v: (v.numerator, v.denominator),
    "decimal.Decimal": lambda v: (str(v),),
    "collections.deque": lambda v: (list(v), v.maxlen),
    "collections.OrderedDict": lambda v: (list(v.items()),),
    "collections.Counter": lambda v: (dict(v),),
    "collections.defaultdict": lambda v: (v.default_factory, dict(v)),
    "datetime.date": lambda v: (v.year, v.month, v.day),
    "datetime.datetime": lambda v: (v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond),
    "datetime.time": lambda v: (v.hour, v.minute, v.second, v.microsecond),
    "datetime.timedelta": lambda v: (v.days, v.seconds, v.microseconds),
}
_CONSTANTS = {None: b"N", True: b"T", False: b"F"}
_CONSTANTS_BACK = {tag: value for value, tag in _CONSTANTS.items()}
_SEQUENCES = {list: b"l", tuple: b"t", set: b"s", frozenset: b"z"}
_SEQUENCES_BACK = {tag: kind for kind, tag in _SEQUENCES.items()}
_BYTES = {bytes: b"b", bytearray: b"a"}
_BYTES_BACK = {tag: kind for kind, tag in _BYTES.items()}
BASES = (int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict)
_LENGTH = struct.Struct("<Q")
_DOUBLE = struct.Struct("<d")


class Remote:
    """An object of the other end: it can be passed back, called, iterated over, asked for items and attributes.

    It equals only itself, and takes part in no arithmetic or ordering: no object can be equal to whatever it is
    compared with, or near to it.
    """

    __slots__ = ("_number", "_peer")

    def __init__(self, peer, number):
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def _ask(self, operation, *arguments):
        return self._peer.ask(operation, self, *arguments)

    def __call__(self, *args, **kwargs):
        return self._peer.call(self, args, kwargs)

    def __getattr__(self, name):
        if name.startswith("__") and name not in ("__name__", "__doc__"):
            raise AttributeError(name)
        return self._ask("get", name)

    def __setattr__(self, name, value):
        self._ask("set", name, value)

    def __getitem__(self, key):
        return self._ask("item", key)

    def __setitem__(self, key, value):
        self._ask("set item", key, value)

    def __delitem__(self, key):
        self._ask("delete item", key)

    def __iter__(self):
        iterator = self._ask("iter")
        items = iterator if type(iterator) is Remote else iter(iterator)
        try:
            length = self._ask("len")
        except Exception:  # a generator
            return items
        items = list(items)
        if len(items) != length:  # zip would end early, and nobody would notice
            raise ValueError(f"its length is {length}, and it has {len(items)} items")
        return iter(items)

    def __next__(self):
        return self._ask("next")

    def __len__(self):
        return self._ask("len")

    def __bool__(self):
        return self._ask("bool")

    def __str__(self):
        return self._ask("str")

    def __repr__(self):
        return self._ask("repr")


class Values:
    """One end's encoder and decoder, with the objects that it has let the other end know of."""

    def __init__(self):
        self._exported = []
        self._numbers = {}
        self._remotes = {}

    def encode(self, value) -> bytes:
        out = bytearray()
        self._encode(value, out)
        return bytes(out)

    def decode(self, data: bytes):
        value, end = self._decode(data, 0)
        if end != len(data):
            raise ValueError("more than one value")
        return value

    def _encode(self, value, out):
        kind = type(value)
        if value is None or kind is bool:
            out += _CONSTANTS[value]
        elif kind is int:
            _put(out, b"i", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
        elif kind is float:
            out += b"f" + _DOUBLE.pack(value)
        elif kind is complex:
            out += b"c" + _DOUBLE.pack(value.real) + _DOUBLE.pack(value.imag)
        elif kind is str:
            _put(out, b"u", value.encode("utf-8", "surrogatepass"))
        elif kind in _BYTES:
            _put(out, _BYTES[kind], value)
        elif kind in _SEQUENCES:
            out += _SEQUENCES[kind] + _LENGTH.pack(len(value))
            for item in value:
                self._encode(item, out)
        elif kind is dict:
            out += b"d" + _LENGTH.pack(len(value))
            for key, item in value.items():
                self._encode(key, out)
                self._encode(item, out)
        elif kind is range:
            out += b"r"
            self._encode((value.start, value.stop, value.step), out)
        elif kind is Remote:
            out += b"o" + _LENGTH.pack(value._number)
        elif (name := f"{kind.__module__}.{kind.__qualname__}") in _CONSTRUCTORS:
            out += b"v"
            self._encode((name, _CONSTRUCTORS[name](value)), out)
        else:
            self.encode_object(value, out)

    def encode_object(self, value, out):
        """Anything else: an instance of a subclass as what it extends, the rest as an object of this end."""
        for base in BASES:
            if isinstance(value, base):
                return self._encode(base(value), out)
        self.export(value, out)

    def export(self, value, out):
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._exported)
            self._exported.append(value)
        out += b"h" + _LENGTH.pack(number)

    def name_builtin(self, value, out):
        """A built-in function or class by its name. Only the program's end takes it."""
        out += b"g"
        self._encode(value.__name__, out)

    def builtin(self, name):
        return getattr(builtins, name)

    def _decode(self, data, at):
        """The value that begins at `data[at]`, and where it ends."""
        tag, at = data[at : at + 1], at + 1
        if tag in _CONSTANTS_BACK:
            return _CONSTANTS_BACK[tag], at
        if tag == b"f":
            return _DOUBLE.unpack_from(data, at)[0], at + 8
        if tag == b"c":
            return complex(_DOUBLE.unpack_from(data, at)[0], _DOUBLE.unpack_from(data, at + 8)[0]), at + 16
        if tag == b"r":
            arguments, at = self._decode(data, at)
            return range(*arguments), at
        if tag == b"v":
            (name, arguments), at = self._decode(data, at)
            if name not in _CONSTRUCTORS:
                raise ValueError(f"no type {name!r}")
            module, _, kind = name.partition(".")
            return getattr(__import__(module), kind)(*arguments), at
        if tag == b"g":
            name, at = self._decode(data, at)
            return self.builtin(name), at
        (length,), at = _LENGTH.unpack_from(data, at), at + 8
        if tag == b"i":
            return int.from_bytes(_take(data, at, length), "little", signed=True), at + length
        if tag == b"u":
            return _take(data, at, length).decode("utf-8", "surrogatepass"), at + length
        if tag in _BYTES_BACK:
            return _BYTES_BACK[tag](_take(data, at, length)), at + length
        if tag in _SEQUENCES_BACK:
            items = []
            for _ in range(length):
                item, at = self._decode(data, at)
                items.append(item)
            return _SEQUENCES_BACK[tag](items), at
        if tag == b"d":
            result = {}
            for _ in range(length):
                key, at = self._decode(data, at)
                result[key], at = self._decode(data, at)
            return result, at
        if tag == b"o":
            return self._exported[length], at
        if tag == b"h":
            if length not in self._remotes:
                self._remotes[length] = Remote(self, length)
            return self._remotes[length], at
        raise ValueError(f"no value begins with {tag!r}")


def _put(out, tag, data):
    out += tag + _LENGTH.pack(len(data))
    out += data


def _take(data, at, length):
    if at + length > len(data):
        raise ValueError("cut short")
    return data[at : at + length]
