"""Decontamination: what counts as the same words, short texts, speed, real data, and the command."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.cli import main
from r1jax.data.decontamination import Match, NgramIndex, contaminated
from r1jax.errors import ConfigError

DATA = Path(__file__).parents[2] / "shared" / "data"

TEN = "one two three four five six seven eight nine ten"


def shared(text, benchmark, n=10):
    return contaminated([text], [benchmark], n)[0]


def test_ten_words_in_sequence():
    assert shared(f"Before it {TEN} and after", f"{TEN} eleven") == Match(0, TEN)
    assert shared("two three four five six seven eight nine ten", f"{TEN} eleven") is None  # nine
    assert shared(TEN.replace("five", "5"), f"{TEN} eleven") is None
    assert shared(" ".join(reversed(TEN.split())), TEN) is None
    assert shared(f"{TEN} x", f"y {TEN}", n=11) is None


def test_the_row_and_the_words_are_told():
    benchmark = ["nothing of the kind", f"{TEN} eleven twelve", f"zero {TEN}"]
    assert contaminated([f"{TEN} eleven", f"zero {TEN}", "else"], benchmark) == [
        Match(1, TEN),
        Match(2, "zero one two three four five six seven eight nine"),
        None,
    ]
    assert contaminated([], benchmark) == [] and contaminated([TEN], []) == [None]


@pytest.mark.parametrize(
    "words, text, benchmark",
    [
        (10, "ONE Two, three; four - five (six) seven: eight 'nine' ten!", TEN),
        (10, "one\n two\tthree four\u00a0five six  seven eight nine ten", TEN),
        (7, r"Find $\left( x + 1,\!000 \right)$ such that x \, y", "find (x + 1000) such that x y"),
        (7, r"What is $\dfrac{3}{4}$ of $12{,}000$?", r"what is \frac{3}{4} of 12,000"),
        (5, r"$\text{Area of } \mathrm{ABC}$ is \quad 1,000,000", "area of abc is 1000000"),
        (4, "Ｗｈａｔ ｉｓ １２ now", "what is 12 now"),
        (12, "他每天早上早餐时吃三颗蛋", "他每天早上，早餐时吃三颗蛋？"),
        (11, "ジャネットのアヒルの卵", "「ジャネットのアヒルの卵」"),
        (10, f"[asy] draw(A--B); label(C); [/asy] {TEN}", TEN),
    ],
)
def test_layout_is_no_difference(words, text, benchmark):
    assert shared(text, benchmark, words) and shared(benchmark, text, words)
    # All words were compared: with one more, both are too short for a sequence, and are compared as a whole.
    assert contaminated([f"{text} end"], [f"start {benchmark}"], words)[0].words == shared(text, benchmark, words).words
    assert shared(f"{text} end", f"start {benchmark}", words + 1) is None


def test_diagrams_are_no_words():
    diagram = "[asy] pair A,B,C; A=(0,0); B=(1,0); C=(0,1); draw(A--B--C--cycle); label(A); [/asy]"
    assert shared(f"How long is AB? {diagram}", f"What is the area of ABC? {diagram}") is None


def test_short_texts_are_compared_whole():
    assert shared("Compute $7 + 5 - 2$.", r"compute 7+5-2") is not None
    assert shared("Compute 7-5+2.", "compute 7+5-2") is None
    assert shared("Compute 75-2.", "compute 7+5-2") is None
    assert shared("Compute 3.5", "Compute 35.") is None and shared("Compute 3.5.", "compute $3.5$") is not None
    assert shared("Please compute 7+5-2 now", "compute 7+5-2") is None  # a part is not the whole
    assert shared(f"compute 7+5-2. {TEN}", "compute 7+5-2") is None
    assert shared("", "") is shared(" . ", "?!") is None  # nothing is no match


WORDS = st.lists(st.sampled_from("abcdef"), min_size=0, max_size=14)


@given(WORDS, st.lists(WORDS, max_size=4), st.integers(1, 5))
def test_against_a_comparison_without_hashes(words, benchmark, n):
    found = shared_words = None
    for start in range(len(words) - n + 1):
        gram = words[start : start + n]
        rows = [i for i, row in enumerate(benchmark) if any(row[k : k + n] == gram for k in range(len(row) - n + 1))]
        if rows:
            found, shared_words = rows[0], " ".join(gram)
            break
    if 0 < len(words) < n and words in benchmark:
        found, shared_words = benchmark.index(words), " ".join(words)
    match = contaminated([" ".join(words)], [" ".join(row) for row in benchmark], n)[0]
    assert match == (None if found is None else Match(found, shared_words))


def test_an_index_serves_many_texts():
    index = NgramIndex([TEN])
    texts = [
        f"{i} {TEN if i % 100 == 0 else 'some words of no importance at all, but quite a few'} {i}"
        for i in range(20_000)
    ]
    start = time.perf_counter()
    matches = [index.match(text) for text in texts]
    assert time.perf_counter() - start < 10  # a fraction of a second on an idle machine
    assert [i for i, match in enumerate(matches) if match] == list(range(0, 20_000, 100))


def test_n_must_be_positive():
    with pytest.raises(ConfigError, match="n=0"):
        contaminated([TEN], [TEN], n=0)


# ---------------------------------------------------------------------------------------------------- on real data


def column(path, name):
    return [json.loads(line)[name] for line in (DATA / path).read_text("utf-8").splitlines()]


@pytest.mark.skipif(not (DATA / "gsm8k").exists(), reason=f"{DATA / 'gsm8k'} is not here")
def test_gsm8k_train_against_test():
    train, test = column("gsm8k/train.jsonl", "question"), column("gsm8k/test.jsonl", "question")
    index = NgramIndex(test)
    matches = [match for match in map(index.match, train) if match]
    # Phrases ("how much money will she have left over after she"), and no problem that stands in both.
    assert len(matches) == 11 and len({match.row for match in matches}) == 9
    own = [index.match(question).row == row for row, question in enumerate(test)]
    assert sum(own) == len(test) - 1  # one begins with words of an earlier one
    hidden = [f"Solve this one. {question.upper()} Think first." for question in test[::50]]
    assert [index.match(question).row for question in hidden] == list(range(0, len(test), 50))  # a hidden copy is found


@pytest.mark.skipif(not (DATA / "math").exists(), reason=f"{DATA / 'math'} is not here")
def test_math_train_against_math_500():
    train, test = column("math/train_sample3000.jsonl", "problem"), column("math500/test.jsonl", "problem")
    matches = contaminated(train, test)
    assert train[0].startswith("Yann and Camille") and matches[0].row == 229  # a variant of a test problem
    assert test[229].startswith("Yann and Camille")
    assert 80 < sum(match is not None for match in matches) < 130  # most by phrases of competitions
    assert all(contaminated(test, test))


# ----------------------------------------------------------------------------------------------------- the command


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command(tmp_path, capsys):
    rows = [
        {"question": f"{TEN}?", "id": 1},
        {"question": "Another matter", "id": 2},
        {"problem": f"so {TEN}", "id": 3},
        {"prompt": [{"role": "user", "content": f"Now: {TEN}"}], "id": 4},
        {"prompt": "7+5", "id": 5},
    ]
    train = write(tmp_path / "train.jsonl", rows)
    first = write(tmp_path / "first.jsonl", [{"problem": "7+5"}, {"problem": "8", "answer": 17}])
    second = write(tmp_path / "second.jsonl", [{"question": "What?"}, {"question": "How?", "solution": f"By {TEN}."}])
    out, removed = tmp_path / "out.jsonl", tmp_path / "removed.jsonl"
    main(["decontaminate", "--train", train, "--against", first, second, "--out", str(out), "--removed", str(removed)])
    assert read(out) == rows[1:2]
    assert [row["id"] for row in read(removed)] == [1, 3, 4, 5]
    assert read(removed)[0] == rows[0] | {"match": {"source": second, "row": 2, "words": TEN}}
    assert read(removed)[3]["match"] == {"source": first, "row": 1, "words": "7 5"}
    said = capsys.readouterr().out
    assert (
        "1 of 5 rows kept" in said and f"3 share 10 words in sequence, or all of a shorter text, with {second}" in said
    )
    with pytest.raises(SystemExit):
        main(["decontaminate", "--train", train, "--against", first, "--out", train])
    assert "is already there" in capsys.readouterr().err and read(tmp_path / "train.jsonl") == rows


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    train = write(tmp_path / "train.jsonl", [{"question": "a"}, {"text": "b"}])
    for args, message in (
        (
            ["--out", str(tmp_path / "out.jsonl")],
            f"row 2 of {train} has no text in any of the fields question, problem",
        ),
        (["--out", str(tmp_path / "no" / "out.jsonl")], "its folder does not exist"),
        (["--out", str(tmp_path / "out.jsonl"), "--n", "0"], "n=0"),
    ):
        with pytest.raises(SystemExit) as exit:
            main(["decontaminate", "--train", train, "--against", train, *args])
        assert exit.value.code == 2 and message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.jsonl"]
