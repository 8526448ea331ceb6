"""Reads short LaTeX and plain expressions; what is ambiguous, or beyond a small grammar, is left to others."""

import math
import re
from fractions import Fraction

from r1jax.rewards.expressions import FUNCTIONS, Expression, Unreadable

_MAX_TOKENS = 150  # no tree is then too deep to evaluate
_MAX_DEPTH = 30

_TOKEN = re.compile(
    r"(?P<number>[0-9]+\.[0-9]+|\.[0-9]+|[0-9]+\.(?=\\overline)|[0-9]+)"
    r"|(?P<command>\\[A-Za-z]+)|(?P<symbol>[A-Za-z])|(?P<other>[-+*/^_!(){}|\[\]])|(?P<space>\s+)"
)
GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega hbar ell".split()
)
_VARIABLES = frozenset("abckmnrtxyz")  # letters that name no function
_PRODUCT = ("*", "\\cdot", "\\times")


def parse_expression(text: str) -> Expression:
    """Reads a LaTeX or plain expression in numbers, letters, sums, products, powers, roots and elementary functions.

    Raises `Unreadable` for anything else, and wherever two readings are possible.
    """
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or len(tokens) > _MAX_TOKENS:
            raise Unreadable
        if match.lastgroup != "space":
            tokens.append(match.group())
        elif tokens and tokens[-1][-1].isdigit() and text[match.end() : match.end() + 1].isdigit():
            tokens.append(" ")  # 3 1/2 is not 31/2
        at = match.end()
    parser = _Parser(tokens)
    tree = parser.sum()
    if parser.next() is not None:
        raise Unreadable
    return Expression(tree, frozenset(parser.symbols))


