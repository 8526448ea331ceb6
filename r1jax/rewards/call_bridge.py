"""A program and the tests that call it, in two sandboxes, joined by a channel that carries values and calls.

Each sandbox runs this file as a script of its own. The program's end answers: it can send what it likes, but nothing
that it does to its own process (end it, replace built-ins, search the memory) reaches the tests. The tests' end
compares what it receives itself, and says the secret word that it has from the grader once all tests have passed.

Lists, sets, dicts and bytearrays that a call changes in place are changed in the tests too; exceptions arrive as their
nearest built-in class.
"""

import builtins
import os
import select
import struct
import sys
import time

from call_values import BASES, Remote, Values

CHANNEL = 3  # as in `sandbox_jail`

_LENGTH = struct.Struct("<Q")
_MUTABLE = (list, dict, set, bytearray)
_UNUSED = "the tests never use the program"
_OPERATIONS = {
    "get": getattr,
    "set": setattr,
    "item": lambda value, key: value[key],
    "set item": lambda value, key, item: value.__setitem__(key, item),
    "delete item": lambda value, key: value.__delitem__(key),
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
}


class CannotCross(TypeError):
    """A value of the tests that has no way to the program."""


class Broken(BaseException):
    """The other end did not answer in time, or has gone. No `except Exception` of a test may catch it."""


class Peer(Values):
    """One end of the channel. Every request waits for its answer, and serves requests of the other end meanwhile."""

    def __init__(self):
        super().__init__()
        self.deadline = None
        self.asked = 0
        self.broken = None
        self._buffer = bytearray()
        os.set_blocking(CHANNEL, False)

    def ask(self, operation, *arguments):
        self.asked += 1
        self.send((operation, *arguments))
        return self._answer(operation)[0]

    def call(self, function, args, kwargs):
        """Calls a `Remote`, and makes the changes in place that the call made to its arguments."""
        self.asked += 1
        self.send(("call", function, args, kwargs))
        value, changed = self._answer("call")
        for key, new in changed.items():
            old = args[key] if type(key) is int else kwargs[key]
            if type(old) is type(new) and type(old) in _MUTABLE:
                if type(old) in (list, bytearray):
                    old[:] = new
                else:
                    old.clear()
                    old.update(new)
        return value

    def _answer(self, operation):
        while True:
            kind, *rest = self.receive()
            if kind == "value":
                return rest
            if kind == "exception":
                raise _rebuilt(*rest, ends=operation == "next")
            self.serve(kind, rest)

    def serve(self, operation, arguments):
        try:
            answer = self.encode(("value", *self.perform(operation, *arguments)))
        except Broken:
            raise
        except BaseException as error:
            answer = self.encode(("exception", *_described(error)))
        self._write(answer)

    def perform(self, operation, *arguments):
        """The result of a request, and those of its arguments, by position or name, that it has changed."""
        if operation != "call":
            return _OPERATIONS[operation](*arguments), {}
        function, args, kwargs = arguments
        mutable = {key: v for key, v in {**dict(enumerate(args)), **kwargs}.items() if type(v) in _MUTABLE}
        before = {key: self.encode(v) for key, v in mutable.items()}
        value = function(*args, **kwargs)
        return value, {key: v for key, v in mutable.items() if self.encode(v) != before[key]}

    # A message is its length in 8 bytes, then a tuple that begins with a word.

    def send(self, message):
        self._write(self.encode(message))

    def receive(self):
        (length,) = _LENGTH.unpack(self._read(8))
        data = self._read(length)
        try:
            message = self.decode(data)
        except Exception:
            message = None
        if type(message) is not tuple or not message or type(message[0]) is not str:
            self._break("it sent what is no value")
        return message

    def _write(self, data):
        data = memoryview(_LENGTH.pack(len(data)) + data)
        while data:
            self._wait([], [CHANNEL])
            try:
                data = data[os.write(CHANNEL, data[: 1 << 16]) :]
            except BlockingIOError:
                pass
            except OSError:
                self._break("it ended")

    def _read(self, length):
        while len(self._buffer) < length:
            self._wait([CHANNEL], [])
            try:
                part = os.read(CHANNEL, 1 << 20)
            except OSError:
                part = b""
            if not part:
                self._break("it ended")
            self._buffer += part
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        return data

    def _wait(self, reads, writes):
        left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        if not any(select.select(reads, writes, [], left)):
            self._break("it ran out of time")

    def _break(self, why):
        self.broken = self.broken or why
        raise Broken(self.broken)


