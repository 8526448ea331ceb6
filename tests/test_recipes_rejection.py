"""Rejection sampling: what is correct and readable is kept, what is not is counted, and a kill changes nothing."""

import functools
import json

import jax
import pytest
from helpers import random_model, tiny_llama3
from hf_folders import deepseek_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import FakeSample, Stop, boxed, half, noise, starts_well

from r1jax.configs.training import SamplingConfig
from r1jax.data.cards import read_card
from r1jax.data.hf_tokenizer import load_tokenizer
from r1jax.errors import ConfigError, DataError
from r1jax.files import PartialRows
from r1jax.recipes.collect import judge
from r1jax.recipes.curation import Curation
from r1jax.recipes.rejection import RejectionConfig, mix, rejection_sampling
from r1jax.sampling.completions import GeneratorSample, TextCompletion
from r1jax.sampling.generator import Generator

SUMS = [
    {"question": f"{a}+{a}?", "answer": str(2 * a), "kind": "sum", "language": "en", "domain": "reasoning"}
    for a in range(6)
]
PROBLEMS = [
    *SUMS,
    {"question": "Say hi.", "starts": "hi", "kind": "word", "language": "en"},
    {"question": "Why?", "answer": "because", "kind": "open", "language": "en"},
]
GENERAL = [
    {"messages": [{"role": "user", "content": f"r{i}"}, {"role": "assistant", "content": "ok"}], "language": "zh"}
    for i in range(9)
]
RULES = {"sum": boxed, "word": starts_well}


def render(problem):
    return f"User: {problem['question']} Assistant:<think>\n"


def write(prompt, number):
    """Right or wrong, whole or cut, in one language or two; "Why?" is answered in words."""
    question = prompt.split("User: ")[1].split(" Assistant")[0]
    if question == "Why?":
        return f"I wonder {number}.</think>because" if number % 2 else "It is so.</think>no"
    if question == "Say hi.":
        return f"I greet {number}.</think>hi"
    if question == "5+5?":
        return f"wrong {number}</think>\\boxed{{7}}"
    answer = 2 * int(question[0])
    if number == 0:
        return f"We add the numbers.</think>\\boxed{{{answer}}}"
    if number == 1:
        return f"we add the numbers</think>\\boxed{{{answer}}}"  # the same but for case
    if number == 2:
        return f"we add 我们把两个数加起来</think>\\boxed{{{answer}}}"
    if number == 3:
        return f"We add, and add</think>\\boxed{{{answer}}}..."  # cut
    return f"{noise(prompt, number) % 10} it must be</think>\\boxed{{{answer + 1}}}"


def verify(questions, completions, references):
    return [
        completion.endswith(f"</think>{answer}") for completion, answer in zip(completions, references, strict=True)
    ]


CONFIG = RejectionConfig(n=5, general_per_reasoning=0.5, curation=Curation(repetition_ngram=3), timeout=20)


