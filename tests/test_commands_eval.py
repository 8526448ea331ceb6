"""`r1jax eval`: by the protocol, killed and taken up again at any instant, refused in plain words."""

import collections
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import random_model, tiny_llama3
from hf_folders import ASSISTANT, BOS, USER, deepseek_folder, write_files
from tiny_benchmark import ESSAYS, TINY, letters

import r1jax.evaluation.benchmarks
from r1jax.checkpoints import hf
from r1jax.checkpoints.model import fingerprint
from r1jax.cli import main
from r1jax.commands import results
from r1jax.data.hf_tokenizer import load_tokenizer
from r1jax.sampling.generator import Completion, Generator

CONFIG = tiny_llama3(num_hidden_layers=1, first_k_dense_replace=1, vocab_size=336, max_position_embeddings=64)
TEMPLATE = "{{ bos_token }}{% for m in messages %}" + USER + "{{ m.content }}{% endfor %}" + ASSISTANT
QUESTIONS = [{"id": i, "question": "mat " * (i % 5 + 1) + str(i), "answer": "012?"[i % 4]} for i in range(20)]
TOO_LONG = {"id": "long", "question": "x " * 200, "answer": "1"}


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.setattr(r1jax.evaluation.benchmarks, "BENCHMARKS", {"tiny": TINY, "essays": ESSAYS}, raising=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(a published checkpoint without a chat template, a file of problems of which one is too long for it)."""
    folder = tmp_path_factory.mktemp("base")
    hf.save(folder / "model", random_model(CONFIG), CONFIG, assets=deepseek_folder(folder / "model"))
    write_questions(folder / "questions.jsonl", [*QUESTIONS, TOO_LONG])
    return folder / "model", folder / "questions.jsonl"


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """The folder of an evaluation without interruption."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(r1jax.evaluation.benchmarks, "BENCHMARKS", {"tiny": TINY}, raising=False)
        evaluate(*base, out)
    return out


def write_questions(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(model, questions, out, *more):
    sources = [str(questions)] * (2 if "essays" in more and "tiny" in more else 1)
    names = [name for name in ("tiny", "essays") if name in more] or ["tiny"]
    more = [m for m in more if m not in names]
    args = ["--checkpoint", model, "--benchmark", *names, "--source", *sources, "--out", out, "--workers", "1", *more]
    main(["eval", *map(str, args), *([] if "--batch-size" in more else ["--batch-size", "8"])])


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(capsys, *args):
    """The one line on stderr of a command that exits with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main([str(a) for a in args])
    lines = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and len(lines) == 1
    return lines[0]


def test_completions_scores_and_metrics_belong_together(base, whole):
    assert sorted(files(whole)) == [
        "completions.jsonl", "problems.jsonl", "report.html", "results.json", "settings.json",
    ]  # fmt: skip
    drawn, rows = read_jsonl(whole / "completions.jsonl"), read_jsonl(whole / "problems.jsonl")
    result, tokenizer = json.loads((whole / "results.json").read_text()), load_tokenizer(base[0])
    assert [row["id"] for row in rows] == [row["id"] for row in drawn] == [*map(str, range(20)), "long"]
    expected = np.zeros((21, 4))
    for i, (row, drawing) in enumerate(zip(rows[:20], drawn, strict=False)):
        question = QUESTIONS[i]
        assert (row["problem"], row["answer"]) == (question["question"], question["answer"])
        assert drawing["completions"] == row["completions"] == [tokenizer.decode(ids) for ids in drawing["tokens"]]
        assert row["tokens"] == [len(ids) for ids in drawing["tokens"]] and max(row["tokens"]) <= 8
        assert len(set(row["completions"])) > 1
        answers = [letters(text) for text in row["completions"]]
        unscored = question["answer"] == "?"
        scores = [None if unscored else float(a == question["answer"]) for a in answers]
        assert (row["scores"], row["answers"]) == (scores, answers)
        assert ("cannot be scored" in row["flags"]) == unscored
        odd = sum(int(a) % 2 for a in answers)
        leaders = {odd % 2: next(a for a in answers if int(a) % 2 == odd % 2) for odd in map(int, answers)}
        first = int(answers[0]) % 2  # of a tie the answer given first
        majority = leaders[1 if odd > 2 or (odd == 2 and first) else 0]
        assert row["majority"] == majority and row["consensus"] == (majority == question["answer"])
        expected[i] = [score or 0 for score in scores]
    assert 0 < expected.sum() < expected.size
    metrics = result["metrics"]
    assert metrics["pass@1"]["value"] == pytest.approx(expected.mean())
    assert metrics["pass@4"]["value"] == pytest.approx(expected.any(axis=1).mean())
    assert metrics["cons@4"]["value"] == pytest.approx(np.mean([row["consensus"] for row in rows]))
    low, high = metrics["pass@1"]["interval"]
    assert low < metrics["pass@1"]["value"] < high
    assert metrics["unscored"]["value"] == pytest.approx(20 / 84)
    assert metrics["answer/0"]["value"] == pytest.approx(expected[16].mean())  # the benchmark's own metrics
    assert metrics["mean_length"]["value"] == pytest.approx(np.mean([n for row in rows[:20] for n in row["tokens"]]))
    assert result["settings"]["k"] == 4 and result["settings"]["weights"] == fingerprint(hf.load(base[0])[0])


def test_a_problem_that_the_model_cannot_be_asked_counts_as_wrong_and_is_named(whole):
    last, result = read_jsonl(whole / "problems.jsonl")[-1], json.loads((whole / "results.json").read_text())
    assert last["flags"][0].startswith("not asked: its prompt of 401 tokens is longer than the 56 positions")
    assert (last["pass@1"], last["tokens"], last["completions"]) == (0, [None] * 4, [""] * 4)
    assert result["counts"]["problems not asked"] == 1 and result["counts"]["problems"] == 21


def test_its_completions_can_be_scored_again(whole, tmp_path):
    main(["score", "--completions", f"{whole}/completions.jsonl", "--benchmark", "tiny", "--out", f"{tmp_path}/out"])
    first, again = (json.loads((folder / "results.json").read_text()) for folder in (whole, tmp_path / "out"))
    assert all(again[name] == first[name] for name in ("metrics", "counts", "reflection", "k"))
    assert again["settings"]["sha256"] == first["settings"]["sha256"]


class Killed(BaseException):
    pass


def test_killed_at_any_instant_it_ends_as_if_it_had_not_been(base, whole, tmp_path, monkeypatch):
    """Dies at the 1st, 2nd, 4th, 7th ... time that something reaches the disk, each time taken up from there."""
    left, written, lost, append, replace = [0], [], [], results.PartialRows._append, os.replace

    def dying(act, what, *args):
        """`what` is (name of the file, number of the row) that is about to be written."""
        written.append(what)
        left[0] -= 1
        if left[0] == 0:
            lost.append(what)
            raise Killed
        act(*args)

    monkeypatch.setattr(
        results.PartialRows, "_append", lambda self, row: dying(append, (self.path.name, row.get("row")), self, row)
    )
    monkeypatch.setattr(os, "replace", lambda source, to: dying(replace, (to.name, None), source, to))
    out = tmp_path / "out"
    for wait in range(1, 60):
        left[0] = 1 + wait * (wait - 1) // 2
        try:
            evaluate(*base, out)
        except Killed:
            for path in out.glob("*.partial"):  # the line under way is cut short
                if wait % 2:
                    path.write_bytes(path.read_bytes() + b'{"row": 3, "compl')
            continue
        break
    names = [name for name, _ in lost]
    assert {"settings.json", "completions.jsonl.partial", "grades.jsonl.partial"} <= set(names) and len(lost) > 5
    assert files(out) == files(whole)
    for name, rows in (("completions", range(20)), ("grades", range(21))):  # what was once written is not made again
        times = collections.Counter(row for file, row in written if file == f"{name}.jsonl.partial")
        assert all(times[row] == 1 + lost.count((f"{name}.jsonl.partial", row)) for row in rows)


# What a process of its own runs: it kills itself, for good, when it has appended so many rows to a file of this name.
DYING = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import conftest
import r1jax.evaluation.benchmarks as benchmarks
from r1jax.cli import main
from r1jax.commands.results import PartialRows
from tiny_benchmark import TINY
benchmarks.BENCHMARKS = {{"tiny": TINY}}
append, left = PartialRows._append, [{rows}]
def dying(self, value):
    append(self, value)
    left[0] -= {name!r} in self.path.name
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
PartialRows._append = dying
main(sys.argv[1:])
"""


def test_kill_9_while_sampling_and_while_judging(base, whole, tmp_path):
    args = ["eval", "--checkpoint", base[0], "--benchmark", "tiny", "--source", base[1], "--out", tmp_path / "out"]
    args = [*map(str, args), "--workers", "1", "--batch-size", "8"]
    for name, rows, left in (("completions", 1 + 8, 9), ("grades", 1 + 12, 13), ("", 0, None)):
        code = DYING.format(tests=str(Path(__file__).parent), name=name, rows=rows)
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == (-signal.SIGKILL if left else 0), done.stderr
        if left:
            assert len(read_jsonl(tmp_path / "out" / f"{name}.jsonl.partial")) == left
    assert files(tmp_path / "out") == files(whole)


def test_several_benchmarks_share_the_weights_and_a_table(base, tmp_path, capsys, monkeypatch):
    made, make = [], Generator.__init__
    monkeypatch.setattr(Generator, "__init__", lambda self, *args, **kw: made.append(1) or make(self, *args, **kw))
    evaluate(*base, tmp_path / "out", "tiny", "essays", "--limit", "8")
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert all(any(line[:3] == row for line in lines) for row in (["tiny", "8", "4"], ["essays", "8", "1"]))
    assert "essays: not scored: Essays is judged elsewhere" in printed and len(made) == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Tiny" in page and "Essays" in page and "Not judged here" in page
    predictions = json.loads((tmp_path / "out/essays/predictions.json").read_text())
    drawn = read_jsonl(tmp_path / "out/essays/completions.jsonl")
    assert predictions == [{"id": row["id"], "model": "model", "output": row["completions"][0]} for row in drawn]
    result = json.loads((tmp_path / "out/essays/results.json").read_text())
    assert "pass@1" not in result["metrics"] and result["metrics"]["mean_length"]["value"] <= 4
    # A third time the same, with one of them finished and the other's page gone: nothing is drawn.
    monkeypatch.setattr(Generator, "__call__", None)
    (tmp_path / "out/essays/report.html").unlink()
    before = files(tmp_path / "out/tiny")
    evaluate(*base, tmp_path / "out", "tiny", "essays", "--limit", "8")
    assert files(tmp_path / "out/tiny") == before and (tmp_path / "out/essays/report.html").exists()


@pytest.fixture
def asked(monkeypatch):
    """The prompts that a generator is given; it answers each with its stop token."""
    prompts = []

    def draw(self, given, done):
        prompts.append((given, self.sampling, self.batch_size))
        yield [(i, [Completion([1], [0.0], "stop")] * self.sampling.num_generations) for i in range(len(given))]

    monkeypatch.setattr(Generator, "__call__", draw)
    return prompts


def test_prompts_are_the_models_own_form_of_the_question(base, asked, tmp_path, capsys):
    chats = tmp_path / "chats"
    shutil.copytree(base[0], chats)
    write_files(chats, {"chat_template.jinja": TEMPLATE})
    tokenizer = load_tokenizer(base[0])
    for n, (model, option, text) in enumerate(
        [
            (base[0], [], "mat 0"),
            (chats, [], f"{USER}mat 0{ASSISTANT}"),
            (chats, ["--think"], f"{USER}mat 0{ASSISTANT}<think>\n"),
            (chats, ["--plain"], "mat 0"),
        ]
    ):
        evaluate(model, base[1], tmp_path / str(n), "--limit", "2", *option)
        ids = asked[-1][0][0]
        assert tokenizer._tokenizer.decode(ids, skip_special_tokens=False) == f"{BOS}{text}" and ids.count(0) == 1


def test_the_protocol_holds_unless_it_is_told_otherwise(base, asked, tmp_path, capsys, monkeypatch):
    long = write_questions(tmp_path / "long.jsonl", [{"id": 0, "question": "x " * 10, "answer": "1"}])
    protocol = type(TINY.protocol)(k=64, max_tokens=32768)
    wide = {"tiny": dataclasses.replace(TINY, protocol=protocol)}
    monkeypatch.setattr(r1jax.evaluation.benchmarks, "BENCHMARKS", wide, raising=False)
    evaluate(base[0], long, tmp_path / "a", "--batch-size", "8")
    (prompt,), sampling, batch_size = asked[-1]
    assert (sampling.temperature, sampling.top_p, sampling.num_generations) == (0.6, 0.95, 64)
    assert sampling.max_completion_length == 64 - len(prompt) and batch_size == 8
    said = f"up to {64 - len(prompt)} tokens rather than the protocol's 32,768: the model has 64 positions, and the"
    assert said in capsys.readouterr().out
    # One long prompt must not take the others' room: the half is theirs, and it alone is not asked.
    evaluate(*base, tmp_path / "b")
    assert asked[-1][1].max_completion_length == 32 and len(asked[-1][0]) == 20
    evaluate(*base, tmp_path / "c", *"--k 2 --temperature 0 --top-p 0.5 --max-tokens 5".split())
    sampling = asked[-1][1]
    assert (sampling.temperature, sampling.top_p) == (0, 0.5)
    assert (sampling.num_generations, sampling.max_completion_length) == (2, 5)
    capsys.readouterr()
    evaluate(base[0], write_questions(tmp_path / "none.jsonl", [TOO_LONG]), tmp_path / "d")
    assert json.loads((tmp_path / "d/results.json").read_text())["metrics"]["pass@1"]["value"] == 0


def test_what_is_refused_leaves_no_folder(base, tmp_path, capsys):
    out = tmp_path / "out"
    args = ["eval", "--checkpoint", base[0], "--source", base[1], "--out", out, "--benchmark"]
    assert "benchmark='math': use one of essays, tiny" in refused(capsys, *args, "math")
    assert "one or more, each once" in refused(capsys, *args, "tiny", "tiny")
    assert "source=" in refused(capsys, *args, "tiny", "essays")
    for option in ("--k", "--limit", "--max-tokens", "--batch-size", "--workers"):
        assert "=0: must be at least 1" in refused(capsys, *args, "tiny", option, 0)
    assert "top_p=2.0" in refused(capsys, *args, "tiny", "--top-p", 2)
    assert "timeout=0.0" in refused(capsys, *args, "tiny", "--timeout", 0)
    assert "max_tokens=64: the model has 64 positions" in refused(capsys, *args, "tiny", "--max-tokens", 64)
    assert "batch_size=3: must be a multiple of 8" in refused(capsys, *args, "tiny", "--batch-size", 3)
    assert "has no chat template" in refused(capsys, *args, "tiny", "--think")
    assert "--plain" in refused(capsys, *args, "tiny", "--think", "--plain")
    assert "no such file" in refused(capsys, *args[:3], "--out", out, "--benchmark", "tiny")
    assert "holds no model" in refused(capsys, "eval", "--checkpoint", tmp_path, *args[3:], "tiny")
    lacking = shutil.copytree(base[0], tmp_path / "lacking")  # what only those find who read the weights
    raw = json.loads((lacking / "config.json").read_text())
    write_files(lacking, {"config.json": raw | {"num_hidden_layers": 2}})
    assert "has no tensor" in refused(capsys, "eval", "--checkpoint", lacking, *args[3:], "tiny")
    assert not out.exists()


def test_a_folder_is_of_one_evaluation(base, whole, tmp_path, capsys):
    args = ["eval", "--checkpoint", base[0], "--source", base[1], "--batch-size", 8, "--benchmark", "tiny", "--out"]
    out, before = tmp_path / "out", files(whole)
    shutil.copytree(whole, out)
    for option, value, name in (("--k", 8, "k=4"), ("--seed", 1, "seed=0"), ("--limit", 9, "problems=21")):
        sentence = refused(capsys, *args, out, option, value)
        assert sentence.startswith(f"error: --out {out} was begun with {name}, now it is {value}: go back")
    again = ["eval", "--checkpoint", base[0], "--source", base[1], base[1], "--benchmark", "tiny", "essays", "--out"]
    assert "holds something else (completions.jsonl)" in refused(capsys, *again, out)
    # The checkpoint of a run moves on while the command that is taken up stays the same.
    other = tmp_path / "other"
    hf.save(other, random_model(CONFIG, seed=1), CONFIG, assets=base[0])
    sentence = refused(capsys, "eval", "--checkpoint", other, *args[3:], out)
    assert re.search(r"was begun with weights='[0-9a-f]{16}', now it is '[0-9a-f]{16}': go back", sentence)
    assert files(out) == before
    (out / "settings.json").unlink()
    assert "holds something else" in refused(capsys, *args, out)
    (tmp_path / "file").touch()
    assert "is a file: give a folder" in refused(capsys, *args, tmp_path / "file")
