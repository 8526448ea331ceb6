"""Whether two answers mean the same: exact comparison, algebra in worker processes, and what keeps it in bounds."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.errors import ConfigError, RewardError
from r1jax.rewards import RewardPool, equivalence, math_accuracy
from r1jax.rewards.equivalence import EquivalencePool, compare, equivalent
from r1jax.rewards.exact import same
from r1jax.rewards.expression_parser import parse_expression
from r1jax.rewards.expressions import Unreadable
from r1jax.rewards.latex import clean
from r1jax.rewards.meaning import read
from r1jax.rewards.process import WorkerProcess


@pytest.fixture(scope="module")
def pool():
    with EquivalencePool(workers=2, deadline=20) as pool:
        yield pool


EXACT = [  # gold, answer, verdict: without algebra
    ("5", "5.0", True),
    ("025", "25", True),
    ("-3", "−3", True),
    ("5", "-5", False),
    ("1000", "1,000", True),
    ("1000", r"1{,}000", True),
    ("1000", r"1\,000", True),
    ("1000", "1 000", True),
    (r"11,\!111,\!100", "11111100", True),
    ("1,234", "234", False),
    ("1.22", "1,22", True),
    ("5", "5,0", False),
    (r"\frac12", "0.5", True),
    (r"\frac{1}{2}", r"\dfrac{2}{4}", True),
    (r"\frac 59", "5/9", True),
    (r"\frac1{72}", "1/72", True),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", True),
    ("31/2", "3 1/2", False),
    (r"3\frac{1}{2}", "3.5", True),
    ("3 1/2", r"\frac{7}{2}", True),
    (r"0.\overline{3}", "1/3", True),
    ("1/3", "0.333333", True),
    ("1/3", "0.333", False),
    ("1/3", "0.333334", False),
    ("2", "1.999999", False),
    ("5", "5.000001", False),
    ("0.0000672", "0.0000673", False),
    (r"\sqrt{2}", "1.41421", True),
    (r"\sqrt{2}", "1.4142", False),
    (r"\sqrt{16}", "4", True),
    ("2^{10}", "1024", True),
    ("2**10", "1024", True),
    ("10!", "3628800", True),
    ("5!", "5", False),
    (r"\binom{10}{3}", "120", True),
    (r"3 \times 10^5", "300000", True),
    (r"6.02\cdot10^{23}", r"6.02 \times 10^{23}", True),
    ("3.5 million", "3500000", True),
    ("5 thousand", "5", False),
    (r"10\%", "10", True),
    (r"10\%", "0.1", True),
    ("0.1", "10 percent", True),
    (r"10\%", "100", False),
    ("0.75", "75", False),
    (r"\$18.90", "18.9", True),
    (r"5 \text{ dollars}", "$5", True),
    (r"15\mbox{ cm}^2", "15", True),
    ("15", "15 m²", True),
    (r"5\text{ cm}", r"5\text{ m}", False),
    ("5 hours", "5 minutes", False),
    ("50 mph", "50 miles per hour", True),
    ("18", "18 students", True),
    ("18", "18 ABC", False),
    ("2^{2005}", r"\pi", False),
    (r"\pi", "2^{2005}", False),
    ("2t", "2", False),
    (r"90^\circ", "90 degrees", True),
    (r"\frac{\pi}{4}", r"\pi/4", True),
    (r"\frac{\pi}{4}", r"0.25\pi", None),
    (r"\pi", "3.14", False),
    ("x=5", "5", True),
    ("5", "k = 5", True),
    ("x=y", "y=x", None),
    ("0", "x-1=0", False),
    ("a^2+b=0", "0", False),
    ("14/3", r"f(-2)+f(0)=\frac{14}{3}", True),
    (r"x \approx 11", "11", True),
    (r"\frac{1}{3} \approx 0.3", "1/3", True),
    ("1,2", "2, 1", True),
    ("1,2", "1 and 2", True),
    (r"\{1,2\}", "2,1", True),
    ("1,2", "1,2,3", False),
    ("1,1,2", "1,2,2", False),
    ("2", "1,2", False),
    ("1,2", "2", False),
    ("(1,2)", "(2,1)", False),
    ("(1,2)", "[1,2]", False),
    ("(1,2)", "1,2", True),
    ("(1,2),(3,4)", "(3,4) and (1,2)", True),
    ("(p,q)=(3,2)", "(3,2)", True),
    ("p=5,q=2;p=7,q=2", "(5,2),(7,2)", True),
    ("[0,9)", "[0,1)", False),
    ("[0,1)", "(0,1)", False),
    ("[0,1)", r"0 \le x < 1", True),
    (r"x \geq 5", r"[5,\infty)", True),
    (r"x \leq 5", r"5 \geq x", True),
    ("x > 5", "y > 5", False),
    (r"(2,12) \cup (12,102)", r"(12,102)\cup(2,12)", True),
    (r"(-\infty,2)\cup(3,\infty)", "x<2 or x>3", True),
    (r"(0,9)\cup(9,36)", "9", False),
    (r"\infty", r"-\infty", False),
    (r"3 \pm \sqrt{4}", "1, 5", True),
    (r"\pm 3", "3", False),
    ("7:32", "14:64", True),
    ("1:2", "0.5", True),
    ("12:00", "12", False),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix} 1 \\ \frac42 \end{bmatrix}", True),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}", False),
    ("A", r"\text{(A)}", True),
    ("A", "A.", True),
    ("A", "A) 5 apples", True),
    ("(A)", "B", False),
    ("C", "c", False),
    (r"\text{Evelyn}", "evelyn", True),
    (r"\text{odd}", "odd.", True),
    ("odd", r"\text{oddd}", False),
    ("yes", "yes and no", False),
    ("42", "forty-two", False),
    ("52_8", "52_{8}", True),
    ("52_8", "42", False),
    ("52_8", "52", False),
    ("x+1", "x+2", False),
    ("2", "x", False),
    ("2k", "2", False),
    ("x^2+y^2=1", "x^2 + y^2 = 1", True),
    ("\x0crac{1}{2}", "1/2", True),  # "\frac" whose "\f" was taken for an escape
]


@pytest.mark.parametrize(("gold", "answer", "verdict"), EXACT)
def test_exact(gold, answer, verdict):
    assert same(clean(gold), clean(answer)) is verdict


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        (r"\frac{\pi}{4}", r"\pi/4", True),
        ("x^2-1", "(x-1)(x+1)", True),
        (r"\sqrt{12}", r"2\sqrt3", True),
        (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}", True),
        (r"\sin^2 x", r"1-\cos^2 x", True),
        (r"\tan 15^\circ", r"2-\sqrt{3}", True),
        ("(8-18i)(14+i)", "130-244i", True),
        ("2ab", "2ba", True),
        (r"8\pi\text{ cm}^2", r"\pi \cdot 8", True),
        ("x^2+y^2=1", "x^2=1-y^2", True),
        ("2x+4y-3=0", r"y=-\frac{1}{2}x+\frac{3}{4}", True),
        (r"1\leq|z|\leq 2", r"[-2,-1]\cup[1,2]", True),
        (r"(0,1)\cup(1,2]", r"(0,2]\setminus\{1\}", True),
        (
            r"\begin{pmatrix}1&3\end{pmatrix}",
            r"\begin{pmatrix}1&2\end{pmatrix}\begin{pmatrix}1&1\\0&1\end{pmatrix}",
            True,
        ),
        ("x=5", "y=5", False),
        (r"\mathbb{R}", r"(-\infty,\infty)", True),
        ("x^2+y^2=1", "x^2-y^2=1", False),
        (r"e^{\pi\sqrt{163}}", "262537412640768744", False),  # equal to thirty digits
        (r"\sqrt{2}", r"\phantom{\sqrt{2}}", False),  # math-verify reads what it hides
        ("x+784", r"x \equiv 0 \pmod{6}, x+784", False),  # nor is a part of what does not parse an answer
        (r"784", r"j-i \equiv 0 \pmod{6}, 784", False),
    ],
)
def test_algebra(pool, gold, answer, verdict):
    assert pool.equivalent(gold, answer) is verdict


@pytest.mark.parametrize(
    "gold",
    ["", " ", r"\frac{", "???", "$$", r"\boxed{}", "Answer is forty two.", r"\frac{1}{0}", "0/0", "(1,2", "x==", "...",
     "{}", "5 +", "x^", "1,,2", r"\foo{3}", "9" * 5000, r"\dots", None, float("nan")],
)  # fmt: skip
def test_gold_that_cannot_be_parsed(pool, gold):
    # Neither right nor wrong, whatever the answer: not even for an answer that is the same text.
    for answer in ("5", str(gold), None):
        assert pool.equivalent(gold, answer) is None


def test_gold_that_only_algebra_can_parse(pool):
    gold = r"\int_0^1 g(x) dx"
    asked = pool.asked
    assert [pool.equivalent(gold, a) for a in (gold, "5", None, "any number")] == [True, False, False, False]
    assert pool.asked > asked


numbers = st.fractions(-50, 50, max_denominator=20)


def spellings(value: Fraction) -> list[str]:
    a, b, sign = abs(value.numerator), value.denominator, "-" if value < 0 else ""
    written = [f"{sign}{a}/{b}", rf"{sign}\frac{{{a}}}{{{b}}}", rf"\dfrac{{{sign}{3 * a}}}{{{3 * b}}}"]
    written += [f"x = {sign}{a}/{b}", rf"${sign}\tfrac{{{a}}}{{{b}}}$"]
    if value and a // b and a % b:
        written.append(rf"{sign}{a // b}\frac{{{a % b}}}{{{b}}}")
    if 1000 % b == 0:
        written += [f"{sign}{a / b:.4f}", rf"{sign}{100 * a / b:.6f}\%" if value else "0"]
    return written


@given(numbers, numbers, st.data())
def test_numbers_are_equal_if_and_only_if_their_values_are(x, y, data):
    gold, answer = data.draw(st.sampled_from(spellings(x))), data.draw(st.sampled_from(spellings(y)))
    if "%" in gold + answer and x != y:
        return  # 10% is 10, too
    assert equivalent(gold, answer) is (x == y), (gold, answer)
    assert equivalent(answer, gold) is (x == y), (answer, gold)


@given(st.lists(numbers, min_size=1, max_size=5), st.randoms())
def test_lists_are_equal_in_any_order_and_tuples_are_not(values, random):
    shuffled = random.sample(values, len(values))
    written = [", ".join(random.choice(spellings(v)[:3]) for v in each) for each in (values, shuffled)]
    assert equivalent(*written) is True
    assert equivalent(rf"\{{{written[0]}\}}", written[1]) is True
    if len(values) > 1:
        assert equivalent(f"({written[0]})", f"({written[1]})") is (values == shuffled)


@settings(max_examples=300)
@given(
    st.text("0123456789abxyzi.,+-*/^_(){}[]\\ %!|<>=\"'", max_size=60),
    st.text("\\fracsqt{}()^0123456789x", max_size=60),
)
def test_any_text_is_compared_without_an_error(gold, answer):
    assert same(clean(gold), clean(answer)) in (True, False, None)
    assert same(clean(gold), clean(gold)) is True


@pytest.mark.parametrize(
    "text",
    ["\\sqrt" * 140, "-" * 150, "x" * 149, "1+" * 74 + "1", "(" * 100 + "1" + ")" * 100, "{" * 500 + "1" + "}" * 500,
     "2^" * 70 + "2", "\\frac1" * 140, "|" * 300, "1," * 400],
)  # fmt: skip
def test_nesting_is_bounded(text):
    def deep(n):
        return same("5", text) if n == 0 else deep(n - 1)

    assert deep(300) is not True  # with little of the stack left


def test_limits_of_nesting():
    assert read("(" * 5 + "1,2" + ")" * 5) is not None and read("(" * 6 + "1,2" + ")" * 6) is None
    assert parse_expression("(" * 29 + "1" + ")" * 29).value()[0] == 1
    with pytest.raises(Unreadable):
        parse_expression("(" * 31 + "1" + ")" * 31)


# The pool's own behaviour, on workers that start at once.


def fake(prompts, completions, answer):
    """Stands in for algebra: does what the answer says."""
    (text,) = completions
    if text == "y x+x":
        time.sleep(60)
    if text == "y*x+x":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "x+y x":
        raise MemoryError
    return [float(os.getpid()) if text == "x y+x" else 0.0]


HANGS, DIES, FAILS, PROCESS = "y x+x", "y*x+x", "x+y x", "x y+x"
GOLD = "x(y+1)"


def missing(prompts, completions, answer):
    raise ModuleNotFoundError("No module named 'math_verify'")


def allocate(prompts, completions, size, **columns):
    return [float(len(bytearray(n))) for n in size]


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(equivalence, "_FUNCTIONS", {"symbolic": pickle.dumps(fake)})


def ask(pool, text):
    """The raw score of the worker, uncached."""
    return pool._ask(GOLD, text)


def test_a_grading_that_hangs_ends_at_its_deadline(fakes):
    with EquivalencePool(deadline=1.0) as pool:
        first = ask(pool, PROCESS)
        start = time.monotonic()
        assert pool.equivalent(GOLD, HANGS) is False
        assert 0.9 < time.monotonic() - start < 1.9  # and is not tried again
        wait_until_gone([first])
        assert ask(pool, PROCESS) not in (0.0, first)
        assert (pool.asked, pool.timeouts, pool.crashes) == (3, 1, 0)


def test_a_worker_that_dies_is_replaced(fakes):
    with EquivalencePool() as pool:
        first = ask(pool, PROCESS)
        assert pool.equivalent(GOLD, DIES) is False
        second = ask(pool, PROCESS)
        assert second not in (0.0, first) and pool.crashes == 1
        os.kill(int(second), signal.SIGKILL)  # as a machine short of memory does, while nobody asks
        wait_until_gone([second])
        assert ask(pool, PROCESS) not in (0.0, second) and pool.crashes == 1


def test_a_worker_that_runs_out_of_memory_is_replaced(fakes):
    with EquivalencePool() as pool:
        first = ask(pool, PROCESS)
        assert pool.equivalent(GOLD, FAILS) is False
        assert ask(pool, PROCESS) not in (0.0, first)


def test_workers_are_recycled(fakes):
    with EquivalencePool(gradings=2) as pool:
        served = [ask(pool, PROCESS) for _ in range(5)]
    assert served[0] == served[1] != served[2] == served[3] != served[4]


def test_a_long_answer_is_wrong_unread(fakes):
    with EquivalencePool() as pool:
        for gold, answer in (("5", "5"), (GOLD, PROCESS)):
            assert pool.equivalent(gold, answer + " " * 900) is True
            assert pool.equivalent(gold, answer + " " * 1000) is False
            assert pool.equivalent(gold + " " * 1000, answer) is True  # a gold answer may come with its solution
        assert pool.asked == 1


def test_repeated_pairs_are_asked_once(fakes):
    with EquivalencePool() as pool:
        assert pool.compare([GOLD] * 4, [PROCESS, PROCESS, HANGS.replace("y x", "yx"), PROCESS])[0] is True
        assert pool.equivalent(GOLD, PROCESS) is True
        assert pool.asked == 2


def test_gradings_are_spread_over_the_workers(pool):
    golds = [rf"\sqrt{{{4 * n}}}" for n in (2, 3, 5, 6, 7, 10)]
    start = pool.asked
    assert pool.compare(golds, [rf"2\sqrt{{{n}}}" for n in (2, 3, 5, 6, 7, 11)]) == [True] * 5 + [False]
    assert pool.asked == start + 5  # the last differs in its value
    assert sum(slot._process is not None for slot in pool._slots.queue) == 2


def test_threads_share_a_pool(pool):
    verdicts = {}

    def grade(n):
        verdicts[n] = pool.equivalent(rf"{n}+\sqrt{{{n * n * 2}}}", rf"{n}(1+\sqrt{{2}})")

    threads = [threading.Thread(target=grade, args=(n,)) for n in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == dict.fromkeys(range(2, 8), True)


def test_a_closed_pool_has_no_processes_and_says_so(fakes):
    pool = EquivalencePool(workers=3)
    worker = ask(pool, PROCESS)
    pool.close()
    wait_until_gone([worker])
    with pytest.raises(RewardError, match="closed"):
        pool.equivalent(GOLD, PROCESS)
    assert pool.equivalent("1/2", "0.5") is True  # what needs no worker
    pool.close()


def test_math_verify_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(equivalence, "_FUNCTIONS", {"symbolic": pickle.dumps(missing)})
    with EquivalencePool() as pool, pytest.raises(RewardError, match=r"'math_verify'.*pip install math-verify"):
        pool.equivalent(GOLD, PROCESS)


@pytest.mark.parametrize("field", ["workers", "deadline", "gradings", "memory"])
def test_settings_are_checked(field):
    with pytest.raises(ConfigError, match=field):
        EquivalencePool(**{field: 0})


def test_memory_of_a_worker_is_limited():
    worker = WorkerProcess({"allocate": pickle.dumps(allocate)}, memory=100 << 20)
    try:
        worker.wait_ready()
        for size, expected in ((50 << 20, [50.0 * 2**20]), (200 << 20, None), (50 << 20, [50.0 * 2**20])):
            task = {"prompts": [""], "completions": [""], "size": [size]}
            worker.send(("allocate", pickle.dumps(task)))
            scores, error = worker.receive(time.monotonic() + 20)
            assert scores == expected and (expected or "MemoryError" in error)
    finally:
        worker.close()


def test_inside_a_reward_worker_and_no_process_is_left():
    with RewardPool([math_accuracy], num_workers=1, timeout=60) as pool:
        scores = pool.submit(["p"] * 3, [r"\boxed{(x+1)^2}"] * 3, {"answer": ["x^2+2x+1", "x^2+2x+2", "("]}).result()
        assert scores.rewards[0, 0] == 1 and scores.rewards[1, 0] == 0 and scores.rewards[2, 0] != scores.rewards[2, 0]
        (reward_worker,) = (worker._process.pid for worker in pool._workers)
        (algebra,) = [pid for pid, parent in children_of_anyone().items() if parent == reward_worker]
    wait_until_gone([reward_worker, algebra])


def test_algebra_ends_with_the_reward_worker_that_asked_for_it():
    with RewardPool([math_accuracy], timeout=60) as pool:
        pool.submit(["p"], [r"\boxed{(x+1)^2}"], {"answer": ["x^2+2x+1"]}).result()
        (reward_worker,) = (worker._process.pid for worker in pool._workers)
        (algebra,) = [pid for pid, parent in children_of_anyone().items() if parent == reward_worker]
        slow = pool.submit(["p"], [r"\boxed{\sum_{i=1}^{10^{100}} i}"], {"answer": [r"\sum_{i=1}^{5} i"]})
        time.sleep(0.5)  # until algebra is at it, for seconds
        os.kill(reward_worker, signal.SIGKILL)
        wait_until_gone([algebra], seconds=0.7)
        assert slow.result().crashes == 1


SCRIPT = """
import os, sys
sys.path[:0] = {path!r}
from r1jax.rewards.equivalence import _shared, equivalent
assert equivalent("x^2+2x+1", "(x+1)^2")
ours = _shared()._slots.queue[-1]._process._process.pid
if os.fork() == 0:  # a child has a worker of its own, and does not end its parent's
    assert equivalent("x^2+4x+4", "(x+2)^2") and _shared()._slots.queue[-1]._process._process.pid != ours
    sys.exit(0)
assert os.wait()[1] == 0
assert equivalent("x^2+6x+9", "(x+3)^2") and _shared()._slots.queue[-1]._process._process.pid == ours
assert not {{"jax", "sympy", "math_verify"}} & sys.modules.keys()
print(ours)
"""


def test_a_script_leaves_nothing_running_and_may_fork():
    command = [sys.executable, "-c", SCRIPT.format(path=[str(Path(__file__).parents[1])])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    wait_until_gone([int(done.stdout)])


def test_the_shared_pool():
    assert compare(["1/2", r"\sqrt{8}"], ["0.5", r"2\sqrt{2}"]) == [True, True]
    assert equivalent("1/2", None) is False


def children_of_anyone():
    """Parent by process."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            found[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def wait_until_gone(pids, seconds=5):
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def alive(pid):
    try:
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