def _described(error):
    """An exception as plain values: its built-in classes, nearest first, and its arguments as far as they are plain."""
    names = [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]
    return names, [a if type(a) in (str, int, float, bool, type(None)) else str(a) for a in error.args]


def _rebuilt(names, arguments, ends):
    """`ends`: whether it may be the end of an iteration; raised by a call, that would end a loop of the tests."""
    kinds = (getattr(builtins, name, None) for name in names)
    kind = next((k for k in kinds if isinstance(k, type) and issubclass(k, (Exception, SystemExit))), RuntimeError)
    if issubclass(kind, (StopIteration, StopAsyncIteration)) and not ends:
        kind = RuntimeError
    try:
        error = kind(*arguments)
    except TypeError:  # UnicodeDecodeError and its like want arguments of their own
        error = (ValueError if issubclass(kind, ValueError) else RuntimeError)(*arguments)
    error.is_the_programs = True
    return error


# The program's end


def run_program(path):
    """Loads the program and answers for it, until the tests have ended."""
    peer = Peer()
    builtins.exit = builtins.quit = sys.exit  # they come from a part of Python that does not start here
    module = type(sys)("program")
    sys.modules["program"] = module
    try:
        with open(path, "rb") as file:
            code = compile(file.read(), "program.py", "exec")
    except Exception as error:  # SyntaxError, ValueError, RecursionError, MemoryError: Python's ways to refuse a text
        peer.send(("unloadable", f"it does not compile: {type(error).__name__}: {error}"))
        return
    try:
        exec(code, module.__dict__)
    except BaseException as error:
        peer.send(("unloadable", f"it raises {type(error).__name__} as it is loaded: {error}"))
        return
    peer.send(("loaded",))
    while True:
        operation, *arguments = peer.receive()
        if operation == "names":
            there = {name: vars(module)[name] for name in arguments[0] if name in vars(module)}
            peer.send(("value", {name: v for name, v in there.items() if type(v) is not type(sys)}))
        else:
            peer.serve(operation, arguments)


# The tests' end


class TestsPeer(Peer):
    """The tests' end, which gives away little: its functions can be called, and objects of its own classes be used.

    Nothing that begins with an underscore is reached by name: from a function's globals, all of this end would be.
    """

    def encode_object(self, value, out):
        kind = type(value)
        if getattr(builtins, getattr(value, "__name__", ""), None) is value:
            self.name_builtin(value, out)
        elif callable(value) or (kind.__module__ == "tests" and not isinstance(value, BASES)):
            self.export(value, out)
        else:
            raise CannotCross(f"a {kind.__module__}.{kind.__qualname__} of the tests cannot be sent to the program")

    def builtin(self, name):
        raise ValueError("a program sends no built-ins")

    def perform(self, operation, target, *arguments):
        if operation == "call" and callable(target):
            return target(*arguments[0], **arguments[1]), {}
        if type(target).__module__ != "tests" or (operation in ("get", "set") and arguments[0].startswith("_")):
            raise TypeError(f"{operation}: not with this object of the tests")
        if operation == "set" and hasattr(type(target), arguments[0]):  # a method of theirs may be what decides
            raise AttributeError(f"{arguments[0]!r} of the tests' class cannot be set")
        if operation == "iter":
            return list(target), {}
        return _OPERATIONS[operation](target, *arguments), {}


