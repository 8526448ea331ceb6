"""The accuracy reward for mathematics: what it credits, and the ways to be paid without the answer."""

import time

import pytest

from r1jax.rewards import get_reward, math_accuracy

PROMPT = r"Add 2 and 3. Put the answer in \boxed{}, for example \boxed{5}, or say that the answer is 5."


def score(completion, gold="5", prompt="What is 2 + 3?"):
    return math_accuracy([prompt], [completion], answer=[gold], level=[1])[0]


def test_the_reward_by_name():
    assert get_reward("math_accuracy") is math_accuracy
    assert math_accuracy([], [], answer=[]) == []
    with pytest.raises(ValueError):
        math_accuracy(["p"], ["5", "6"], ["5", "6"])


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        (r"\boxed{1/2}", "0.5"),
        (r"The answer is $\frac12$.", r"\frac{1}{2}"),
        (r"<think>\boxed{9}</think> Thus $\boxed{27}$.", 27.0),
        (r"The final answer is $\boxed{25}$.", "025"),
        (r"\boxed{25}", 25),
        ("<think>2 + 3</think><answer>5</answer>", "5"),
        ("... = 72 clips.\n#### 72", "She sold 48/2 = 24.\n#### 72"),
        (r"$\boxed{x=-1}$ or $\boxed{x=3}$", r"\{3,-1\}"),
        (r"$\boxed{x+1}$, that is $\boxed{1 + x}$", "x+1"),
        ("<answer>(B)</answer>", "B"),
        (r"\boxed{18\text{ students}}", "18"),
    ],
)
def test_right(completion, gold):
    assert score(completion, gold) == 1.0


@pytest.mark.parametrize("gold", ["", r"\frac{", "I do not know the answer to this", None, float("nan")])
def test_a_gold_answer_that_does_not_parse_gives_no_score(gold):
    for completion in (r"\boxed{5}", "no answer", "", rf"\boxed{{{gold}}}", str(gold)):
        assert score(completion, gold) is None
    assert math_accuracy(["p"] * 3, [r"\boxed{5}"] * 3, ["5", gold, "6"]) == [1.0, None, 0.0]


@pytest.mark.parametrize(
    "completion",
    [
        PROMPT,
        f"  {PROMPT}\n\n",
        PROMPT.replace(" ", "\n"),
        f"{PROMPT}\nLet me think about it. " * 3,
        f"{PROMPT} \\boxed{{6}}",
        r"for example \boxed{5}, or say that",  # a part of it
        "or say that the answer is 5.",
    ],
)
def test_the_prompt_does_not_leak(completion):
    assert score(completion, prompt=PROMPT) == 0.0


def test_an_answer_after_the_prompt_counts():
    assert score(f"{PROMPT} \\boxed{{6}}", "6", PROMPT) == 1.0
    assert score(r"\boxed{5}", prompt=PROMPT) == 1.0
    assert score(f"{PROMPT} Well: \\boxed{{5}}", prompt=PROMPT) == 1.0
    assert score(r"\sqrt{25}", prompt="p") == 1.0  # a letter that is all of a prompt is no echo


