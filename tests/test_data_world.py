"""The recipe's world: splits that share nothing, solutions that are right, languages that are told apart."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data.chat import ChatTemplate
from r1jax.data.templates import R1_CHAT_TEMPLATE, render_completion, render_r1, render_r1_completion, render_r1_zero
from r1jax.data.world import (
    WorldConfig,
    general_requests,
    preference_pairs,
    problems,
    reasoning_problems,
    safety_labels,
    world_documents,
    world_tokenizer,
)
from r1jax.data.world.draws import LANGUAGES, Draws, rows, split_of
from r1jax.data.world.problems import (
    KINDS,
    LEVELS,
    draw_problem,
    from_textbook,
    textbook_examples,
    translated,
    worked,
)
from r1jax.data.world.requests import draw_request, drawn_requests, good_response
from r1jax.errors import ConfigError, DataError
from r1jax.rewards.language import language_share
from r1jax.rewards.world import world_accuracy, world_answer

seeds = st.integers(0, 2**64 - 1)


def accuracy(rows, completions):
    columns = {name: [row.get(name) for row in rows] for name in ("answer", "tests")}
    return world_accuracy([""] * len(rows), completions, **columns)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return world_tokenizer(WorldConfig(), tmp_path_factory.mktemp("world") / "tokenizer.model", 384)


@given(seeds)
@settings(deadline=None)
def test_draws_are_uniform_choices_of_their_bits(bits):
    draws, again = Draws(bits), Draws(bits)
    values = [(draws.below(7), draws.within(-2, 2), draws.chance(0.5), draws.choice("abc")) for _ in range(8)]
    assert values == [(again.below(7), again.within(-2, 2), again.chance(0.5), again.choice("abc")) for _ in range(8)]
    assert all(0 <= a < 7 and -2 <= b <= 2 and c in "abc" for a, b, _, c in values)
    assert sorted(draws.sample(range(5), 5)) == list(range(5))
    assert not draws.chance(0.0)


def test_draws_are_uniform():
    counts = Counter(draws.below(5) for draws in rows(0, "uniform", 0, 20_000))
    assert all(abs(counts[i] - 4000) < 300 for i in range(5))
    assert sum(draws.chance(0.3) for draws in rows(1, "chance", 0, 20_000)) == pytest.approx(6000, abs=350)


@given(seeds)
@settings(max_examples=200, deadline=None)
def test_every_solution_is_right_and_in_its_language(bits):
    draws = Draws(bits)
    drawn = draw_problem(draws, None)
    steps, answer = drawn.work(draws)
    assert answer == drawn.problem.answer
    row = {"answer": answer, "tests": ()}  # programs run in tests/test_rewards_world.py
    for language in LANGUAGES:
        text = worked(steps, [language] * len(steps))
        assert accuracy([row, row], [render_completion(text, answer), f"<think>{text}</think>\\boxed{{{answer}}}"]) == [
            1,
            1,
        ]
        assert language_share(text, language) == 1.0
        mixed = worked(steps, [draws.choice(LANGUAGES) for _ in steps])
        assert translated(mixed, language) == text


@given(seeds)
@settings(max_examples=200, deadline=None)
def test_a_slip_is_followed_to_the_end(bits):
    """The answer of a solution that went wrong is the one that its steps come to, not the problem's."""
    draws = Draws(bits)
    drawn = draw_problem(draws, None)
    if drawn.kind in ("sum", "word"):
        steps, answer = drawn.work(draws, slip=1.0)
        assert steps[-1].en.endswith(f" makes {answer}") and int(answer) >= 0
    assert drawn.work(Draws(bits), slip=0.0)[1] == drawn.problem.answer


def test_programs_have_tests_that_only_their_rule_passes():
    cases = [row for row in reasoning_problems(0, 60, "train") if row["kind"] == "program"]
    assert accuracy(cases[:4], [render_completion("x", row["answer"]) for row in cases[:4]]) == [1.0] * 4
    others = [cases[(i + 1) % 4]["answer"] for i in range(4)]
    assert accuracy(cases[:4], [render_completion("x", other) for other in others]) == [
        float(other == row["answer"]) for other, row in zip(others, cases, strict=False)
    ]