def run(folder, sample=None, config=CONFIG, problems=PROBLEMS, **changes):
    folder.mkdir(exist_ok=True)
    options = {"verify": verify, "general": GENERAL, "sources": {"policy": "ab"}} | changes
    rules = options.pop("rules", RULES)
    return rejection_sampling(
        problems, sample or FakeSample(write), render, rules, folder / "sft.jsonl", config, **options
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return folder, run(folder)


def test_what_is_kept(made):
    folder, _ = made
    rows = lines(folder / "sft.jsonl")
    own = [row for row in rows if row["domain"] == "reasoning"]
    said = {}
    for row in own:
        question, response = (message["content"] for message in row["messages"])
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert response.startswith("<think>") and row["source"] == "rejection sampling" and row["language"] == "en"
        said.setdefault(question, []).append(response)
    assert {question: len(responses) for question, responses in said.items()} == {
        "0+0?": 1, "1+1?": 1, "2+2?": 1, "3+3?": 1, "4+4?": 1, "Say hi.": 5, "Why?": 2,
    }  # fmt: skip
    assert said["4+4?"] == ["<think>We add the numbers.</think>\\boxed{8}"]
    assert len({row["id"] for row in own}) == len(own) == 12
    assert len(rows) - len(own) == 6 and all(row["domain"] == "general" for row in rows if row not in own)
    assert [row["domain"] for row in rows] != sorted((row["domain"] for row in rows), reverse=True)  # shuffled


def test_the_card_accounts_for_every_response(made):
    folder, card = made
    assert read_card(folder / "sft.jsonl") == card
    assert card.counts == {
        "prompts": 8,
        "prompts without a correct response": 1,
        "responses": 40,
        "correct responses": 27,
        "kept responses": 12,
        "by kind": {
            kind: dict(zip(list(card.counts)[:5], numbers, strict=True))
            for kind, numbers in {"open": (1, 0, 5, 2, 2), "sum": (6, 1, 30, 20, 5), "word": (1, 0, 5, 5, 5)}.items()
        },
        "judged by a model": 5,
        "tokens of kept responses": card.counts["tokens of kept responses"],
        "other rows": 6,
    }
    wanted = {"wrong": 13, "truncated": 5, "mixed languages": 5, "duplicate": 5}
    assert {name: count for name, count in card.removed.items() if count} == wanted
    assert sum(card.removed.values()) + card.counts["kept responses"] == card.counts["responses"]
    assert card.sources == {"policy": "ab"} and card.settings["curation"]["repetition_ngram"] == 3


def test_stopped_anywhere_it_ends_the_same(made, tmp_path, monkeypatch):
    """Stopped while drawing, in the middle of a line, while judging and before the data set is whole."""
    folder, _ = made
    first = FakeSample(write, stop=3)
    with pytest.raises(Stop):
        run(tmp_path, first)
    with (tmp_path / "sft.drawn.jsonl").open("ab") as file:
        file.write(b'{"row": 5, "text": ["half')
    again = FakeSample(write)
    added, add = [], PartialRows.add

    def stopping(rows, i, row):
        if "correct" in row:
            if len(added) == 7:
                raise Stop
            added.append(i)
        add(rows, i, row)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(PartialRows, "add", stopping)
        run(tmp_path, again)
    assert sorted([*first.calls, *again.calls]) == sorted(map(render, PROBLEMS))  # nothing is drawn twice
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("r1jax.data.cards.write_rows", lambda *_: (_ for _ in ()).throw(Stop()))
        run(tmp_path, FakeSample(write, stop=0))
    for _ in range(2):  # complete, it makes the same again
        run(tmp_path, FakeSample(write, stop=0))
        for name in ("sft.jsonl", "sft.card.md"):
            assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    judged = [row["row"] for row in lines(tmp_path / "sft.judged.jsonl")[1:]]
    assert sorted(judged) == list(range(40))


def test_other_settings_are_refused(made, tmp_path):
    run(tmp_path, settings={"policy": "one"})
    with pytest.raises(ConfigError, match="was begun with other prompts or settings"):
        run(tmp_path, settings={"policy": "two"})
    with pytest.raises(ConfigError, match="was begun with other prompts or settings"):
        run(tmp_path, settings={"policy": "one"}, rules={**RULES, "sum": half})
    changed = [problem | {"starts": "yo"} if "starts" in problem else problem for problem in PROBLEMS]
    with pytest.raises(ConfigError, match="was begun with other prompts or settings"):
        run(tmp_path, settings={"policy": "one"}, problems=changed)  # a rule may look at any column


def test_no_judge_and_nothing_left(tmp_path):
    card = run(tmp_path / "a", verify=None)
    assert card.removed["unjudged"] == 5 and card.counts["judged by a model"] == 0
    with pytest.raises(DataError, match=r"no response is kept of 5, of which 0 are correct"):
        run(tmp_path / "b", problems=PROBLEMS[5:6])
    with pytest.raises(DataError, match=r"general, row 1: its fields are text; give messages"):
        run(tmp_path / "c", general=[{"text": "x"}])
    with pytest.raises(DataError, match="has no 'starts', which starts_well needs"):
        run(tmp_path / "d", problems=SUMS, rules=starts_well)


@pytest.mark.parametrize("give", [lambda i, n: [], lambda i, n: [(i, [])], lambda i, n: [(i, [1] * (n + 1))]])
def test_a_sampler_that_gives_too_few_or_too_many(tmp_path, give):
    def sample(prompts, n, done=frozenset()):
        yield from give(0, n)

    with pytest.raises(DataError, match=r"prompt 0: the sampler gave (no|0|6) completions.* n=5"):
        run(tmp_path, sample)


def rows_of(*completions, **fields):
    return [
        {"question": "q", "answer": "1", "completion": text, "id": str(i)} | fields
        for i, text in enumerate(completions)
    ]


def test_a_hang_and_a_crash_cost_their_own_verdicts_only(tmp_path):
    rows = rows_of("\\boxed{1}", "hang", "\\boxed{2}", *["\\boxed{1}"] * 39, "die")
    verdicts = judge(rows, boxed, tmp_path / "j.jsonl", timeout=1.0, workers=2, verify=verify)
    assert [v.fault for v in verdicts] == [None, "lost", "wrong", *[None] * 39, "lost"]
    assert [v.by for v in verdicts] == ["rule", None, "rule", *["rule"] * 39, None]
    assert (verdicts[1].lost, verdicts[-1].lost) == ("timeout", "crash")


def test_rules_that_cannot_tell(tmp_path):
    rows = [*rows_of("</think>?", "no", answer="?"), *rows_of("\\boxed{1}"), *rows_of("x", answer=None, kind="no rule")]
    asked = []

    def told(questions, completions, references):
        asked.append((questions, completions, references))
        return verify(questions, completions, references)

    verdicts = judge(rows, {None: boxed}, tmp_path / "a.jsonl", verify=told)
    assert [(v.correct, v.by, v.fault) for v in verdicts] == [
        (True, "judge", None), (False, "judge", "wrong"), (True, "rule", None), (None, None, "unjudged"),
    ]  # fmt: skip
    assert asked == [(["q", "q"], ["</think>?", "no"], ["?", "?"])]
    assert judge(rows, {None: boxed}, tmp_path / "a.jsonl", verify=told) == verdicts and len(asked) == 1
    assert [v.fault for v in judge(rows, {None: boxed}, tmp_path / "b.jsonl")] == [
        "unjudged",
        "unjudged",
        None,
        "unjudged",
    ]
    assert judge(rows_of("x"), half, tmp_path / "c.jsonl")[0].fault == "wrong"  # partial credit is not correct
    partial = functools.partial(boxed, scale=2)
    assert judge(rows_of("\\boxed{1}"), partial, tmp_path / "d.jsonl")[0].correct
    with pytest.raises(ConfigError, match="other prompts or settings"):
        judge(rows_of("\\boxed{1}"), functools.partial(boxed, scale=3), tmp_path / "d.jsonl")


def test_a_generative_judge_is_asked_the_same_however_often_it_is_stopped(tmp_path, monkeypatch):
    """Its answers may depend on what stands beside a row: here on the number of rows."""
    rows = rows_of(*(f"r{i}" for i in range(70)), answer="?")

    def told(questions, completions, references):
        return [(len(completions) + int(text[1:])) % 3 == 0 for text in completions]

    whole = judge(rows, boxed, tmp_path / "a.jsonl", verify=told)
    added, add = [], PartialRows.add

    def stopping(partial, i, row):
        if len(added) == 40:
            raise Stop
        added.append(i)
        add(partial, i, row)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(PartialRows, "add", stopping)
        judge(rows, boxed, tmp_path / "b.jsonl", verify=told)
    assert judge(rows, boxed, tmp_path / "b.jsonl", verify=told) == whole


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(0, 9), st.none() | st.floats(0, 2), st.integers(0, 3))
def test_mixing(reasoning, general, ratio, seed):
    own, other = [("r", i) for i in range(reasoning)], [("g", i) for i in range(general)]
    mixed = mix(own, other, ratio, seed)
    assert mixed == mix(own, other, ratio, seed) and len(set(mixed)) == len(mixed)
    assert sorted(row for row in mixed if row[0] == "r") == own
    wanted = general if ratio is None else min(general, round(ratio * reasoning))
    assert sum(row[0] == "g" for row in mixed) == wanted