SHOPPING = [
    r"\boxed{4} \boxed{5}", r"\boxed{5} \boxed{4}", r"\boxed{5} or \boxed{6}", r"\boxed{5}\boxed{6}", r"\boxed{4, 5}",
    r"\boxed{5 \text{ or } 6}", r"\boxed{5; 6}", r"\boxed{\{4,5\}}", r"\boxed{[5,6]}", r"\boxed{(5,6)}",
    "<answer>5</answer><answer>6</answer>", "<answer>6</answer><answer>5</answer>", "<answer>5 or 6</answer>",
    r"<answer>5</answer> \boxed{6}", r"<answer>6</answer> \boxed{5}", r"<answer>\boxed{5} \boxed{6}</answer>",
    "Final Answer: \\boxed{5}\nFinal Answer: \\boxed{6}", r"\boxed{5}</think>\boxed{6}",
    r"\boxed{5}</think> I cannot tell.", r"<think>\boxed{5}", "1, 2, 3, 4, 5", "1 or 2 or 3 or 4 or 5",
    "It is 4, 5 or 6", "one of 1, 2, 3, 4, 5", "4? 5?", r"\boxed{\pm 5}", r"\boxed{5 \pm 1}", r"\boxed{5 \lor 6}",
    r"\boxed{x=5 \text{ or } x=6}", r"\boxed{x \in \{5,6\}}", r"\boxed{[0,10]}", r"\boxed{x>0}", r"\boxed{x \ne 6}",
    r"\boxed{x \ge 5}", r"\boxed{4.9 < x < 5.1}", r"\boxed{5:6}", r"\boxed{5 \to 6}", r"\boxed{5 \ne 6}",
    r"\boxed{5 \mid 6}", r"\boxed{5 \cup 6}", r"\boxed{1 2 3 4 5}", r"\boxed{5 = 6}",
    r"\boxed{\begin{pmatrix}5\\6\end{pmatrix}}", r"\boxed{\begin{cases}5\\6\end{cases}}", r"\boxed{5 \equiv 5 \pmod 7}",
    r"\boxed{5 \text{ (not 6)}}", r"\boxed{\text{5, or maybe 6}}", "5 or anything", "not 5",
    r"\boxed{5 \text{ is wrong}}", r"\boxed{x \equiv 0 \pmod{6}, 5}",
]  # fmt: skip
WILDCARDS = [
    "any number", "x", "*", ".*", r"\dots", "...", "?", "_", "%", r"\ldots", r"\forall x", "all real numbers",
    r"\mathbb{R}", r"(-\infty,\infty)", r"\text{any}", "anything", r"\text{everything}", "$x$", "n", r"5\dots",
    r"5, \dots", r"\emptyset", r"\text{the answer}", "gold", "answer", r"\star", r"\square", "None", "True", "...5...",
    r"\phantom{5}", r"\not 5", r"\color{white}{5}", r"\cancel{5}6", r"\lnot 5", "five", r"\text{cinq}",
]  # fmt: skip
HIDDEN = [
    "\u200b5", "5\u200b", "5\u2060", "\ufeff5", "5\u00ad", "\u202e5", "5\U000e0035", "5\u200d", "\\text{5\u200b}",
    "5\u0336", "\u0665", "𝟓", "५", "⑤", "Ⅴ", "5\x00", "5\u3164", "4\u200b2",
]  # fmt: skip
UNDEFINED = [
    r"\frac{5}{0}", "5/0", "0/0", "5/(1-1)", r"\frac{1}{x-x}", "0^0", "0^{-1}", r"\log_1 5", r"\infty", r"-\infty",
    r"\infty-\infty+5", "nan", "inf", "NaN", r"\text{nan}", "5+nan", r"5\infty", r"\tan(\pi/2)", r"\ln 0",
    r"5+0\cdot\infty", r"\sqrt[0]{5}", r"\frac{5\cdot 0}{0}", "(-1)!", r"5^{1/0}",
]  # fmt: skip
HUGE = [
    "9**9**9**9", "9^{9^{9^{9}}}", "2^{2^{2^{2^{2^{2}}}}}", "10^{10^{10}}", "(10^{10})!", "100000!", "((((5!)!)!)!)!",
    "5!!!!!!!!", "9^9^9^9", "1/9**9**9", "5 + 10^{-10^{10}}", r"\binom{10^{9}}{5\cdot 10^{8}}", "x^{x^{x^{x^{x}}}}",
    r"\sqrt[1000000]{5}", r"\sin(10^{10^{10}})", "5 thousand", "5 million",
]  # fmt: skip
SLOW = [  # for algebra, if it gets them
    r"\sum_{i=1}^{10^{100}} i", r"\prod_{k=1}^{10^{9}} k", r"\int_0^{10^{100}} x^x dx", r"\lim_{x \to \infty} x^x",
    "(a+b+c+d+e)^{500}-x",
]  # fmt: skip
PROGRAMS = [
    r"\def\x{\x\x}\x", r"\newcommand{\a}{\a\a}\a", r"\input{/etc/passwd}", r"\include{secret}",
    r"\write18{touch /tmp/x}", r"\catcode`\@=11", r"\expandafter\csname x\endcsname", r"\loop\iftrue\repeat",
    r"\let\x=5", r"\renewcommand{\boxed}{5}", r"\immediate\openout1=x", "__import__('os').system('echo 5')",
    "exec('print(5)')", "eval('5')", "print(5)", "os.system('x')", "().__class__.__bases__", "{{5}}'; DROP TABLE",
    "`id`", "$(id)", "%s%s%s%n", r"\text{__import__('os')}", "5 if x else 6", "Symbol('x')",
    "0x5", "0b101", "5e0x",
]  # fmt: skip
LARGE = [
    "9" * 10_000_000, r"\boxed{" + "9" * 10_000_000 + "}", "0." + "3" * 1_000_000, "-" * 1_000_000 + "5",
    "(" * 100_000 + "5" + ")" * 100_000, "{" * 200_000 + "5" + "}" * 200_000,
    r"\boxed{" + "(" * 400 + "5" + ")" * 400 + "}", r"\boxed{" + "{" * 400 + "5" + "}" * 400 + "}",
    r"\frac{" * 2000 + "5", r"\boxed{" + r"\frac{1}{" * 90 + "5" + "}" * 91,
    r"\boxed{" + r"\sqrt{" * 100 + "25" + "}" * 101, r"\boxed{" + r"\left(" * 100 + "5" + r"\right)" * 100 + "}",
    r"\boxed{" * 50_000, r"\boxed{" * 20_000 + "5" + "}" * 20_000, "$" * 100_000, r"\[" * 50_000, "<answer>" * 50_000,
    "<think>" * 100_000 + r"\boxed{5}", "answer is " * 50_000, "final answer: " * 50_000 + "6", "1," * 100_000 + "5",
    r"\boxed{" + "1," * 400 + "5}", r"\boxed{" + "5+" * 400 + "5}", r"\boxed{" + "|" * 500 + "5" + "|" * 400 + "}",
    r"\boxed{" + r"\cos" * 200 + " x}", r"\boxed{" + "5" * 999 + "}", r"\boxed{" + "x" * 999 + "}",
    r"\boxed{5} " * 2 + r"\boxed{6}",
]  # fmt: skip
NOTHING = [
    "", "   ", "\n", "\0", "\\", "{", "}", r"\boxed", r"\boxed{", r"\boxed{}", r"\boxed{ }", r"\boxed{\,}",
    r"\boxed{?}", r"\boxed{\boxed{}}", r"\fbox{}", "<answer></answer>", "<answer>", "$$", r"\(\)", "####", "#### ", "=",
    "+", "5-",
]  # fmt: skip
NEARLY = [
    "5%%", "5%5", r"50\%", r"5\%6", "5_8", "12_3", "101_2", "4.9999995", "5.0000004", "4.99999", "5.00001",
    r"5.\overline{1}", "55", "5 5", r"5\,5", "--6", "=6", "6=5=6", "x-5=0", "x+5=10", "x^2=25", r"6\\5", "5&6",
    r"\text{5}\text{6}", "5'", r"\hat{5}6", r"\sqrt{5^2+1}", "5x", "5i", r"5\pi", "5e", r"5+0i+\epsilon",
    r"5\cdot x^0 \cdot y", "f(5)", "f(x)=5x", "5!", r"\max(5,6)", "5,0", "5,5", "5 hundred", r"5^\circ C 6",
    "5 cm or 6 cm", r"\lfloor 6.9 \rfloor", r"\underline{6}5",
]  # fmt: skip
BARE_OR_BOXED = WILDCARDS + HIDDEN + UNDEFINED + HUGE + PROGRAMS + NEARLY


