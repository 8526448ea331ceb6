"""Values of short LaTeX expressions: exact where they are rational, floating where not. No computer algebra.

Two expressions whose values differ are different, which settles most comparisons in microseconds; that two floating
values agree proves nothing, and is left to `r1jax.rewards.symbolic`.
"""

import cmath
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

MAX_BITS = 20_000  # of a numerator or denominator: 7^{2021} fits, a tower of powers does not
MAX_FACTORIAL = 200

Number = Fraction | complex


class Unreadable(Exception):
    """The text is outside this small grammar, which says nothing about what it means."""


class Undefined(Exception):
    """The expression has no value: it divides by zero."""


class TooLarge(Exception):
    """The value has more digits than an answer has: a tower of powers."""


FUNCTIONS = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "exp": cmath.exp, "ln": cmath.log,
    "sec": lambda z: 1 / cmath.cos(z), "csc": lambda z: 1 / cmath.sin(z), "cot": lambda z: 1 / cmath.tan(z),
    "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan,
    "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh,
}  # fmt: skip


@dataclass(frozen=True)
class Expression:
    """A parsed expression: nested tuples, each an operation and its operands."""

    tree: tuple
    symbols: frozenset[str]

    def value(self, salt: int = 0) -> tuple[Number, float]:
        """Its value and the largest magnitude on the way there, which bounds a floating value's error.

        A symbol stands for a fixed number between 0.5 and 1.5 that `salt` decides. Raises `Undefined`, `TooLarge`, and
        `Unreadable` where the value is a matter of convention.
        """
        point = {s: complex(0.5 + zlib.crc32(f"{salt} {s}".encode()) / 2**32) for s in self.symbols}
        evaluation = _Evaluation(point)
        try:
            value = evaluation.of(self.tree)
        except OverflowError:
            raise TooLarge from None
        except (ZeroDivisionError, ValueError):
            raise Undefined from None
        if isinstance(value, complex) and not cmath.isfinite(value):
            raise TooLarge
        return value, evaluation.largest


@dataclass
class _Evaluation:
    point: Mapping[str, complex]
    largest: float = field(default=0.0)

    def of(self, node: tuple) -> Number:
        value = getattr(self, "_" + node[0])(*node[1:])
        if isinstance(value, Fraction):
            if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
                raise TooLarge
            magnitude = abs(value)
            self.largest = max(self.largest, float(magnitude) if magnitude < 10**300 else 1e300)
        else:
            self.largest = max(self.largest, abs(value))
        return value

    def pair(self, a: tuple, b: tuple) -> tuple[Number, Number]:
        x, y = self.of(a), self.of(b)
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            return x, y
        return complex(x), complex(y)

    def _number(self, value: Fraction) -> Number:
        return value

    def _constant(self, value: complex) -> Number:
        return value

    def _symbol(self, name: str) -> Number:
        return self.point[name]

    def _numeral(self, digits: str, base: int) -> Number:
        """A numeral is not its value: who was asked for base 8 has not answered with base 10."""
        if not 2 <= base <= 36:
            raise Undefined
        return complex(int(digits, base), 1e6 + base)

    def _negate(self, a: tuple) -> Number:
        return -self.of(a)

    def _add(self, a: tuple, b: tuple) -> Number:
        x, y = self.pair(a, b)
        return x + y

    def _subtract(self, a: tuple, b: tuple) -> Number:
        x, y = self.pair(a, b)
        return x - y

    def _multiply(self, a: tuple, b: tuple) -> Number:
        x, y = self.pair(a, b)
        return x * y

    def _divide(self, a: tuple, b: tuple) -> Number:
        x, y = self.pair(a, b)
        return x / y

    def _degrees(self, a: tuple) -> Number:
        return complex(self.of(a)) * math.pi / 180

    def _absolute(self, a: tuple) -> Number:
        value = self.of(a)
        return abs(value) if isinstance(value, Fraction) else complex(abs(value))

    def _factorial(self, a: tuple) -> Number:
        n = self._integer(a)
        if n < 0:
            raise Undefined
        if n > MAX_FACTORIAL:
            raise TooLarge
        return Fraction(math.factorial(n))

    def _binomial(self, a: tuple, b: tuple) -> Number:
        n, k = self._integer(a), self._integer(b)
        if not 0 <= k <= n:
            raise Unreadable
        if n > 10 * MAX_FACTORIAL:
            raise TooLarge
        return Fraction(math.comb(n, k))

    def _integer(self, node: tuple) -> int:
        value = self.of(node)
        if not isinstance(value, Fraction) or value.denominator != 1:
            raise Unreadable  # of a letter, or a gamma function
        return int(value)

    def _power(self, a: tuple, b: tuple) -> Number:
        x, y = self.of(a), self.of(b)
        if isinstance(y, Fraction) and y.denominator == 1:
            n = int(y)
            if isinstance(x, Fraction):
                if abs(n) * max(x.numerator.bit_length() - 1, x.denominator.bit_length() - 1) > MAX_BITS:
                    raise TooLarge
                if abs(x) in (0, 1):
                    if x == 0 and n <= 0:
                        raise Undefined
                    return x ** (n % 2) if x != 0 else Fraction(0)
            return x**n
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            return self._rational_power(x, y)
        if not isinstance(x, complex) and x < 0:
            raise Unreadable
        return complex(x) ** complex(y)

    def _root(self, a: tuple, degree: tuple) -> Number:
        x, n = self.of(a), self.of(degree)
        if not isinstance(n, Fraction) or n.denominator != 1 or not 2 <= n <= 100:
            raise Unreadable
        if isinstance(x, Fraction):
            return self._rational_power(x, 1 / n)
        return x ** complex(1 / n)

    def _rational_power(self, x: Fraction, y: Fraction) -> Number:
        if x < 0:
            if y == Fraction(1, 2):
                root = self._rational_power(-x, y)
                return complex(0, float(root.real if isinstance(root, complex) else root))
            raise Unreadable  # \sqrt[3]{-8}: -2, or the principal root
        if y.denominator <= 100 and abs(y.numerator) <= 100:
            roots = _exact_root(x.numerator, y.denominator), _exact_root(x.denominator, y.denominator)
            if None not in roots:
                return self._power(("number", Fraction(*roots)), ("number", Fraction(y.numerator)))
        return complex(float(x) ** float(y))

    def _function(self, name: str, a: tuple) -> Number:
        return FUNCTIONS[name](complex(self.of(a)))

    def _log(self, a: tuple, base: tuple) -> Number:
        return cmath.log(complex(self.of(a))) / cmath.log(complex(self.of(base)))


def _exact_root(n: int, degree: int) -> int | None:
    """The integer whose power n >= 0 is, or None."""
    if degree == 2:
        root = math.isqrt(n)
    elif n < 2**53:
        root = round(n ** (1 / degree))
    else:
        return None
    return root if root**degree == n else None
