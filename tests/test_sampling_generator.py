"""Completions of many prompts: those of a plain loop, whatever the bucket, the batch and the mesh."""

import functools
import itertools

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import graphdef, make_layout, method, random_state, shard, tiny_config, tiny_llama3
from hf_folders import deepseek_folder

from r1jax.configs.training import SamplingConfig
from r1jax.data.hf_tokenizer import load_tokenizer
from r1jax.errors import ConfigError, DataError
from r1jax.sampling import sampler
from r1jax.sampling.generator import Generator

SLOTS = 6
# The vocabulary has rows that no piece has.
CONFIG = tiny_config(num_hidden_layers=2, first_k_dense_replace=1, vocab_size=384, max_position_embeddings=64)
LENGTHS = [33, 1, 16, 40, 17, 3, 32, 20, 15, 31]  # of 4 at a time: 1 3 15 16, 17 20 31 32, 33 40
PROMPTS = [np.random.default_rng(n).integers(0, 300, n).tolist() for n in LENGTHS]
DENSE = tiny_llama3(num_hidden_layers=1, first_k_dense_replace=1, vocab_size=384, max_position_embeddings=64)
STOPS = tuple(range(0, 384, 8))
SHORT = [1, 2, 5, 8]  # the first bucket's
FEW = np.array([11, 13, 24, 30, 50])  # among so few, some drafts are right


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(deepseek_folder(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def make(tokenizer, monkeypatch):
    """A generator with these settings; of its tokenizer other `stops` and `allowed` ids."""
    # LLVM's optimisation would take longer than it saves.
    quick = functools.partial(Generator._jit, compiler_options={"xla_backend_optimization_level": 0})
    monkeypatch.setattr(Generator, "_jit", lambda self, function, **options: quick(self, function, **options))

    def make(temperature=0.0, n=1, config=CONFIG, mesh=None, stops=(), allowed=None, batch_size=4, **options):
        if stops:
            monkeypatch.setattr(tokenizer, "eos_ids", stops)
        if allowed is not None:
            monkeypatch.setattr(tokenizer, "valid_ids", lambda size: np.isin(np.arange(size), allowed))
        truncation = {name: options.pop(name) for name in ("top_k", "top_p") if name in options}
        sampling = SamplingConfig(temperature, num_generations=n, max_completion_length=SLOTS, **truncation)
        layout = None if mesh is None else make_layout(mesh)
        model = nnx.merge(graphdef(config), shard(random_state(config), layout))
        mesh = None if layout is None else layout.mesh
        return Generator(model, config, tokenizer, sampling, mesh=mesh, batch_size=batch_size, **options)

    return make


def draw(generator, prompts=PROMPTS, done=frozenset()):
    """{number of the prompt: its completions}"""
    return {i: drawn for batch in generator(prompts, done) for i, drawn in batch}


def tokens(drawn):
    return {i: [c.tokens for c in completions] for i, completions in drawn.items()}


def whole_pass(rows, config=CONFIG):
    """Logits [B, T, V] of whole forward passes."""
    return np.asarray(method(config, "__call__")(random_state(config), rows))


@functools.cache
def greedy(allowed):
    """{number of the prompt: its likeliest tokens}, one whole forward pass a token."""
    rows = np.zeros((len(PROMPTS), 48), np.int32)
    for row, prompt in zip(rows, PROMPTS, strict=True):
        row[: len(prompt)] = prompt
    numbers, ends = np.arange(len(PROMPTS)), np.array(LENGTHS)
    for slot in range(SLOTS):
        logits = whole_pass(rows)[numbers, ends + slot - 1]
        rows[numbers, ends + slot] = np.where(np.isin(np.arange(384), allowed), logits, -np.inf).argmax(axis=-1)
    return {i: [rows[i, n : n + SLOTS].tolist()] for i, n in enumerate(LENGTHS)}


def test_greedy_completions_are_those_of_whole_forward_passes(make, tokenizer):
    generator, seen = make(stops=(383,)), []
    programs = generator._programs

    def spy(state, prompts, *rest):
        out = programs.sample(state, prompts, *rest)
        seen.append((prompts.shape, np.asarray(out.lengths).ravel().tolist()))
        return out

    generator._programs = programs._replace(sample=spy)
    drawn = draw(generator)
    assert tokens(drawn) == greedy(tuple(np.flatnonzero(tokenizer.valid_ids(384))))
    # Buckets hold the lengths that they are called by, and rows without a prompt draw nothing.
    assert seen == [((4, 16), [SLOTS] * 4), ((4, 32), [SLOTS] * 4), ((4, 64), [SLOTS, SLOTS, 0, 0])]
    assert {c.finish_reason for cs in drawn.values() for c in cs} == {"length"}
    assert (generator.statistics.tokens, generator.statistics.passes) == (60, 60)
    assert generator.statistics.accepted == 0


@pytest.mark.parametrize("mesh", [{"data": 2, "expert": 2, "tensor": 2}, {"data": 2}])
def test_a_mesh_draws_the_same(make, tokenizer, mesh):
    """Also where each device has all weights, which are prepared there."""
    generator = make(n=2, stops=(383,), mesh=mesh, batch_size=2)
    apart = jax.tree.leaves(generator._programs.state.get("apart", {}))
    assert bool(apart) == ("tensor" not in mesh) and all(leaf.sharding.is_fully_replicated for leaf in apart)
    drawn = tokens(draw(generator, [PROMPTS[i] for i in SHORT]))
    expected = greedy(tuple(np.flatnonzero(tokenizer.valid_ids(384))))
    assert drawn == {at: expected[i] * 2 for at, i in enumerate(SHORT)}


def test_drafts_change_no_greedy_token(make):
    generator = make(stops=(383,), allowed=FEW, speculative=True, batch_size=3)
    drawn = tokens(draw(generator, [PROMPTS[i] for i in SHORT]))
    assert drawn == {at: greedy(tuple(FEW))[i] for at, i in enumerate(SHORT)}
    told = generator.statistics
    assert told.tokens == 24 and told.passes < 20 and 0 < told.accepted < told.passes
    assert told.tokens <= 4 + told.passes + told.accepted  # a prompt's own pass draws the first token


def test_sampled_completions_end_as_they_say_and_tell_what_they_were_drawn_from(make, tokenizer):
    generator, prompts = make(1.3, n=4, config=DENSE, stops=STOPS, top_k=60), [PROMPTS[i] for i in SHORT] * 2
    drawn = draw(generator, prompts)
    flat = [(prompt, c) for i, prompt in enumerate(prompts) for c in drawn[i]]
    assert all(len({tuple(row) for row in rows}) > 1 for rows in tokens(drawn).values())
    assert {c.finish_reason for _, c in flat} == {"stop", "length"}
    rows = np.zeros((len(flat), 24), np.int32)
    for row, (prompt, c) in zip(rows, flat, strict=True):
        row[: len(prompt) + len(c.tokens)] = prompt + c.tokens
        assert all(t not in STOPS and t < tokenizer.vocab_size for t in c.tokens[:-1])
        assert c.finish_reason == ("stop" if c.tokens[-1] in STOPS else "length")
        assert len(c.tokens) == len(c.logps) and (len(c.tokens) == SLOTS or c.finish_reason == "stop")
    assert generator.statistics.tokens == generator.statistics.passes == sum(len(c.tokens) for _, c in flat)

    logits = np.where(tokenizer.valid_ids(384), whole_pass(rows, DENSE), -np.inf) / 1.3
    logits = np.where(logits >= np.sort(logits, axis=-1)[..., -60, None], logits, -np.inf)
    logps = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    for row, of, (prompt, c) in zip(rows, logps, flat, strict=True):
        at = np.arange(len(prompt), len(prompt) + len(c.tokens))
        np.testing.assert_allclose(c.logps, of[at - 1, row[at]], atol=2e-5)


def test_noise_is_of_the_seed_the_batch_and_the_row_and_not_of_what_is_done(make):
    prompts, generator = [[5, 6, 7]] * 10, make(1.0, config=DENSE)
    first = draw(generator, prompts)
    assert draw(generator, prompts) == first
    assert len({tuple(c.tokens) for (c,) in first.values()}) == 10
    other = tokens(draw(make(1.0, config=DENSE, seed=1), prompts))
    assert all(other[i] != tokens(first)[i] for i in range(10))

    done = frozenset({0, 1, 2, 3, 5, 6, 9})
    assert draw(generator, prompts, done) == {i: first[i] for i in (4, 7, 8)}


def test_a_stream_is_the_same_completion_in_pieces(make):
    generator, ends = make(1.0, config=DENSE, stops=STOPS), set()
    (alone,) = draw(generator, PROMPTS[4:5])[0]
    for turn in range(5):
        pieces = list(itertools.islice(generator.stream(PROMPTS[4], turn, every=4), 9))
        streamed = [*itertools.chain(*pieces)]
        assert (streamed == alone.tokens) == (turn == 0)  # the noise of a turn is that of the batch of its number
        assert [len(piece) for piece in pieces] == [len(streamed[:4]), len(streamed[4:])][: len(pieces)]
        assert streamed == [*itertools.chain(*generator.stream(PROMPTS[4], turn, every=1))]
        stopped = [token in STOPS for token in streamed]
        assert not any(stopped[:-1]) and (stopped[-1] or len(streamed) == SLOTS)
        ends.add(stopped[-1])
    assert ends == {True, False}


def test_what_cannot_work_is_refused_in_one_sentence(make):
    with pytest.raises(ConfigError, match=r"^batch_size=3: must be a multiple of 2, the mesh's prompt devices$"):
        make(batch_size=3, mesh={"data": 2})
    with pytest.raises(ConfigError, match=r"^n=1: must be a multiple of 2, the mesh's group devices$"):
        make(mesh={"expert": 2})
    with pytest.raises(ConfigError, match=r"^batch_size=0: must be at least 1$"):
        make(batch_size=0)
    with pytest.raises(ConfigError, match=r"^speculative=True: .* no prediction module \(num_nextn_predict_layers=0\)"):
        make(config=CONFIG.replace(num_nextn_predict_layers=0), speculative=True)
    generator = make()
    generator.check([1] * 58, "prompt")
    too_long = r"^prompt 1 has 59 tokens, which leaves no room for 6 more in the model's 64 positions; shorten it"
    with pytest.raises(DataError, match=too_long):
        next(generator([[1], [1] * 59]))
    with pytest.raises(DataError, match=r"^prompt 0 has no tokens: give at least one"):
        next(generator([[], [1]]))
    with pytest.raises(DataError, match=r"^the conversation has 59 tokens"):
        next(generator.stream([1] * 59))
    assert generator.statistics.tokens == 0


def buffers(state) -> set[int]:
    return {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)}


@pytest.mark.parametrize("speculative", [False, True])
def test_weights_are_held_once_but_for_small_layers_which_are_prepared_once(make, monkeypatch, speculative):
    generator = make(speculative=speculative)
    state = generator._programs.state
    assert buffers(state) > buffers(generator._weights[1])
    assert set(state["apart"]) == {"blocks", "head"} | ({"mtp"} if speculative else set())
    assert set(state["apart"]["blocks"][1]["mlp"]) == {"router", "mlps"}  # all experts at once
    monkeypatch.setattr(sampler, "OF_THE_HOST", 0)
    generator = make(speculative=speculative)
    assert buffers(generator._programs.state) == buffers(generator._weights[1])


def test_other_settings_share_the_weights_and_draw_as_a_generator_of_their_own(make):
    first = make(1.0, n=2, config=DENSE)
    other = first.with_sampling(SamplingConfig(0.7, num_generations=3, max_completion_length=SLOTS), 2)
    assert buffers(first._weights[1]) == buffers(first._programs.state) & buffers(other._programs.state)
    drawn = tokens(draw(other, PROMPTS[:3]))
    assert drawn == tokens(draw(make(0.7, n=3, config=DENSE, batch_size=2), PROMPTS[:3]))
    assert {len(rows) for rows in drawn.values()} == {3} and first.statistics.tokens == 0
    with pytest.raises(ConfigError, match="batch_size=0"):
        first.with_sampling(first.sampling, 0)