def test_orders_differ_by_seed():
    assert len({tuple(mix(range(20), range(20, 40), 0.5, seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize(
    "changes", [{"n": 0}, {"workers": 0}, {"general_per_reasoning": -1.0}, {"seed": -1}, {"timeout": 0}]
)
def test_settings_are_checked(changes):
    with pytest.raises(ConfigError, match=f"{next(iter(changes))}="):
        RejectionConfig(**changes)


def test_a_generator_samples(tmp_path):
    """What is drawn does not depend on interruptions, and differs between calls with other prompts."""
    config = tiny_llama3(num_hidden_layers=1, first_k_dense_replace=1, vocab_size=336, max_position_embeddings=64)
    tokenizer = load_tokenizer(deepseek_folder(tmp_path))
    generator = Generator(random_model(config), config, tokenizer, SamplingConfig(1.0, 1.0, 0, 2, 6), batch_size=2)
    key = jax.random.key_data(generator.key).tolist()
    sample = GeneratorSample(generator)
    prompts = ["The cat", "a", "The cat"]
    whole = dict(sample(prompts, 2))
    assert {i: len(drawn) for i, drawn in whole.items()} == {0: 2, 1: 2, 2: 2} and whole[0] != whole[2]
    assert all(isinstance(c, TextCompletion) and 1 <= c.tokens <= 6 for drawn in whole.values() for c in drawn)
    assert dict(sample(prompts, 2, frozenset({0}))) == {i: whole[i] for i in (1, 2)}
    other = dict(sample([*prompts[:2], "The dog"], 2))
    assert other[0] != whole[0] and other[1] != whole[1]
    assert [len(drawn) for drawn in dict(sample(prompts[:1], 1)).values()] == [1]
    assert jax.random.key_data(generator.key).tolist() == key
