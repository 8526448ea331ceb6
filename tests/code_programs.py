"""Programs and tests for `test_rewards_code`: right ones, and those that try to pass without being right."""

DOUBLE = """
def double(x):
    return 2 * x
"""

# (program, its tests)
RIGHT = [
    (DOUBLE, ["assert double(2) == 4", "assert double('ab') == 'abab'", "assert double([1]) == [1, 1]"]),
    (
        DOUBLE,
        [
            """
def check(candidate):
    assert candidate(3) == 6

check(double)
"""
        ],
    ),
    (
        "def candidate(x): return x",
        [
            """
def check(candidate):
    assert candidate(3) == 3

check(candidate)
"""
        ],
    ),
    (
        "def area(r): return 3.14159 * r * r",
        [
            """
import math
assert math.isclose(area(2), 12.56636, rel_tol=1e-3)
"""
        ],
    ),
    ("def area(r): return 3.14159 * r * r", ["assert math.isclose(area(2), 12.56636)"]),
    ("def sum(a, b): return a + b + 1", ["assert sum(1, 2) == 4", "assert sum(2, 2) == 5"]),
    (
        """
class Pair:
    def __init__(self, a, b): self.a, self.b = a, b
def total(ps): return sum(p.a + p.b for p in ps)
""",
        ["assert total([Pair(1, 2), Pair(3, 4)]) == 10"],
    ),
    (
        """
class Solution:
    def add(self, a, b): return a + b
""",
        ["assert Solution().add(1, b=2) == 3"],
    ),
    (
        "def depth(n): return 0 if n is None else 1 + max(depth(n.left), depth(n.right))",
        [
            """
class Node:
    def __init__(self, l=None, r=None): self.left, self.right = l, r
assert depth(Node(Node(), Node(Node()))) == 3
"""
        ],
    ),
    (
        """
def invert(n):
    if n: n.left, n.right = invert(n.right), invert(n.left)
    return n
""",
        [
            """
class Node:
    def __init__(self, l, r): self.left, self.right = l, r
a, b = Node(None, None), Node(None, None)
root = Node(a, b)
assert invert(root) is root and root.left is b and root.right is a
"""
        ],
    ),
    (
        "def f(x, s, d, y): x.sort(); s.add(9); d['k'] = 1; y.append(2)",
        [
            """
x, s, d, y = [3, 1], {1}, {}, []
f(x, s, d, y=y)
assert (x, s, d, y) == ([1, 3], {1, 9}, {'k': 1}, [2])
"""
        ],
    ),
    ("def twice(f, x): return f(f(x))", ["assert twice(lambda x: x + 1, 1) == 3 and twice(str, 1) == '1'"]),
    ("def adder(n): return lambda x: x + n", ["assert adder(2)(3) == 5"]),
    (
        """
def count(n):
    for i in range(n): yield i
""",
        ["assert list(count(3)) == [0, 1, 2]", "assert next(count(2)) == 0"],
    ),
    (
        """
class Bag:
    def __init__(self): self.d = {}
    def __len__(self): return 2
    def __getitem__(self, k): return k * 2
    def __iter__(self): return iter([1, 2])
    def __str__(self): return 'bag'
""",
        [
            """
b = Bag()
assert len(b) == 2 and b[4] == 8 and list(b) == [1, 2] and 2 in b and str(b) == 'bag' and b
""",
            """
b.x = [1]
assert b.x == [1] and b.d == {}
""",
        ],
    ),
    (
        """
def f(x):
    if x < 0: raise ValueError('negative', x)
    return x
""",
        [
            """
try:
    f(-1)
    assert False
except ValueError as error:
    assert error.args == ('negative', -1)
"""
        ],
    ),
    (
        """
class Mine(KeyError): pass
def f(): raise Mine('k')
""",
        [
            """
try:
    f()
    assert False
except KeyError: pass
"""
        ],
    ),
    (
        "def f(d, k): return d[k]",
        [
            """
for bad in (KeyError, IndexError):
    try: f({} if bad is KeyError else [], 0)
    except bad: continue
    assert False
"""
        ],
    ),
    (
        "def f(x): return x",
        [
            """
import fractions, decimal, collections, datetime
for x in (None, True, 2**200, -1.5, 1j, 'é\\ud800', b'b', (1, (2,)), {1, 2}, frozenset({3}), {(1, 2): [3]},
          range(3), bytearray(b'x'), fractions.Fraction(1, 3), decimal.Decimal('1.10'),
          collections.deque([1], 3), collections.Counter('aab'), collections.OrderedDict(a=1),
          datetime.date(2024, 1, 2), datetime.timedelta(1), float('inf')):
    assert f(x) == x and type(f(x)) is type(x), x
"""
        ],
    ),
    (
        """
import collections
def f(): return collections.namedtuple('P', 'a b')(1, 2)
""",
        ["assert f() == (1, 2)"],
    ),
    ("LIMIT = 7", ["assert LIMIT == 7"]),
    ("def f(): print('debug ' * 100000); return 1", ["assert f() == 1"]),
    (
        """
if __name__ == '__main__':
    raise SystemExit(1)
def f(): return 1
""",
        ["assert f() == 1"],
    ),
    (
        """
from dataclasses import dataclass
@dataclass
class P:
    x: int
def f(): return P(3).x
""",
        ["assert f() == 3"],
    ),
    (
        """
import threading
def f():
    r = []
    t = threading.Thread(target=r.append, args=(1,)); t.start(); t.join()
    return r
""",
        ["assert f() == [1]"],
    ),
]

