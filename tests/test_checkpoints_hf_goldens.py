"""Loaded checkpoints against numbers that transformers computed from the same files (`tests/goldens/make.py`)."""

import functools
from pathlib import Path

import numpy as np
import pytest
from helpers import relative_error
from parity import GRADIENT_TOLERANCE, MESH, Loaded, tolerance

from r1jax.sharding import make_mesh

GOLDENS = Path(__file__).parent / "goldens"
NAMES = sorted(p.parent.name for p in GOLDENS.glob("*/expected.npz"))


@functools.cache
def loaded(name):
    return Loaded(GOLDENS / name)


@functools.cache
def expected(name):
    return dict(np.load(GOLDENS / name / "expected.npz"))


def assert_logits(name, logits, ahead):
    want = expected(name)
    assert relative_error(logits[:, want["positions"]], want["logits"]) <= tolerance(name)
    assert (ahead is None) == ("mtp_logits" not in want)
    if ahead is not None:
        assert relative_error(ahead[:, want["positions"]], want["mtp_logits"]) <= tolerance(name)


@pytest.mark.parametrize("name", NAMES)
def test_logits(name):
    """At positions below and past the original length of a scaled rope."""
    assert_logits(name, *loaded(name).logits(expected(name)["tokens"]))


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen2"])
def test_gradients(name):
    want, got = expected(name), loaded(name).gradients(expected(name)["tokens"])
    names = want["gradient_names"].tolist()
    assert set(names) <= set(got)
    for name, norm, entries in zip(names, want["gradient_norms"], want["gradient_entries"], strict=True):
        at = np.linspace(0, got[name].size - 1, len(entries)).astype(int)
        assert np.linalg.norm(got[name]) == pytest.approx(norm, rel=GRADIENT_TOLERANCE), name
        assert np.abs(got[name].ravel()[at] - entries).max() <= GRADIENT_TOLERANCE * norm, name


@pytest.mark.parametrize("name", NAMES)
def test_greedy_continuations(name):
    want = expected(name)
    steps = want["completions"].shape[1]
    got = loaded(name).greedy(want["prompts"], want["prompt_lengths"], steps)
    np.testing.assert_array_equal(got, want["completions"])


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen2"])
def test_logits_on_a_mesh(name):
    tokens = np.tile(expected(name)["tokens"], (2, 1))  # rows for each of the mesh's batch axes
    logits, ahead = Loaded(GOLDENS / name, make_mesh(MESH)).logits(tokens)
    for rows in (slice(0, 2), slice(2, 4)):
        assert_logits(name, logits[rows], ahead if ahead is None else ahead[rows])