def test_there_are_enough_of_them():
    assert len({*SHOPPING, *LARGE, *NOTHING, *SLOW, *BARE_OR_BOXED}) >= 250


@pytest.mark.parametrize(
    "group", ["SHOPPING", "WILDCARDS", "HIDDEN", "UNDEFINED", "HUGE", "PROGRAMS", "LARGE", "NOTHING", "NEARLY", "SLOW"]
)
def test_nothing_adversarial_is_right(group):
    """Never credited, never an error, each in bounded time; and the grader answers the next."""
    texts = globals()[group]
    if group not in ("SHOPPING", "LARGE", "NOTHING", "SLOW"):
        texts = texts + [rf"\boxed{{{text}}}" for text in texts]
    for text in texts:
        start = time.monotonic()
        assert score(text) == 0.0, text[:100]
        assert time.monotonic() - start < 6, text[:100]  # the deadline of 2 s, and a new worker
    assert score(r"\boxed{x+x+1}", "2x+1") == 1.0


@pytest.mark.parametrize("gold", [r"\sqrt{2}", "x^2+1", "(1,2)", "[0,1)", "y=2x+3", r"\{1,2\}", "A", r"\text{Evelyn}"])
def test_nothing_adversarial_is_any_other_answer(gold):
    texts = [text for text in BARE_OR_BOXED if text not in ("(-\\infty,\\infty)", "answer")]
    scores = math_accuracy(["p"] * len(texts), [rf"\boxed{{{text}}}" for text in texts], [gold] * len(texts))
    assert [text for text, value in zip(texts, scores, strict=True) if value != 0.0] == []