# A pass can only come from the tests' own process. Each of these tries to get one without being able to double.
FORGERIES = {
    "exit": """
import sys
sys.exit(0)
""",
    "exit in the call": """
import sys
def double(x): sys.exit(0)
""",
    "exit at once": """
import os
os._exit(0)
""",
    "exit at once in the call": """
import os
def double(x): os._exit(0)
""",
    "exit by signal": """
import os, signal
def double(x): os.kill(os.getpid(), signal.SIGTERM)
""",
    "exit when all ends": """
import atexit, os
atexit.register(os._exit, 0)
def double(x): return 0
""",
    "exit in a thread": """
import threading, os
def double(x): threading.Thread(target=os._exit, args=(0,)).start()
""",
    "say so": """
print('passed 0 ')
def double(x):
    print('passed'); return 0
""",
    "say so everywhere": """
import os
for fd in range(64):
    for word in (b'passed 0 ', b'0' * 32 + b' passed 0 '):
        try: os.write(fd, word)
        except OSError: pass
def double(x): return 0
""",
    "an object that equals everything": """
class Yes:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 4
    def __bool__(self): return True
def double(x): return Yes()
""",
    "numbers that equal everything": """
class Yes(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def double(x): return Yes(5)
""",
    "a list that equals everything": """
class Yes(list):
    def __eq__(self, other): return True
def double(x): return Yes([1])
""",
    "an object that calculates like 4": """
class Yes:
    def __getattr__(self, name): return lambda *a: 4
    __sub__ = __rsub__ = __abs__ = __float__ = __index__ = __int__ = __neg__ = lambda *a: Yes()
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = lambda *a: True
def double(x): return Yes()
""",
    "an object of another class": """
class Yes:
    __class__ = int
    def __eq__(self, o): return True
def double(x): return Yes()
""",
    "a function that equals everything": """
class M(type):
    def __eq__(s, o): return True
    def __instancecheck__(s, o): return True
    __hash__ = None
class Yes(metaclass=M): pass
def double(x): return Yes
""",
    "other built-ins": """
import builtins
for name in ('isinstance', 'len', 'abs', 'all', 'any', 'sorted', 'set', 'bool', 'print'):
    setattr(builtins, name, lambda *a, **k: True)
builtins.AssertionError = Warning
def double(x): return 0
""",
    "other comparisons": """
import operator, math
operator.eq = math.isclose = lambda *a, **k: True
isclose = set = sorted = abs = len = lambda *a, **k: 4
def double(x): return 0
""",
    "names that were not asked for": """
import sys
main = sys.modules['__main__']
send = main.Peer.send
def more(self, message):
    if message[0] == 'value': message[1].update(abs=lambda x: 0, set=lambda x: 0, isinstance=lambda *a: True)
    send(self, message)
main.Peer.send = more
def double(x): return 0
""",
    "answers in advance": """
import os, sys
main = sys.modules['__main__']
peer = main.Peer()
for value in ({'double': 4}, 4, True, {}): peer.send(('value', value, {}))
for kind in ('loaded', 'passed', 'names'): peer.send((kind, 0, 0))
def double(x): return 0
""",
    "noise on the channel": """
import os
os.write(3, os.urandom(5000))
def double(x): return 0
""",
    "a message of any length": """
import os
os.write(3, b'\\xff' * 8)
while True: os.write(3, bytes(1 << 16))
""",
    "no answer": """
import os
os.close(3)
def double(x): return 0
""",
    "answers that change what was passed": """
import sys
main = sys.modules['__main__']
main.Peer.perform = lambda self, *a: (0, {0: 0, -1: [4], 'x': {}, None: 1})
def double(x): return 0
""",
    "trace the tests": """
import sys, threading
def trace(frame, event, argument):
    frame.f_globals['check'] = frame.f_globals['abs'] = lambda x: 0
    return trace
sys.settrace(trace); sys.setprofile(trace); threading.settrace(trace)
def double(x): return 0
""",
    "search the frames": """
import sys
def double(x):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if isinstance(value, str) and 'assert' in value: return 4
        frame = frame.f_back
    return 0
""",
    "search the memory": """
import gc
found = [o for o in gc.get_objects() if ''.join(['assert', ' dou', 'ble']) in repr(o)[:100_000]]
def double(x): return 4 if found else 0
""",
    "search the memory, all of it": """
import re
def double(x):
    for line in open('/proc/self/maps'):
        if 'r' in line.split()[1] and '[v' not in line:
            a, b = (int(n, 16) for n in line.split()[0].split('-'))
            with open('/proc/self/mem', 'rb') as f:
                f.seek(a)
                try: data = f.read(b - a)
                except OSError: continue
            if b''.join([b'assert', b' double(', b'2)']) in data: return 4
    return 0
""",
    "search the files": """
import os
def double(x):
    for base, _, files in os.walk('.'):
        for name in files:
            if b''.join([b'double(', b'2)']) in open(os.path.join(base, name), 'rb').read(): return 4
    return 0
""",
    "overwrite the harness": """
import os
for name in os.listdir('.'):
    try:
        os.chmod(name, 0o777); open(name, 'w').write('')
        os.rename(name, 'x')
    except OSError: pass
def double(x): return 0
""",
    "stop every other process": """
import os, signal
for pid in range(1, 500):
    if pid != os.getpid():
        try: os.kill(pid, signal.SIGSTOP)
        except OSError: pass
def double(x): return 0
""",
    "raise what the tests might catch": "def double(x): raise StopIteration",
    "raise to the top": "def double(x): raise GeneratorExit",
    "raise nothing known": """
class E(BaseException): pass
def double(x): raise E
""",
    "an exception that passes": """
class AssertionError(Warning): pass
def double(x): raise AssertionError
""",
}

# What a program tries to get at by way of a function `f` and an object `o` of the tests.
THEFTS = {
    "globals": "f.__globals__['secret']",
    "globals by request": "f._peer.ask('get', f, '__globals__')['secret']",
    "code": "f._peer.ask('get', f, 'func_code')",
    "items": "f._peer.ask('item', f, 0)",
    "class": "f._peer.ask('get', o, '__class__')",
    "private": "o._hidden",
    "dict": "f._peer.ask('get', o, '__dict__')",
    "method's function": "o.method.__func__.__globals__",
    "method's function by request": "f._peer.ask('get', o.method, '__func__')",
    "text": "f._peer.ask('repr', f)",
    "built-ins": "f._peer.decode(b'g' + f._peer.encode('eval'))('1') and 1 / 0",
    "built-ins at the tests' end": """
[setattr(f._peer, 'encode_object', f._peer.name_builtin), f._peer.call(eval, ('40 + 2',), {})][1]
""",
    "by name": "f._peer.ask('call', 'eval', ('1',), {})",
    "import": "f._peer.ask('import', 'os')",
    "another number": "[f._peer.call(type(f)(f._peer, n), (), {}) for n in range(2, 9)]",
}