def test_kinds_levels_and_languages_are_balanced():
    found = reasoning_problems(3, 3000, "train")
    for field, values in (("kind", KINDS), ("level", LEVELS), ("language", LANGUAGES)):
        counts = Counter(row[field] for row in found)
        assert set(counts) == set(values)
        assert all(abs(count - 3000 / len(counts)) < 160 for count in counts.values())


def test_no_test_problem_is_met_in_training():
    test = {row["question"] for row in reasoning_problems(0, 600, "test")}
    train = {row["question"] for row in reasoning_problems(0, 20_000, "train")}
    assert len(test) == 600 and not test & train
    corpus = world_documents(WorldConfig(), 0, 0, 20_000)
    questions = {doc.prompt for doc in corpus} | {doc.completion for doc in corpus if doc.kind == "textbook"}
    assert not {render_r1_zero(question) for question in test} & questions
    assert not any(text.startswith(f"{question} ") for text in questions for question in list(test)[:20])
    asked = {row["question"] for row in general_requests(0, 40, "test")}
    known = {row["question"] for row in general_requests(0, 400, "train")}
    assert asked and not asked & known and not {render_r1_zero(question) for question in asked} & questions


def test_the_split_does_not_see_wording_language_or_order():
    """The same sum in symbols and in words, and a comparison turned round, belong to one split."""
    sums, words, comparison = KINDS["sum"], KINDS["word"], KINDS["comparison"]
    assert sums.key((3, 5, -2)) == words.key((3, 5, -2))
    assert comparison.key(((3, 5), (4, 4))) == comparison.key(((4, 4), (3, 5)))
    assert {split_of(f"key {i}") for i in range(100)} == {"train", "test"} and split_of("") == "train"


def test_documents_are_addressed_by_number():
    config = WorldConfig()
    whole = world_documents(config, 7, 0, 100)
    assert world_documents(config, 7, 40, 20) == whole[40:60]
    assert world_documents(config, 8, 0, 100) != whole


def test_the_corpus_is_what_its_settings_say():
    config = WorldConfig()
    docs = world_documents(config, 0, 0, 8000)
    shares = {kind: count / 8000 for kind, count in Counter(doc.kind for doc in docs).items()}
    for kind in ("worked", "guess", "textbook", "talk"):
        assert shares[kind] == pytest.approx(getattr(config, f"share_{kind}"), abs=0.02)
    thoughts = [doc.completion for doc in docs if doc.kind == "worked" and "Work" not in doc.prompt]
    shares = [[language_share(text.partition("</think>")[0], code) for code in LANGUAGES] for text in thoughts]
    mixed = sum(max(pair) < 1 for pair in shares if pair[0] is not None) / len(thoughts)
    assert mixed > 0.3  # what R1-Zero takes over
    textbooks = [doc.completion for doc in docs if doc.kind == "textbook"]
    words = [text for text in textbooks if text.startswith(("Copy:", "抄写：", "Translate:", "翻译："))]
    assert len(words) / len(textbooks) == pytest.approx(config.language_exercises, abs=0.03)
    assert all(from_textbook(text) for text in textbooks if text not in words)
    with pytest.raises(ConfigError, match="sum to 1"):
        WorldConfig(share_worked=0.5)
    with pytest.raises(ConfigError, match="switch=2"):
        WorldConfig(switch=2)


def test_textbook_examples_can_be_read_back():
    for row in textbook_examples(0, 50):
        work, answer = from_textbook(row["response"])
        assert language_share(work, row["language"]) in (1.0, None) and work and answer
    assert from_textbook("no answer here") is None


