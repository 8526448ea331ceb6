"""Words of reflection: counted as words, logged by a step, drawn where there are any."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.evaluation.reflection import REFLECTION_WORDS, reflection_counts, reflection_metrics
from r1jax.evaluation.report import write_report


def test_the_list_is_the_paper_s():
    assert len(REFLECTION_WORDS) == 10 and {"wait", "retry", "evaluate"} < set(REFLECTION_WORDS)


def test_whole_words_in_any_case():
    texts = ["Wait, wait. WAIT! That is wrong; let me check.", "However, (but) a mistake.", "7+5=12"]
    counts = reflection_counts(texts)
    assert {word: n for word, n in counts.items() if n} == {
        "wait": 3, "wrong": 1, "check": 1, "however": 1, "but": 1, "mistake": 1,
    }  # fmt: skip
    assert list(counts) == list(REFLECTION_WORDS)
    nothing = reflection_counts(["waiting awaits checked checkers buttons errors evaluated re_check errorless", ""])
    assert not any(nothing.values())
    assert reflection_counts([]) == dict.fromkeys(REFLECTION_WORDS, 0)


def test_phrases():
    counts = reflection_counts(["Wait. Let me check. let me check"], ["wait", "Let me check", "check"])
    assert counts == {"wait": 1, "Let me check": 2, "check": 0}
    assert reflection_counts(["a+b? a+b"], ["a+b"]) == {"a+b": 2}  # no pattern


@given(st.lists(st.lists(st.sampled_from(["wait", "but", "so", "Error", "7"]), max_size=8), max_size=5))
def test_counts_are_what_splitting_says(texts):
    counts = reflection_counts([", ".join(words) for words in texts])
    flat = [word.lower() for words in texts for word in words]
    assert all(counts[word] == flat.count(word) for word in REFLECTION_WORDS)


def test_metrics_of_a_step_are_per_completion():
    metrics = reflection_metrics(["wait wait", "but", "", ""])
    assert metrics["reflection/wait"] == 0.5 and metrics["reflection/but"] == 0.25
    assert metrics["reflection/all"] == 0.75 and len(metrics) == len(REFLECTION_WORDS) + 1


@pytest.mark.parametrize("spoken", [True, False])
def test_the_report_draws_them_where_there_are_any(tmp_path, spoken):
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(1, 6):
            row = reflection_metrics(["wait, but check"] * step * spoken + ["7+5=12"] * 10)
            file.write(json.dumps({"phase": "rl", "step": step, "reward": 0.5, **row}) + "\n")
    page = write_report(tmp_path).read_text()
    assert ("Words of reflection" in page) == spoken
    assert (">wait <b>" in page) == (">all <b>" in page) == spoken
    assert ">mistake <b>" not in page
