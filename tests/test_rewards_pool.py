"""The reward pool: functions that fail, hang and die cost their own scores, or say whose fault it is."""

import functools
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from r1jax.errors import ConfigError, RewardError
from r1jax.rewards import RewardPool
from r1jax.rewards.pool import RewardHandle


def by_name(prompts, completions, **columns):
    """Does what each completion says; a word's score is its length."""
    scores = []
    for completion in completions:
        if completion == "raise":
            raise ValueError("two\nlines")
        if completion == "exit":
            sys.exit(0)
        if completion == "hang":
            time.sleep(60)
        if completion == "hang in C":
            9**9**9
        if completion == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if completion == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        scores.append(None if completion == "none" else float(len(completion)))
    return scores


def level(prompts, completions, level, **columns):
    return level


def nap(prompts, completions, **columns):
    time.sleep(1.0)
    return [1.0] * len(completions)


def whole_batch(prompts, completions, **columns):
    return [len(completions)] * len(completions)


def imported_jax(prompts, completions, **columns):
    return ["jax" in sys.modules] * len(completions)


def process_id(prompts, completions, **columns):
    return np.full(len(completions), os.getpid())


def too_few(prompts, completions, **columns):
    return [1.0] * (len(completions) - 1)


def text(prompts, completions, **columns):
    return ["1.0"] * len(completions)


def not_finite(prompts, completions, **columns):
    return [float("nan")] * len(completions)


def stubborn(prompts, completions, path, **columns):
    """Starts a process of its own, as a code grader does, and hangs, deaf to polite signals."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "60"])
    Path(path[0]).write_text(f"{os.getpid()} {child.pid}")
    child.wait()


def given_ids(prompts, completions, completion_ids, scale=1, **columns):
    """The sum of each completion's token ids, which are lists of int as TRL passes them."""
    assert all(type(ids) is list and all(type(i) is int for i in ids) for ids in completion_ids)
    return [scale * sum(ids) for ids in completion_ids]


def names_of_columns(prompts, completions, **columns):
    return ["completion_ids" in columns] * len(completions)


def well_formed(prompts, completions, **columns):
    return [None if text == "none" else float(text.startswith("<")) for text in completions]


@pytest.fixture(scope="module")
def pool():
    with RewardPool([by_name, level], weights=[1.0, 0.5], timeout=20, rows_per_task=2) as pool:
        yield pool


def score(pool, completions):
    return pool.submit(["p"] * len(completions), completions, {"level": list(range(len(completions)))}).result()


def test_scores_total_and_none(pool):
    batch = score(pool, ["a", "none", "ccc"])
    assert batch.names == ("by_name", "level")
    assert batch.rewards.dtype == batch.total.dtype == np.float32
    np.testing.assert_array_equal(batch.rewards, [[1, 0], [np.nan, 1], [3, 2]])
    np.testing.assert_array_equal(batch.total, [1, np.nan, 4])
    assert (batch.timeouts, batch.crashes) == (0, 0)
    assert score(pool, []).total.shape == (0,)


def test_batches_overlap_and_keep_their_rows(pool):
    batches = [["x" * (i + j) for j in range(5)] for i in range(8)]
    handles = [pool.submit(batch, batch, {"level": [0] * 5}) for batch in batches]
    for handle, batch in reversed(list(zip(handles, batches, strict=True))):
        np.testing.assert_array_equal(handle.result().total, [len(completion) for completion in batch])


@pytest.mark.parametrize("word", ["raise", "exit"])
def test_a_function_that_raises_is_named(pool, word):
    handle = pool.submit(["p"] * 2, ["a", word], {"level": [0, 1]})
    assert score(pool, ["a"]).total[0] == 1  # the worker is none the worse; it has been through `level` as well
    with pytest.raises(
        RewardError, match=r"'by_name' raised (ValueError: two lines|SystemExit: 0) at .*\.py:\d+: mend"
    ):
        handle.result()


def test_ctrl_c_is_not_the_workers(pool):
    assert score(pool, ["interrupt"]).total[0] == 9


def test_a_killed_worker_costs_its_rows_and_is_replaced(pool):
    batch = score(pool, ["a", "b", "die", "d", "die"])
    np.testing.assert_array_equal(batch.rewards[:, 0], [1, 1, np.nan, np.nan, np.nan])
    assert (batch.timeouts, batch.crashes) == (0, 3)
    assert score(pool, ["a"]).total[0] == 1