def test_good_responses_are_right_and_bad_ones_wrong():
    for kind in drawn_requests(0, 30, "train"):
        for drawn in kind:
            row = {"answer": drawn.request.answer, "tests": None}
            assert drawn.bad and drawn.request.answer not in drawn.bad
            texts = [f"<think>t</think>{text}" for text in (drawn.request.answer, *drawn.bad)]
            assert accuracy([row] * len(texts), texts) == [1.0] + [0.0] * len(drawn.bad)
            assert (drawn.request.kind == "harmful") == (drawn.request.domain == "safety")
    row = general_requests(0, 1, "train")[0]
    assert accuracy([row], [good_response(row)]) == [1.0]


def test_preferences_and_labels():
    for split, least in (("train", 200), ("test", 60)):
        pairs, labels = preference_pairs(0, 200, split), safety_labels(0, 200, split)
        assert 200 >= len(pairs) >= least and 200 >= len(labels) >= least
        assert set(Counter(row["kind"] for row in pairs)) == {"copy", "translate", "name", "advice"}
        assert all(row["chosen"] != row["rejected"] for row in pairs)
        harmful = [row for row in labels if row["kind"] == "harmful"]
        assert len(harmful) == len(labels) // 2 and 0.25 < sum(row["label"] for row in harmful) / len(harmful) < 0.75
        assert all(row["label"] for row in labels if row["kind"] != "harmful")
        refusals = Counter(
            row["label"] for row in harmful if "not help" in row["completion"] or "不帮" in row["completion"]
        )
        assert refusals[False]  # safe in the summary, not in the thinking: only the whole response tells
    for make in (preference_pairs, safety_labels):
        test = [row["prompt"] for row in make(0, 300, "test")]
        assert len(set(test)) == len(test)  # no row twice, or an interval over them would be too narrow
        assert not set(test) & {row["prompt"] for row in make(0, 3000, "train")}


def test_too_many_problems_are_refused(monkeypatch):
    monkeypatch.setattr(problems, "KINDS", {"order": KINDS["order"]})
    monkeypatch.setattr(problems, "LEVELS", (1,))
    with pytest.raises(DataError, match=r"count=1000: the test split has hardly more than \d+ different questions"):
        reasoning_problems(0, 1000, "test")
    with pytest.raises(ConfigError, match="split='dev'"):
        reasoning_problems(0, 1, "dev")
    with pytest.raises(ConfigError, match="split='dev'"):
        general_requests(0, 1, "dev")


def test_the_tokenizer_covers_everything_that_is_said(tokenizer):
    texts = [doc.prompt + doc.completion for doc in world_documents(WorldConfig(), 5, 0, 500)]
    for row in reasoning_problems(0, 100, "test"):
        texts += [render_r1(row["question"]), json.dumps(row["tests"])]
    for kind in drawn_requests(0, 20, "test"):
        texts += [good_response({"kind": d.request.kind, "language": d.request.language, "answer": a})
                  for d in kind for a in (d.request.answer, *d.bad)]  # fmt: skip
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts
    assert len(tokenizer.encode(render_r1("4"))) <= 4  # tags are one piece each
    assert tokenizer.vocab_size == 384


def test_the_chat_template_is_the_prompt_that_training_uses():
    template = ChatTemplate(R1_CHAT_TEMPLATE)
    assert template.render([{"role": "user", "content": "2+2?"}]) == render_r1("2+2?")
    turns = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": render_r1_completion("two and two", "4")},
        {"role": "user", "content": "3+3?"},
    ]
    assert template.render(turns) == f"{render_r1('2+2?')}4{render_r1('3+3?')}"


@given(seeds)
@settings(max_examples=100, deadline=None)
def test_requests_of_a_kind_and_language_can_be_asked_for(bits):
    drawn = draw_request(Draws(bits), None, "copy", "zh")
    assert drawn.request.kind == "copy" and drawn.request.question.startswith("抄写：")
    assert world_answer(good_response({"kind": "copy", "language": "zh", "answer": drawn.request.answer})) == (
        drawn.request.answer
    )