class _Parser:
    def __init__(self, tokens: list[str]):
        self.tokens, self.at, self.depth = tokens, 0, 0
        self.symbols: set[str] = set()
        self.in_function = 0

    def next(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self) -> str:
        token = self.next()
        if token is None:
            raise Unreadable
        self.at += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise Unreadable

    def sum(self) -> tuple:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise Unreadable
        sign = self.take() if self.next() in ("+", "-") else "+"
        node = self.product()
        if sign == "-":
            node = ("negate", node)
        while self.next() in ("+", "-"):
            operation = "add" if self.take() == "+" else "subtract"
            node = (operation, node, self.product())
        self.depth -= 1
        return node

    def product(self) -> tuple:
        node = factor = self.power()
        divided = False
        while True:
            token = self.next()
            if token in _PRODUCT:
                self.take()
                factor = self.signed_power()
                node = ("multiply", node, factor)
            elif token in ("/", "\\div"):
                self.take()
                factor, divided = self.signed_power(), True
                node = ("divide", node, factor)
            elif self._starts_factor(token):
                if divided or (token == "(" and factor[0] == "symbol" and factor[1] not in _VARIABLES):
                    raise Unreadable  # 1/2x: half of x? f(x): f times x?
                factor = self.power()
                node = ("multiply", node, factor)
            else:
                return node

    def signed_power(self) -> tuple:
        if self.next() == "-":
            self.take()
            return ("negate", self.power())
        return self.power()

    def _starts_factor(self, token: str | None) -> bool:
        if token is None:
            return False
        if token[0] == "\\":
            name = token[1:]
            if name in ("frac", "sqrt", "binom", "pi", "ln", "log") or name in GREEK or name in FUNCTIONS:
                return True
            raise Unreadable
        return token.isalpha() or token in ("(", "{")

    def power(self) -> tuple:
        node = self.atom()
        while True:
            token = self.next()
            if token == "^":
                self.take()
                if self._degrees():
                    node = ("degrees", node) if self.in_function else node
                else:
                    node = ("power", node, self.exponent())
            elif token == "!":
                self.take()
                node = ("factorial", node)
            else:
                return node

    def exponent(self) -> tuple:
        """a^b^c is a^{b^c}, as in programs; TeX refuses it."""
        node = self.argument(whole_number=True)
        if self.next() != "^":
            return node
        self.take()
        return ("power", node, self.exponent())

    def _degrees(self) -> bool:
        circ = self.tokens[self.at : self.at + 1] == ["\\circ"]
        braced = self.tokens[self.at : self.at + 3] == ["{", "\\circ", "}"]
        self.at += 3 if braced else circ
        return circ or braced

    def argument(self, whole_number: bool = False) -> tuple:
        """What a command or a `^` applies to: a group, or the next token, of a number its first digit as in TeX."""
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise Unreadable
        node = self._argument(whole_number)
        self.depth -= 1
        return node

    def _argument(self, whole_number: bool) -> tuple:
        token = self.take()
        if token == "{":
            node = self.sum()
            self.expect("}")
            return node
        if token == "-" and whole_number:
            return ("negate", self.argument(whole_number=True))
        if token == "(" and whole_number:
            node = self.sum()
            self.expect(")")
            return node
        if token.isdigit():
            if len(token) > 1 and not whole_number:
                self.at -= 1
                self.tokens[self.at] = token[1:]
                token = token[0]
            return ("number", Fraction(token))
        self.at -= 1
        if token.isalpha() or (token[0] == "\\" and (token == "\\pi" or token[1:] in GREEK)):
            return self.atom()
        if token in ("\\sqrt", "\\frac"):
            return self.atom()
        raise Unreadable

    def atom(self) -> tuple:
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            return self.number(token)
        if token.isalpha():
            return self.symbol(token)
        if token in ("(", "{", "|"):
            node = self.sum()
            self.expect({"(": ")", "{": "}", "|": "|"}[token])
            return ("absolute", node) if token == "|" else node
        if token[0] != "\\":
            raise Unreadable
        name = token[1:]
        if name == "pi":
            return ("constant", complex(math.pi))
        if name in GREEK:
            return self.symbol(name)
        if name == "frac":
            return ("divide", self.argument(), self.argument())
        if name == "binom":
            return ("binomial", self.argument(), self.argument())
        if name == "sqrt":
            return self.root()
        if name in FUNCTIONS or name == "log":
            return self.function(name)
        raise Unreadable

    def number(self, token: str) -> tuple:
        if self.next() == "\\overline":
            if "." not in token:
                raise Unreadable
            return self.repeating(token)
        if self.next() == "_":  # 52_8: a numeral in base 8
            self.take()
            base = self.argument(whole_number=True)
            if base[0] != "number":
                raise Unreadable
            return ("numeral", token, int(base[1]))
        node = ("number", Fraction(token))
        if self.next() == " ":
            self.take()
            return self.mixed(node, self.plain_fraction())
        if self.next() == "\\frac":
            self.take()
            return self.mixed(node, ("divide", self.argument(), self.argument()))
        return node

    def mixed(self, whole: tuple, part: tuple) -> tuple:
        """A number and a fraction: the sum where the fraction is a proper one of integers, else nobody knows."""
        numerator, denominator = part[1], part[2]
        integers = all(n[0] == "number" and n[1].denominator == 1 for n in (whole, numerator, denominator))
        if integers and 0 < numerator[1] < denominator[1]:
            return ("add", whole, part)
        if numerator[0] == "number" and denominator[0] == "number":
            raise Unreadable
        return ("multiply", whole, part)

    def plain_fraction(self) -> tuple:
        numerator = self.take()
        self.expect("/")
        denominator = self.take()
        if not (numerator.isdigit() and denominator.isdigit()):
            raise Unreadable
        return ("divide", ("number", Fraction(numerator)), ("number", Fraction(denominator)))

    def repeating(self, token: str) -> tuple:
        self.take()
        self.expect("{")
        digits = self.take()
        self.expect("}")
        if not digits.isdigit():
            raise Unreadable
        decimals = len(token.partition(".")[2])
        tail = Fraction(int(digits), 10**decimals * (10 ** len(digits) - 1))
        return ("number", Fraction(token.rstrip(".") or "0") + tail)

    def symbol(self, name: str) -> tuple:
        if self.next() == "_":
            self.take()
            name += "_" + "".join(self._subscript())
        elif name in ("i", "e"):
            return ("constant", 1j if name == "i" else complex(math.e))
        self.symbols.add(name)
        return ("symbol", name)

    def _subscript(self) -> list[str]:
        token = self.take()
        if token != "{":
            return [token]
        inner = []
        while (token := self.take()) != "}":
            if token == "{":
                raise Unreadable
            inner.append(token)
        return inner

    def root(self) -> tuple:
        degree = ("number", Fraction(2))
        if self.next() == "[":
            self.take()
            degree = self.sum()
            self.expect("]")
        token = self.next()
        if token is not None and token.isdigit() and len(token) > 1:  # \sqrt10: of one, or of ten
            raise Unreadable
        if token == "(":  # sqrt(3), with a backslash
            self.take()
            node = self.sum()
            self.expect(")")
        else:
            node = self.argument()
        return ("root", node, degree)

    def function(self, name: str) -> tuple:
        base, exponent = None, None
        if name == "log":
            if self.next() != "_":  # base 10, or base e
                raise Unreadable
            self.take()
            base = self.argument()
        if self.next() == "^":
            self.take()
            exponent = self.argument()
            if exponent[0] != "number" or exponent[1] < 0:  # \sin^{-1} is the inverse
                raise Unreadable
        self.in_function += 1
        if self.next() in ("(", "{"):
            closing = ")" if self.take() == "(" else "}"
            inner = self.sum()
            self.expect(closing)
            if self.next() == "^":  # \sin(x)^2: of the sine, or of x
                raise Unreadable
        else:
            inner = self.bare_argument()
        self.in_function -= 1
        node = ("log", inner, base) if base is not None else ("function", name, inner)
        return ("power", node, exponent) if exponent is not None else node

    def bare_argument(self) -> tuple:
        """The argument of a function written without brackets: a product of what follows, up to another function."""
        node = self.power()
        while True:
            token = self.next()
            if token in ("(", "{", "/", "\\div", *_PRODUCT):  # sin x(y + 1), sin x/2, sin x * 2
                raise Unreadable
            if token is None or not (token.isalpha() or token == "\\pi" or token[1:] in GREEK):
                return node
            node = ("multiply", node, self.power())