@pytest.mark.parametrize(("function", "problem"), [(too_few, "2 scores for 3"), (text, "'1.0'"), (not_finite, "nan")])
def test_wrong_returns_are_named(function, problem):
    with RewardPool([function]) as pool, pytest.raises(RewardError, match=f"'{function.__name__}' returned {problem}"):
        score(pool, ["a", "b", "c"])


def test_hangs_end_at_the_deadline_and_spare_other_workers():
    with RewardPool({"word": by_name}, num_workers=2, timeout=1.0, rows_per_task=1) as pool:
        start = time.monotonic()
        batch = score(pool, ["hang in C", "b", "c", "d"])
        assert 0.9 < time.monotonic() - start < 2.5
        np.testing.assert_array_equal(batch.total, [np.nan, 1, 1, 1])
        assert (batch.timeouts, batch.crashes) == (1, 0)
        batch = score(pool, ["hang", "hang", "c", "d"])
        assert np.isnan(batch.total).all() and batch.timeouts == 4
        time.sleep(1.0)  # the replacements start while the device would be working
        assert score(pool, ["a"]).total[0] == 1


def test_a_killed_worker_takes_its_children_with_it(tmp_path):
    with RewardPool([stubborn], timeout=0.8) as pool:
        batch = pool.submit(["p"], ["a"], {"path": [str(tmp_path / "pids")]}).result()
        assert batch.timeouts == 1
        wait_until_gone(map(int, (tmp_path / "pids").read_text().split()))


def test_workers_are_reused_and_import_no_jax():
    with RewardPool({"pid": process_id, "jax": imported_jax}, rows_per_task=1) as pool:
        rewards = np.concatenate([score(pool, ["a", "b"]).rewards for _ in range(2)])
    assert len(set(rewards[:, 0])) == 1 and rewards[0, 0] > 1
    assert not rewards[:, 1].any()


def test_rows_per_task():
    with RewardPool([whole_batch], rows_per_task=2) as pool:
        assert score(pool, ["a"] * 5).total.tolist() == [2, 2, 2, 2, 1]
    with RewardPool([whole_batch], rows_per_task=None) as pool:
        assert score(pool, ["a"] * 5).total.tolist() == [5] * 5


def test_zero_weight_observes_only_and_a_negative_one_is_a_penalty():
    functions = {"word": by_name, "level": level, "rows": whole_batch}
    with RewardPool(functions, weights={"level": 2.0, "rows": -1.5, "word": 0.0}) as pool:
        np.testing.assert_array_equal(score(pool, ["none", "b"]).total, [-3, -1])


def test_token_ids_go_to_functions_that_name_them():
    functions = {"ids": given_ids, "twice": functools.partial(given_ids, scale=2), "columns": names_of_columns}
    tokens = np.arange(12, dtype=np.int32).reshape(3, 4)
    with RewardPool(functions, rows_per_task=2) as pool:
        ids = [row[:length] for row, length in zip(tokens, (4, 0, 2), strict=True)]
        batch = pool.submit(["p"] * 3, ["a", "b", "c"], completion_ids=ids).result()
        np.testing.assert_array_equal(batch.rewards, [[6, 12, 0], [0, 0, 0], [17, 34, 0]])
        assert pool.submit(["p"], ["a"], completion_ids=[[1, 2]]).result().rewards[0, 0] == 3
        with pytest.raises(RewardError, match="reward function 'ids' takes completion_ids"):
            pool.submit(["p"], ["a"])
        with pytest.raises(RewardError, match="'completion_ids' has 2 values for 1 completions"):
            pool.submit(["p"], ["a"], completion_ids=[[1], [2]])


def test_token_ids_that_nobody_asks_for_are_not_sent(pool, monkeypatch):
    sent, dumps = [], pickle.dumps
    monkeypatch.setattr("r1jax.rewards.pool.pickle.dumps", lambda value: sent.append(value) or dumps(value))
    assert pool.submit(["p"], ["a"], {"level": [1]}, completion_ids=[[1, 2]]).result().total[0] == 1.5
    assert [sorted(value) for value in sent] == [["completions", "level", "prompts"]]


def test_a_gate_takes_what_the_others_add():
    functions = {"word": by_name, "format": well_formed}
    with RewardPool(functions, weights=[1.0, 0.5], gate="format") as pool:
        np.testing.assert_array_equal(score(pool, ["<a", "aa", "none"]).total, [2.5, 0, np.nan])
        np.testing.assert_array_equal(score(pool, ["<a", "aa"]).rewards, [[2, 1], [2, 0]])