@pytest.mark.parametrize(
    "answer, gold",
    [
        ("x+3=5", "x=2"), ("2x+3>7", r"(2,\infty)"), ("x^2-4x+3<0", "(1,3)"), ("|x|<3", "(-3,3)"),
        (r"x^2-4x+3>0", r"(-\infty,1)\cup(3,\infty)"), (r"x^2-5x-14 \leq 0", r"x\in[-2,7]"),
        (r"\int_0^1 x^2\,dx", "1/3"), (r"\sum_{k=1}^{100} k", "5050"), (r"\gcd(120,84)", "12"),
        (r"\lim_{n\to\infty}\frac1n", "0"), (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", "-2"), (r"\max(1,2,3)", "3"),
    ],
)  # fmt: skip
def test_the_grader_does_not_do_the_work(answer, gold):
    """An equation that is not solved, or an operation not carried out, says again what was asked."""
    assert score(rf"\boxed{{{answer}}}", gold) == 0.0
    assert score(rf"\boxed{{{gold}}}", gold) == 1.0


@pytest.mark.parametrize(
    "answer, gold",
    [
        ("x>2", r"(2,\infty)"), ("-3<x<3", "(-3,3)"), ("-x>-1", "x<1"), ("y=5-x", "x+y=5"), ("2x+3y=7", "3y+2x=7"),
        (r"\sum_{k=1}^n k", r"\sum_{k=1}^{n} k"), ("x^2+y^2=4", "x^2+y^2-4=0"), ("y=2x+3", "y=3+2x"),
    ],
)  # fmt: skip
def test_what_is_solved_is_read_as_before(answer, gold):
    assert score(rf"\boxed{{{answer}}}", gold) == 1.0


def test_a_term_of_the_prompt_is_no_answer_unless_it_is_the_gold_one():
    assert score(r"\boxed{\sqrt{50}}", r"5\sqrt2", prompt=r"Simplify $\sqrt{50}$.") == 0.0
    assert score(r"\boxed{\sqrt{50}}", r"5\sqrt2", prompt="Where does the line meet it?") == 1.0
    assert score(r"\boxed{17\cdot 23}", "391", prompt=r"Compute $17\cdot 23$.") == 0.0
    assert score(r"\boxed{x^2+3x+2}", "(x+1)(x+2)", prompt="Factor x^2+3x+2") == 0.0
    assert score(r"\boxed{\sqrt{2}+1}", r"\sqrt{2}+1", prompt=r"Which is more: $\sqrt{2}+1$ or $\sqrt{5}$?") == 1.0
    assert score(r"\boxed{-5}", "-5", prompt="What is x if x+7=2? Some say -5.") == 1.0


def test_thinking_that_the_prompt_opened():
    assert score(r"maybe \boxed{5} and", prompt="2+3?<think>\n") == 0.0
    assert score(r"so</think>It is \boxed{5}.", prompt="2+3?<think>\n") == 1.0


def test_an_echo_keeps_the_lines_of_what_follows():
    text = "What is 9+9 here?\n9+9=18\n#### 18\n\nHope that helps you a lot"
    assert score(text, "18", prompt="What is 9+9 here?") == 1.0


@pytest.mark.parametrize(
    "text", ["**Answer: 7**", "**Answer:** 7", "The answer is **7**.", "**7**", "__7__", "#### **7**"]
)
def test_bold_markdown_is_no_part_of_the_answer(text):
    assert score(text, "7") == 1.0


@pytest.mark.parametrize(
    "text, gold", [("√2", r"\sqrt2"), ("2√(3)", r"2\sqrt{3}"), ("７", "7"), ("1.5e3", "1500"), ("2e-3", "0.002")]
)
def test_other_spellings(text, gold):
    assert score(rf"\boxed{{{text}}}", gold) == score(rf"\boxed{{{gold}}}", text) == 1.0
