"""Held-out scores of rollouts made by hand."""

import types

import jax
import numpy as np
import pytest

from r1jax.data.iterators import PromptBatch
from r1jax.evaluation.evaluate import Scorer, evaluate
from r1jax.recipes.r1_zero import SCORER
from r1jax.recipes.reinforcement import evaluate_held_out
from r1jax.sampling.sampler import Rollout

TOKENIZER = types.SimpleNamespace(decode=lambda ids: "".join(chr(i) for i in ids if i))  # id 0 is the stop token


def rollout_of(texts, truncated=None):
    """Each text's characters, then a stop token unless truncated, then noise that nobody may read."""
    p, k = len(texts), len(texts[0])
    truncated = np.zeros((p, k), bool) if truncated is None else np.array(truncated)
    lengths = np.array([[len(t) for t in row] for row in texts]) + ~truncated
    completions = np.full((p, k, lengths.max() + 2), ord("#"), np.int32)
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            completions[i, j, : lengths[i, j]] = [*map(ord, text)] + [0] * (not truncated[i, j])
    zeros = np.zeros(completions.shape, np.float32)
    return Rollout(completions, lengths, truncated, zeros, zeros)


def say(answer, think="x"):
    return f"<think>{think}</think><answer>{answer}</answer>"


TEXTS = [
    [say(5), say("05"), say(7), say(9)],  # half right; the majority, written in two ways, is right
    [say(8), say(8), say(3), say(3, think="")],  # half right; of equals the first vote counts: wrong
    [say(1), "no answer", say(2), "none"],  # a quarter; no answer never wins the vote
]
COLUMNS = {
    "question": ["q5", "q3", "q1"],
    "answer": ["5", "3", "1"],
    "level": [1, 2, 1],
    "terms": [(2, 3), (1, 2), (1,)],
}


def scores(texts=TEXTS, columns=COLUMNS, scorer=SCORER, **options):
    prompts = [f"prompt {q}" for q in columns["question"]]
    return evaluate(rollout_of(texts, **options), TOKENIZER, prompts, columns, scorer)


def test_scores():
    metrics, rows = scores()
    assert metrics["eval/pass@1"] == pytest.approx((2 / 4 + 2 / 4 + 1 / 4) / 3)
    assert metrics["eval/cons@4"] == pytest.approx(2 / 3)
    assert metrics["eval/format"] == pytest.approx(9 / 12)  # two have no answer, one has an empty thought
    assert metrics["eval/mean_length"] == pytest.approx(np.mean([len(t) + 1 for row in TEXTS for t in row]))
    assert metrics["eval/truncated"] == metrics["eval/unscored"] == 0
    assert metrics["eval/level_1/pass@1"] == pytest.approx(3 / 8)
    assert metrics["eval/level_2/pass@1"] == pytest.approx(1 / 2)
    assert rows[0] == {"prompt": "q5", "completion": TEXTS[0][0], "reward": 1.0, "answer": "5"}
    assert [row["reward"] for row in rows] == [1.0, 0.0, 1.0]


def test_a_truncated_completion_keeps_all_its_tokens():
    truncated = np.zeros((3, 4), bool)
    truncated[0, 0] = True
    metrics, _ = scores(truncated=truncated)
    assert metrics["eval/truncated"] == pytest.approx(1 / 12)
    assert metrics["eval/pass@1"] == pytest.approx(5 / 12)


def test_unscored_samples_count_as_wrong_and_are_reported():
    metrics, _ = scores(columns=COLUMNS | {"answer": ["5", "three", "1"]})
    assert metrics["eval/unscored"] == pytest.approx(1 / 3)
    assert metrics["eval/pass@1"] == pytest.approx(3 / 12)


def test_columns_and_prompts_go_with_their_samples():
    def correct(prompts, completions, answer, level, **columns):
        assert prompts == [f"prompt q{a}" for a in answer] and len(prompts) == 12
        assert level == [1] * 4 + [2] * 4 + [1] * 4
        assert completions == [text for row in TEXTS for text in row]
        return [float(a == "3") for a in answer]

    metrics, _ = scores(scorer=Scorer(correct, SCORER.answer, SCORER.well_formed))
    assert metrics["eval/level_2/pass@1"] == 1 and metrics["eval/level_1/pass@1"] == 0


def test_held_out_problems_are_sampled_in_batches_of_one_shape():
    """Three problems, two at a time: the last batch is filled up, what fills it is not scored, and noise is fresh."""
    calls, whole = [], rollout_of(TEXTS)

    class Sampler:
        prompts = 2

        def __call__(self, weights, batch, step, part=0):
            calls.append((weights, batch.tokens.tolist(), batch.lengths.tolist(), step, part))
            return jax.tree.map(lambda a: a[batch.tokens[:, 0]], whole), None

    held_out = [
        PromptBatch(
            np.arange(3)[rows, None], np.full(3, 9)[rows], list("abc")[rows], {k: v[rows] for k, v in COLUMNS.items()}
        )
        for rows in (slice(0, 2), slice(2, 3))
    ]
    state, runtime = types.SimpleNamespace(model_state="weights"), types.SimpleNamespace(tokenizer=TOKENIZER)
    assert evaluate_held_out(Sampler(), state, held_out, runtime, 7, SCORER) == scores()
    assert calls == [("weights", [[0], [1]], [9, 9], 7, 0), ("weights", [[2], [2]], [9, 9], 7, 1)]
