"""Benchmarks that are judged elsewhere: AlpacaEval 2's win rates, SWE-bench's predictions."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit

from r1jax.errors import DataError
from r1jax.evaluation.benchmarks import BENCHMARKS
from r1jax.evaluation.benchmarks.alpaca_eval import Verdict, fit_logistic, read_difficulties, read_verdicts, win_rates
from r1jax.evaluation.benchmarks.swe_bench import extract_patch

SCRIPT = Path(__file__).parents[1] / "experiments" / "alpaca_eval.py"


def put(path, rows):
    path.write_text(json.dumps(rows))
    return str(path)


def drawn(seed, n=4000, length=-1.2, hard=0.7, model=0.4, longer=0.0):
    """Verdicts of a judge that is the regression's own; the model's outputs are `longer` by so many deviations."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=n)
    lengths = np.round(1000 * (rng.normal(size=n) - longer)).astype(int)
    features = np.tanh(lengths / lengths.std(ddof=1))
    preference = rng.random(n) < expit(length * features + hard * difficulty + model)
    verdicts = [Verdict(i, float(p), int(d)) for i, (p, d) in enumerate(zip(preference, lengths, strict=True))]
    return verdicts, dict(enumerate(difficulty))


def test_the_regression_finds_what_made_the_verdicts():
    verdicts, difficulty = drawn(0)
    rates = win_rates(verdicts, difficulty)
    assert rates.coefficients == pytest.approx({"length": -1.2, "difficulty": 0.7, "model": 0.4}, abs=0.15)
    assert rates.win_rate == pytest.approx(100 * np.mean([verdict.preference for verdict in verdicts]))
    assert rates.verdicts == 4000


def test_length_is_controlled():
    """The same model, asked to be verbose: the win rate rises, and the length-controlled one does not."""
    plain, wordy = (win_rates(*drawn(1, longer=longer)) for longer in (0.0, 1.0))
    assert wordy.win_rate - plain.win_rate > 8
    assert abs(wordy.length_controlled - plain.length_controlled) < 3
    assert plain.length_controlled == pytest.approx(
        100 * np.mean(expit(0.4 + 0.7 * np.random.default_rng(1).normal(size=4000))), abs=2
    )


def test_win_rates_by_hand():
    verdicts = [Verdict(0, 1.0, 0), Verdict(1, 0.0, 0), Verdict(2, 0.75, 0), Verdict(3, 0.75, 0)]
    rates = win_rates(verdicts)  # lengths do not differ: the length-controlled win rate is the win rate
    assert rates.win_rate == 62.5 and rates.length_controlled == pytest.approx(62.5, abs=0.02)  # the ridge
    assert rates.standard_error == pytest.approx(100 * np.std([1, 0, 0.75, 0.75], ddof=1) / 2)
    assert rates.coefficients["length"] == rates.coefficients["difficulty"] == 0


def test_verdicts_that_part_without_error_stay_finite():
    rates = win_rates([Verdict(i, 1.0, -i) for i in range(50)])
    assert rates.win_rate == 100 and 97 < rates.length_controlled <= 100
    assert all(np.isfinite(value) for value in rates.coefficients.values())