def test_functions_of_this_process_take_part_beside_the_workers():
    calls = []

    class Here:
        """Neither picklable nor importable, as a model on the device."""

        def __call__(self, prompts, completions, level, completion_ids, **columns):
            calls.append((time.monotonic(), list(completions), completion_ids))
            return [None if text == "none" else float(n) for n, text in zip(level, completions, strict=True)]

    here = {"here": Here(), "pid": process_id}
    weights = {"word": 1.0, "here": 2.0, "pid": 0.0}
    with RewardPool({"word": by_name}, weights, rows_per_task=2, local=here) as pool:
        assert pool.names == ("word", "here", "pid")
        ids = np.arange(9).reshape(3, 3)
        handle = pool.submit(["p"] * 3, ["a", "none", "ccc"], {"level": [1, 2, 3]}, ids)
        assert not calls  # submitting does not wait for it
        batch = handle.result()
        np.testing.assert_array_equal(batch.total, [3, np.nan, 9])
        np.testing.assert_array_equal(batch.rewards[:, 2], os.getpid())
        assert [texts for _, texts, _ in calls] == [["a", "none", "ccc"]]
        assert calls[0][2] == ids.tolist()
        np.testing.assert_array_equal(handle.result().total, batch.total)
        assert len(calls) == 1  # what is known is not asked again


def one_for_all(prompts, completions, **columns):
    return 0.5


def wants_more(prompts, completions, answer, **columns):
    return [0.0] * len(completions)


def test_workers_grade_while_a_local_function_runs():
    def slow(prompts, completions, **columns):
        time.sleep(1.0)
        return [0.0] * len(completions)

    with RewardPool({"nap": nap}, local=[slow], timeout=20) as pool:
        start = time.monotonic()
        assert pool.submit(["p"], ["a"]).result().total.tolist() == [1]
        assert time.monotonic() - start < 1.8


def test_a_pool_of_local_functions_has_no_workers():
    with RewardPool([], local=[whole_batch], rows_per_task=1) as pool:
        assert not pool._workers
        assert score(pool, ["a", "b"]).total.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (too_few, "'too_few' returned 2 scores for 3"),
        (not_finite, "'not_finite' returned nan"),
        (by_name, "ValueError"),
        (one_for_all, "'one_for_all' returned 0.5: return a list, with a score or None for each completion"),
        (
            wants_more,
            r"'wants_more' raised TypeError: wants_more\(\) missing .* 'answer': mend it",
        ),  # and no line of ours
    ],
)
def test_local_functions_are_held_to_the_same(function, problem):
    with RewardPool([level], local=[function]) as pool, pytest.raises(RewardError, match=problem):
        score(pool, ["a", "raise", "c"])


def test_functions_are_called_for_their_domains_alone():
    """Rule rewards on reasoning prompts, preference rewards on general ones, one function for all."""
    seen = []

    def preferred(prompts, completions, domain, **columns):
        seen.extend(zip(completions, domain, strict=True))
        return [10.0 * len(text) for text in completions]

    domains = {"word": ("reasoning", "code"), "preferred": ["general"]}
    texts, kinds = (
        ["a", "raise", "bb", "none", "dd", "e"],
        ["code", "general", "general", "reasoning", "reasoning", "no"],
    )
    functions = {"word": by_name, "level": level}
    with RewardPool(functions, rows_per_task=4, local={"preferred": preferred}, domains=domains) as pool:
        batch = pool.submit(["p"] * 6, texts, {"level": [0, 1, 2, 3, 4, 5], "domain": kinds}).result()
        nan = np.nan
        np.testing.assert_array_equal(batch.rewards[:, 0], [1, nan, nan, nan, 2, nan])
        np.testing.assert_array_equal(batch.rewards[:, 2], [nan, 50, 20, nan, nan, nan])
        np.testing.assert_array_equal(batch.total, [1, 51, 22, nan, 6, 5])  # "none" cannot be scored, "e" can
        assert batch.timeouts == 0
        assert seen == [("raise", "general"), ("bb", "general")]
        with pytest.raises(RewardError, match="'word' is for domains reasoning, code: pass a column domain"):
            pool.submit(["p"], ["a"], {"level": [1]})
    with RewardPool([by_name], domains={"by_name": ("code",)}) as pool:
        batch = pool.submit(["p"] * 2, ["a", "b"], {"domain": ["code", "poems"]}).result()
        np.testing.assert_array_equal(batch.total, [1, np.nan])  # nothing is meant for poems: no reward, not 0


