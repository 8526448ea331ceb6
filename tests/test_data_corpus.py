"""Problems, templates, tokenizer and corpus: what the miniature learns from, and what it must never see."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data import (
    R1_ZERO_SYMBOLS,
    CorpusConfig,
    SentencePieceTokenizer,
    corpus_tokenizer,
    documents,
    generate,
    render_r1_zero,
    split_of,
    train_sentencepiece,
)
from r1jax.data.problems import GAINS, LIMIT, LOSSES
from r1jax.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return corpus_tokenizer(CorpusConfig(), tmp_path_factory.mktemp("tokenizer") / "nano.model")


def terms_in_words(question):
    """The terms that a word problem tells, read back from its text."""
    first = int(re.match(r"\w+ has (\d) \w+, ", question)[1])
    steps = re.findall(r", (\w+) (\d)", question)
    assert all(verb in GAINS + LOSSES for verb, _ in steps)
    return (first, *(int(digit) if verb in GAINS else -int(digit) for verb, digit in steps))


def test_problems_say_what_their_terms_are():
    problems = generate(0, 800, "train")
    for i, problem in enumerate(problems):
        assert problem.level == i % 4 + 1 == len(problem.terms) - 2
        totals = np.cumsum(problem.terms)
        assert problem.terms[0] > 0 and totals.min() >= 0 and totals.max() <= LIMIT
        assert all(1 <= abs(term) <= 9 for term in problem.terms)
        assert problem.answer == str(totals[-1])
        if problem.kind == "sum":
            expression = re.fullmatch(r"What is ([0-9+-]+)\?", problem.question)[1]
            assert tuple(map(int, re.findall(r"[+-]?\d", expression))) == problem.terms
        else:
            assert terms_in_words(problem.question) == problem.terms
    assert {problem.kind for problem in problems} == {"sum", "word"}


def test_problems_are_a_function_of_the_seed():
    assert generate(3, 50, "train") == generate(3, 100, "train")[:50]
    assert generate(3, 50, "train") != generate(4, 50, "train")


def test_splits_share_no_sum_in_any_wording_or_seed():
    train = {problem.terms for seed in range(3) for problem in generate(seed, 4000, "train")}
    test = [problem.terms for problem in generate(0, 512, "test")]
    assert len(set(test)) == len(test)
    assert not train & set(test)
    # The split is part of what a published number means: it must not move with Python, NumPy or a release.
    assert [split_of((9, step, 1)) for step in range(1, 10)] == ["test", *["train"] * 8]


def test_too_many_test_problems_is_an_error():
    with pytest.raises(DataError, match=r"count=400 of level 1: the test split has only \d+ different sums"):
        generate(0, 400, "test", levels=(1,))
    with pytest.raises(ConfigError, match="split='validation'"):
        generate(0, 1, "validation")


def test_template_is_the_papers():
    assert render_r1_zero("What is 1+1?") == (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
        "assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
        "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
        "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>. User: What is "
        "1+1?. Assistant:"
    )


def test_tokenizer_ids_and_symbols(tokenizer):
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_ids) == (0, 2, (3,))
    assert tokenizer.vocab_size <= 256
    for symbol in R1_ZERO_SYMBOLS:
        assert len(tokenizer.encode(symbol)) == 1
    assert len(tokenizer.encode("<think>13+25=38</think><answer>38</answer>")) == 14
    template = len(tokenizer.encode(render_r1_zero("What is 1+1?"))) - len(tokenizer.encode(" What is 1+1?"))
    assert template == 2
    valid = tokenizer.valid_ids(300)
    assert valid.sum() == tokenizer.vocab_size - 3 and valid[3] and not valid[:3].any()


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, include_characters="\n"), max_size=60))
def test_any_ascii_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    prompt = render_r1_zero(text)
    assert tokenizer.decode([2, *tokenizer.encode(prompt), 3, 0, 0]) == prompt


def test_documents_round_trip_and_split_anywhere(tokenizer):
    docs = documents(CorpusConfig(), 1, 0, 500)
    for doc in docs:
        ids = tokenizer.encode(doc.prompt) + tokenizer.encode(doc.completion)
        assert tokenizer.decode(ids) == doc.prompt + doc.completion
        assert ids == tokenizer.encode(doc.prompt + doc.completion)


def test_tokenizer_training_is_deterministic(tmp_path):
    texts = [doc.prompt + doc.completion for doc in documents(CorpusConfig(), 0, 0, 300)]
    for name in ("a", "b"):
        train_sentencepiece(texts, tmp_path / name, 200, R1_ZERO_SYMBOLS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_tokenizer_errors(tokenizer, tmp_path):
    with pytest.raises(DataError, match="no piece for 'é'"):
        tokenizer.encode("café")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    for name in ("bad.model", "missing.model"):
        with pytest.raises(DataError, match=name):
            SentencePieceTokenizer(tmp_path / name)


def test_documents_depend_on_their_index_alone():
    config = CorpusConfig()
    together = documents(config, 7, 1000, 200)
    assert together == [documents(config, 7, i, 1)[0] for i in range(1000, 1200)]
    assert together != documents(config, 8, 1000, 200)


def read_chain(text):
    """`3+5=8-2=6` as ([3, 5, -2], [3, 8, 6])."""
    first, steps = re.match(r"\d+", text)[0], re.findall(r"([+-]\d)=(\d+)", text)
    assert text == first + "".join(f"{term}={total}" for term, total in steps)
    return [int(first), *(int(term) for term, _ in steps)], [int(first), *(int(total) for _, total in steps)]


def read_document(doc):
    """(terms of its question, what it thinks, its answer)."""
    terms = terms_of(doc.prompt.split(" User: ")[1].removesuffix(". Assistant:"))
    think, answer = re.fullmatch(r"<think>(.*)</think><answer>(\d+)</answer>", doc.completion).groups()
    return terms, think, int(answer)


def terms_of(question):
    if question.startswith("What is "):
        return tuple(map(int, re.findall(r"[+-]?\d", question)))
    return terms_in_words(question)


def test_corpus_holds_what_its_config_says():
    config, count = CorpusConfig(worked_slip=0.1), 20_000
    docs = documents(config, 0, 0, count)
    kinds = {kind: [doc for doc in docs if doc.kind == kind] for kind in ("worked", "guess", "textbook")}
    for kind, share in (("worked", 0.12), ("guess", 0.48), ("textbook", 0.4)):
        assert abs(len(kinds[kind]) / count - share) < 0.02
    errors = []
    for doc in kinds["guess"]:
        terms, think, answer = read_document(doc)
        assert split_of(terms) == "train" and think.endswith(f" {answer}")
        assert -5 <= answer - sum(terms) <= 5 or answer == 0
        errors.append(answer - sum(terms))
    assert np.ptp(np.bincount(np.array(errors) + 60)[56:66]) < 0.02 * count  # about level but for those held at 0
    slips = steps = 0
    for doc in kinds["worked"]:
        terms, think, answer = read_document(doc)
        chain, totals = read_chain(think)
        assert split_of(terms) == "train" and tuple(chain) == terms and answer == totals[-1] and min(totals) >= 0
        wrong = np.diff(totals) - chain[1:]
        assert set(np.abs(wrong)) <= {0, 1, 2}
        slips, steps = slips + np.count_nonzero(wrong), steps + len(wrong)
    assert abs(slips / steps - 0.1) < 0.02
    for doc in kinds["textbook"]:
        question, _, working = doc.completion.rpartition("? ")
        chain, totals = read_chain(working)
        assert doc.prompt == "" and terms_of(f"{question}?") == tuple(chain)
        assert list(np.cumsum(chain)) == totals and split_of(chain) == "train"
        assert 0 <= min(totals) and max(totals) <= LIMIT


def test_corpus_config_is_checked():
    for bad in ({"share_guess": 0.9}, {"worked_slip": 1.5}, {"guess_radius": -1}, {"levels": ()}, {"levels": (0,)}):
        with pytest.raises(ConfigError, match=next(iter(bad)).split("_")[0]):
            CorpusConfig(**bad)