def run_tests():
    """Reads the secret, the seconds for each case and the tests from standard input; writes a verdict at the end."""
    import marshal  # the grader's request is trusted

    verdicts = os.dup(1)
    secret, case_seconds, tests = marshal.loads(sys.stdin.buffer.read())
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    kind, case, detail = _judge(case_seconds, tests)
    os.write(verdicts, f"{secret} {kind} {case} {detail}".encode(errors="replace"))


def _judge(case_seconds, tests):
    """("passed", "failed" or "malformed", the case, why)"""
    codes, loaded, bound, bases = [], set(), set(), set()
    for i, text in enumerate(tests):
        try:
            codes.append(compile(text, f"test {i}", "exec"))
            tree = compile(text, f"test {i}", "exec", 0x400)  # PyCF_ONLY_AST
            _survey(tree, loaded, bound, bases)
        except Exception as error:
            return "malformed", i, f"it does not compile: {error}"
        if any(type(getattr(node, "value", None)).__name__ in ("Compare", "BoolOp") for node in _statements(tree)):
            return "malformed", i, "it compares and asserts nothing: write assert"
    modules = {name for name in bases - bound if name in sys.stdlib_module_names}
    needed = {name for name in loaded - modules if not hasattr(builtins, name)}
    spare = loaded - modules - bound - needed
    if not needed and len(spare) != 1:
        return "malformed", 0, _UNUSED
    peer, i = TestsPeer(), 0
    try:
        peer.deadline = time.monotonic() + case_seconds
        state, *detail = peer.receive()
        if state != "loaded":
            return "failed", 0, detail[0]
        theirs = _names(peer, needed)
        if not theirs and not needed - bound and len(spare) == 1:
            theirs = _names(peer, spare)  # a program may be called `sum`
        namespace = {"__name__": "tests", **{name: __import__(name) for name in modules}, **theirs}
        peer.asked = 0
        for i, code in enumerate(codes):
            peer.deadline = time.monotonic() + case_seconds
            exec(code, namespace)
            if peer.broken:
                return "failed", i, peer.broken
    except Broken as error:
        return "failed", i, str(error)
    except CannotCross as error:
        return "malformed", i, str(error)
    except BaseException as error:
        foreign = isinstance(error, ImportError) and not hasattr(error, "is_the_programs")
        return "malformed" if foreign else "failed", i, f"{type(error).__name__}: {str(error)[:500]}"
    if not peer.asked and all(type(value) is Remote for name, value in theirs.items() if name not in bound):
        return "malformed", i, _UNUSED
    return "passed", i, ""


def _statements(tree):
    """Expressions that stand alone, at the top."""
    return [node for node in tree.body if type(node).__name__ == "Expr"]


def _names(peer, wanted):
    """The program's own values of the global names that are `wanted`, and of no other: it may offer more."""
    offered = peer.ask("names", sorted(wanted))
    return {name: offered[name] for name in wanted if name in offered}


def _survey(tree, loaded, bound, bases):
    """Collects names of a syntax tree: those it reads, those it binds anywhere, those it only takes attributes of."""
    plain, attributed, stack = set(), set(), [tree]
    while stack:
        node = stack.pop()
        kind = type(node).__name__
        if kind == "Attribute" and type(node.value).__name__ == "Name":
            attributed.add(node.value.id)
            continue
        if kind == "Name":
            (plain if type(node.ctx).__name__ == "Load" else bound).add(node.id)
        elif kind in ("FunctionDef", "AsyncFunctionDef", "ClassDef", "ExceptHandler"):
            bound.add(node.name)
        elif kind == "arg":
            bound.add(node.arg)
        elif kind == "alias":
            bound.add((node.asname or node.name).partition(".")[0])
        for field in node._fields:
            value = getattr(node, field, None)
            stack.extend(v for v in (value if isinstance(value, list) else [value]) if hasattr(v, "_fields"))
    loaded |= plain | attributed
    bases |= attributed
    bases -= plain


if __name__ == "__main__":
    if sys.argv[1] == "tests":
        run_tests()
    else:
        try:
            run_program(sys.argv[1])
        except Broken:
            pass
        os._exit(0)