@given(st.integers(0, 10_000), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_newton_finds_the_minimum(seed, count):
    rng = np.random.default_rng(seed)
    features, weights = rng.normal(size=(30, count)) * 10 ** rng.uniform(-2, 2), rng.uniform(0, 2, 30)
    targets = rng.uniform(size=30)

    def loss(at):
        logits = features @ at
        return weights @ (np.logaddexp(0, logits) - targets * logits) + 5e-4 * (at @ at)

    found = fit_logistic(features, targets, weights)
    assert loss(found) <= minimize(loss, np.zeros(count), method="BFGS").fun + 1e-6
    gradient = features.T @ (weights * (expit(features @ found) - targets)) + 1e-3 * found
    assert np.abs(gradient).max() < 1e-5 * (1 + np.abs(features).max())


def test_gamed_verdicts_hold_the_length_coefficient():
    """A model whose outputs are all 30 characters shorter says little of length; the gamed verdicts say it."""
    rng = np.random.default_rng(2)
    verdicts = [Verdict(i, float(rng.random() < 0.3), int(30 + rng.normal())) for i in range(300)]
    gamed = [
        {"preference": float(expit(-1.5 * np.tanh(x))), "std_delta_len": x, "instruction_difficulty": 0.0}
        for x in rng.normal(size=4000)
    ]
    alone, held = (
        win_rates(verdicts, dict.fromkeys(range(300), 0.0)),
        win_rates(verdicts, dict.fromkeys(range(300), 0.0), gamed),
    )
    assert abs(held.coefficients["length"] + 1.5) < 0.3 < abs(alone.coefficients["length"] + 1.5)
    assert held.length_controlled > alone.length_controlled  # what its outputs lost by their length is given back


def annotations(*preferences):
    return [
        {"instruction": f"i{n}", "output_1": "a" * 20, "output_2": "b" * (10 + n), "generator_1": "base",
         "generator_2": "model", "preference": preference}
        for n, preference in enumerate(preferences)
    ]  # fmt: skip


def test_verdicts_are_read_as_published(tmp_path):
    verdicts = read_verdicts(put(tmp_path / "annotations.json", annotations(1.0, 2, None, 0, 1.25)))
    assert verdicts == [Verdict(0, 0.0, 10), Verdict(1, 1.0, 9), Verdict(3, 0.5, 7), Verdict(4, 0.25, 6)]
    for bad in (3.0, "2", True, 0.5, float("nan")):
        with pytest.raises(DataError, match=r"row 2: preference=.*: give a number from 1 to 2, or 0 for a draw"):
            read_verdicts(put(tmp_path / "bad.json", annotations(1.0, bad)))
    with pytest.raises(DataError, match="holds no verdict"):
        read_verdicts(put(tmp_path / "none.json", annotations(None)))
    with pytest.raises(DataError, match="row 1: preference=None"):
        read_verdicts(put(tmp_path / "outputs.json", [{"instruction": "i", "output": "o"}]))


def test_difficulties(tmp_path):
    path = tmp_path / "instruction_difficulty.csv"
    path.write_text("index,instruction_difficulty\n0,-1.5\n1,0.25\n")
    assert read_difficulties(str(path)) == {0: -1.5, 1: 0.25}
    path.write_text("index,instruction_difficulty\nzero,1\n")
    with pytest.raises(DataError, match="row 1: invalid literal"):
        read_difficulties(str(path))
    with pytest.raises(DataError, match="instruction 1 has none"):
        win_rates([Verdict(0, 1.0, 1), Verdict(1, 0.0, 2)], {0: 1.0})
    with pytest.raises(DataError, match="1 verdicts: a regression needs at least 2"):
        win_rates([Verdict(0, 1.0, 1)])


def test_the_script_prints_them(tmp_path, capsys, monkeypatch):
    path = put(tmp_path / "annotations.json", annotations(1.0, 2.0, 1.5, 2.0))
    difficulty, gamed = tmp_path / "difficulty.csv", tmp_path / "gamed.csv"
    difficulty.write_text("index,instruction_difficulty\n0,1\n1,0\n2,0.5\n3,0\n")
    gamed.write_text("preference,std_delta_len,instruction_difficulty,not_gamed_baseline\n0.9,-1.0,0.5,False\n")
    options = ["--annotations", path, "--difficulty", str(difficulty), "--gamed", str(gamed)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("win rate                     62.50% ± 23.94") and told[2].split() == ["verdicts", "4"]


def test_alpaca_eval_outputs(tmp_path):
    benchmark = BENCHMARKS["alpaca_eval"]
    rows = [{"dataset": "helpful_base", "instruction": " Name a tree.\n", "output": "oak", "generator": "base"}]
    problems = benchmark.load(put(tmp_path / "a.json", rows), 0)
    assert benchmark.score is None and benchmark.protocol.k == 1
    assert problems[0].prompt == " Name a tree.\n"  # to the letter: the verdicts are joined by it
    assert benchmark.export(problems, [["<think>trees</think>\n\nAn elm.", "a second"]], "mine") == [
        {"instruction": " Name a tree.\n", "output": "An elm.", "generator": "mine", "dataset": "helpful_base"}
    ]


PATCH = "diff --git a/x.py b/x.py\n--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-a\n+b\n"


@pytest.mark.parametrize(
    ("completion", "patch"),
    [
        (f"Here:\n```diff\n{PATCH}```\nDone.", PATCH),
        (f"```patch\n{PATCH}```", PATCH),
        (f"<patch>\n{PATCH}</patch>", PATCH),
        (f"  ```diff\n{PATCH}  ```", PATCH),
        (f"The change:\n\n{PATCH}", PATCH),
        (f"```\n{PATCH}```\nThat is all.", PATCH),
        ("--- a/y.py\n+++ b/y.py\n@@ -1 +1 @@\n-a\n+b", "--- a/y.py\n+++ b/y.py\n@@ -1 +1 @@\n-a\n+b\n"),
        (f"```diff\n{PATCH.replace('+b', '+draft')}```\nBetter:\n```diff\n{PATCH}```", PATCH),
        (f"```diff\n{PATCH}```\n```diff\n-not a patch\n```", PATCH),
        (f"<think>```diff\n{PATCH.replace('+b', '+draft')}```</think>```diff\n{PATCH}```", PATCH),
        (f"```diff\n{PATCH.replace('+b', '+ ')}```", PATCH.replace("+b", "+ ")),  # blanks at a line's end are content
        (f"<think>```diff\n{PATCH}```", ""),
        ("I could not find it.\n---\nSorry.", ""),
        ("", ""),
    ],
)
def test_patches(completion, patch):
    assert extract_patch(completion) == patch


def test_swe_bench_predictions(tmp_path):
    benchmark = BENCHMARKS["swe_bench"]
    row = {"instance_id": "a__b-1", "repo": "a/b", "base_commit": "c0ffee", "problem_statement": "It fails.\n"}
    rows = [row, row | {"instance_id": "a__b-2", "text": "The whole prompt."}]
    problems = benchmark.load(put(tmp_path / "a.json", rows), 0)
    assert "It fails." in problems[0].prompt and "a/b at commit c0ffee" in problems[0].prompt
    assert problems[1].prompt == "The whole prompt." and benchmark.score is None
    assert benchmark.export(problems, [[f"```diff\n{PATCH}```"], ["no"]], "mine") == [
        {"instance_id": "a__b-1", "model_name_or_path": "mine", "model_patch": PATCH},
        {"instance_id": "a__b-2", "model_name_or_path": "mine", "model_patch": ""},
    ]