def test_scores_that_nobody_ends_are_timeouts():
    """A thread that is still replacing its worker has not put its tasks down when the batch is due."""
    batch = RewardHandle(("f",), np.ones(1, np.float32), rows=3, deadline=time.monotonic()).result()
    assert np.isnan(batch.total).all() and (batch.timeouts, batch.crashes) == (3, 0)


def test_functions_that_a_worker_cannot_load():
    with pytest.raises(ConfigError, match=r"'<lambda>' cannot be sent .* module"):
        RewardPool([lambda prompts, completions: [0.0]])

    class Gone:
        def __call__(self, prompts, completions): ...

    with pytest.raises(ConfigError, match="'mine' cannot be sent"):
        RewardPool({"mine": Gone()})


def test_a_function_of_the_main_script(monkeypatch):
    def mine(prompts, completions, scale=1.0, **columns): ...

    mine.__module__, mine.__qualname__ = "__main__", "mine"
    monkeypatch.setattr(sys.modules["__main__"], "mine", mine, raising=False)
    for function in (mine, functools.partial(mine, scale=2.0)):
        with pytest.raises(ConfigError, match=r"'mine' cannot be sent .* defined in the main script"):
            RewardPool({"mine": function})


def test_a_function_in_a_module_that_workers_cannot_import(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def f(prompts, completions, **columns): return [0.0]\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    with pytest.raises(ConfigError, match=r"'f' cannot be loaded in a worker process \(ModuleNotFoundError"):
        RewardPool([only_here.f])


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"functions": []}, "functions"),
        ({"functions": [level, level]}, "functions"),
        ({"functions": [level], "weights": [1.0, 2.0]}, "weights"),
        ({"functions": [level], "weights": {"other": 1.0}}, "weights"),
        ({"functions": [level], "weights": [float("nan")]}, "weights"),
        ({"functions": [level], "num_workers": 0}, "num_workers"),
        ({"functions": [level], "timeout": 0}, "timeout"),
        ({"functions": [level], "rows_per_task": 0}, "rows_per_task"),
        ({"functions": ["no_such"]}, "no_such"),
        ({"functions": [level], "gate": "format"}, "gate='format': must be one of level"),
        ({"functions": [level], "local": [level]}, r"local=\['level'\]: functions has these names"),
        ({"functions": [level], "domains": {"word": ("a",)}}, "domains='word': no such function; use one of level"),
        ({"functions": [level], "domains": {"level": "code"}}, "domains.*give one domain or more"),
        ({"functions": [level], "domains": {"level": ()}}, "domains.*give one domain or more"),
    ],
)
def test_settings_are_checked(arguments, field):
    with pytest.raises(ConfigError, match=field):
        RewardPool(**arguments)


def test_columns_are_checked(pool):
    with pytest.raises(RewardError, match="'level' has 1 values for 2 completions"):
        pool.submit(["p", "p"], ["a", "b"], {"level": [1]})
    with pytest.raises(RewardError, match="cannot be pickled"):
        pool.submit(["p"], ["a"], {"level": [lambda: 0]})


def test_close_ends_workers_and_pending_batches():
    pool = RewardPool({"word": by_name})
    handle, waiting = pool.submit(["p"], ["hang"]), pool.submit(["p"], ["a"])
    time.sleep(0.3)  # until the worker is at it
    start = time.monotonic()
    processes = [worker._process for worker in pool._workers]
    pool.close()
    assert all(process.returncode is not None for process in processes)
    for each in (handle, waiting):
        with pytest.raises(RewardError, match="closed"):
            each.result()
    assert time.monotonic() - start < 5
    with pytest.raises(RewardError, match="closed"):
        pool.submit(["p"], ["a"])
    pool.close()


PARENT = """
import sys, time
sys.path[:0] = {path!r}
import test_rewards_pool
from r1jax.rewards import RewardPool
pool = RewardPool({{"pid": test_rewards_pool.process_id, "word": test_rewards_pool.by_name}}, num_workers=2)
print(*(worker._process.pid for worker in pool._workers), flush=True)
pool.submit(["p"], ["hang in C"])
time.sleep(60)
"""


def test_no_orphans_when_the_parent_is_killed():
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(path=path)], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2 and all(map(alive, workers))
    time.sleep(0.3)  # one of them is deep in C by now, holding the interpreter lock
    parent.kill()
    parent.communicate()
    wait_until_gone(workers)


def wait_until_gone(pids, seconds=5):
    pids, deadline = list(pids), time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def alive(pid):
    """Whether the process runs: gone and zombie (no init may be there to reap it) both mean that it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
