"""`r1jax score`: completions made elsewhere, judged, kept, and refused by file and line."""

import hashlib
import json

import pytest
import tiny_benchmark

import r1jax
import r1jax.evaluation.benchmarks
from r1jax.cli import main
from r1jax.commands import results


def say(answer):
    return f"<think>so</think><answer>{answer}</answer>"


ROWS = [
    {"problem": "1+1?", "answer": 2, "completions": [say(2), say(3), say("02"), "none"], "id": "α\u2028β"},
    {"prompt": "1+2?", "answer": "3", "completions": [say(3), say(4), say(4), say(5)], "level": 2},
    {"messages": [{"role": "user", "content": "2+2?"}], "answer": 4, "completions": [say(4)] * 4},
    {"prompt_tokens": [1, 2], "answer": "four", "completions": [say(4)] * 4},
]
GENERATED = {
    "tokens": [[1, 2, 3], [4], [5], [6]], "finish_reasons": ["stop", "stop", "stop", "length"],
    "scores": [0.1, 0.2, 0.9, -1], "logps": [[0.0] * 3, [0.0], [0.0], [0.0]],
}  # fmt: skip


def write(path, rows):
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def score(path, out, *more):
    reward = [] if {"--reward", "--benchmark"} & {*more} else ["--reward", "exact_answer"]
    main(["score", "--completions", *map(str, (path, "--out", out, *reward, "--workers", 2, *more))])


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(capsys, *args):
    """The one line on stderr of a command that exits with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main(["score", *map(str, args)])
    lines = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and len(lines) == 1
    return lines[0]


def test_results_problems_report_and_table(tmp_path, capsys):
    path = write(tmp_path / "mine.jsonl", [row | GENERATED for row in ROWS])
    score(path, tmp_path / "out")
    printed = capsys.readouterr().out
    assert sorted(files(tmp_path / "out")) == ["problems.jsonl", "report.html", "results.json", "settings.json"]
    result = json.loads((tmp_path / "out/results.json").read_text())
    values = {name: metric["value"] for name, metric in result["metrics"].items()}
    assert values == {
        "pass@1": pytest.approx((2 + 1 + 4 + 0) / 16), "pass@2": pytest.approx((5 / 6 + 1 / 2 + 1 + 0) / 4),
        "pass@4": 0.75, "cons@4": 0.5, "best_of_4": 0.5, "unscored": 0.25,
        "mean_length": 1.5, "median_length": 1, "p95_length": 3, "truncated": 0.25,
    }  # fmt: skip
    for name in ("pass@1", "pass@2", "pass@4", "cons@4", "best_of_4"):
        low, high = result["metrics"][name]["interval"]
        assert low <= values[name] <= high and low < high
    assert result["counts"]["completions that cannot be scored"] == 4 and result["version"] == r1jax.__version__
    assert result["settings"] == {
        "completions": str(path), "command": "score", "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "judge": "exact_answer", "timeout": 60.0,
    }  # fmt: skip
    rows = read_jsonl(tmp_path / "out/problems.jsonl")
    assert [(row["id"], row["problem"]) for row in rows] == [
        ("α\u2028β", "1+1?"), ("2", "1+2?"), ("3", "2+2?"), ("4", ""),
    ]  # fmt: skip
    assert [row["scores"] for row in rows] == [[1, 0, 1, 0], [1, 0, 0, 0], [1] * 4, [None] * 4]
    assert [row["majority"] for row in rows] == ["2", "4", "4", "4"]
    assert [row["consensus"] for row in rows] == [True, False, True, False]
    assert rows[0]["answers"] == ["2", "3", "2", None] and rows[0]["tokens"] == [3, 1, 1, 1]
    assert rows[3]["flags"] == ["cannot be scored", "cut off"]
    assert "43.8%" in printed and "mine: completions that cannot be scored: 4" in printed
    assert printed.rstrip().endswith(f"report: {tmp_path}/out/report.html")


def test_what_generate_and_other_tools_leave_out_is_left_out(tmp_path):
    score(write(tmp_path / "bare.jsonl", ROWS), tmp_path / "out")
    metrics = json.loads((tmp_path / "out/results.json").read_text())["metrics"]
    assert "mean_characters" in metrics and not {"mean_length", "truncated", "best_of_4"} & metrics.keys()


def test_problems_that_differ_in_their_completions(tmp_path, capsys):
    uneven = [ROWS[0], ROWS[2] | {"completions": [say(4)]}]
    score(write(tmp_path / "uneven.jsonl", uneven), tmp_path / "out")
    metrics = json.loads((tmp_path / "out/results.json").read_text())["metrics"]
    assert metrics["pass@1"]["value"] == 0.75 and "cons@4" not in metrics
    assert "cons@k left out: problems differ in how many completions they have, 1 to 4" in capsys.readouterr().out


@pytest.mark.parametrize("judge", ["benchmark", "reward"])
def test_other_judges(tmp_path, monkeypatch, judge):
    known = {"tiny": tiny_benchmark.TINY, "essays": tiny_benchmark.ESSAYS}
    monkeypatch.setattr(r1jax.evaluation.benchmarks, "BENCHMARKS", known, raising=False)
    path = write(tmp_path / "a.jsonl", [{"problem": "q", "answer": "2", "completions": ["xx", "x", "xxxxx", "xx"]}])
    option = {"benchmark": ("--benchmark", "tiny"), "reward": ("--reward", "tiny_benchmark:score")}[judge]
    score(path, tmp_path / "out", *option)
    result = json.loads((tmp_path / "out/results.json").read_text())
    assert result["metrics"]["pass@1"]["value"] == 0.75
    assert ("cons@4" in result["metrics"]) == ("answer/2" in result["metrics"]) == (judge == "benchmark")


def test_a_hang_and_a_crash_are_reported_and_stop_nothing(tmp_path, capsys):
    rows = [{"problem": "q", "answer": "1", "completions": ["x", word]} for word in ("hang", "x", "die", "x")]
    option = ("--reward", "tiny_benchmark:score", "--timeout", "1.5")
    score(write(tmp_path / "a.jsonl", rows), tmp_path / "out", *option)
    printed = capsys.readouterr().out
    assert "a: gradings that timed out: 1" in printed and "a: gradings that crashed: 1" in printed
    assert [row["scores"] for row in read_jsonl(tmp_path / "out/problems.jsonl")] == [
        [1, None],
        [1, 1],
        [1, None],
        [1, 1],
    ]


def test_an_interrupted_judging_goes_on(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "a.jsonl", ROWS * 5)
    score(path, tmp_path / "whole" / "out")  # the page's title is the folder's name
    append, graded = results.PartialRows._append, []

    def interrupted(self, value):
        append(self, value)
        graded.append(value)
        if len(graded) == 1 + 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(results.PartialRows, "_append", interrupted)
    with pytest.raises(SystemExit, match="130"):
        score(path, tmp_path / "out")
    assert capsys.readouterr().err.strip().endswith("the same command goes on from there")
    assert sorted(files(tmp_path / "out")) == ["grades.jsonl.partial", "settings.json"]
    score(tmp_path / ".." / tmp_path.name / "a.jsonl", tmp_path / "out")  # by another path, the same bytes
    assert sorted(value["row"] for value in graded[1:]) == list(range(20))  # each once
    done, whole = files(tmp_path / "out"), files(tmp_path / "whole" / "out")
    assert done.pop("problems.jsonl") == whole.pop("problems.jsonl") and done.keys() == whole.keys()
    done, whole = (json.loads(f["results.json"]) for f in (done, whole))
    assert done["settings"].pop("completions") != whole["settings"].pop("completions") and done == whole


def test_what_is_finished_is_shown_again(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", ROWS)
    score(path, tmp_path / "out")
    before, first = files(tmp_path / "out"), capsys.readouterr().out
    score(path, tmp_path / "out")
    again = capsys.readouterr().out
    assert files(tmp_path / "out") == before and "is finished already: nothing is judged anew" in again
    assert first.split("judging")[1].split("left\n")[1] in again


def test_a_folder_is_of_one_file_and_one_judge(tmp_path, capsys):
    path, out = write(tmp_path / "a.jsonl", ROWS), tmp_path / "out"
    base = ("--completions", path, "--out", out, "--reward")
    out.mkdir()
    (out / "notes.txt").touch()
    assert "holds something else (notes.txt): give a folder that is empty or not" in refused(
        capsys, *base, "exact_answer"
    )
    (out / "notes.txt").unlink()
    score(path, out)
    assert "was begun with judge='exact_answer', now it is 'format'" in refused(capsys, *base, "format")
    write(path, ROWS[:2])
    assert "was begun with sha256=" in refused(capsys, *base, "exact_answer")
    assert "is a file: give a folder" in refused(capsys, "--completions", path, "--out", path, "--reward", "format")
    (out / "settings.json").write_text("{")
    assert "is damaged" in refused(capsys, *base, "exact_answer")


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "is no JSON"),
        ('{"problem": "\\ud800", "completions": ["a"], "answer": 1}', "is no JSON"),
        ("[1]", 'must be an object with a "problem" and "completions"'),
        ('{"completions": ["a"], "answer": 1}', 'has no "problem"'),
        ('{"problem": 1, "completions": ["a"], "answer": 1}', "problem is 1: must be text"),
        ('{"messages": [], "completions": ["a"], "answer": 1}', "messages is []: must be a list whose last"),
        ('{"problem": "q", "answer": 1}', "completions is null: must be a list of at least one text"),
        ('{"problem": "q", "completions": [], "answer": 1}', "completions is []: must be a list of at least one"),
        ('{"problem": "q", "completions": ["a", 2], "answer": 1}', 'completions is ["a", 2]: must be'),
        ('{"problem": "q", "completions": ["a"]}', "has no 'answer', which exact_answer needs"),
        ('{"problem": "q", "completions": ["a"], "answer": 1, "tokens": [1, 2]}', "tokens is [1, 2]: must be a list"),
        ('{"problem": "q", "completions": ["a"], "answer": 1, "finish_reasons": "stop"}', 'finish_reasons is "stop"'),
        ('{"problem": "q", "completions": ["a"], "answer": 1, "scores": [NaN]}', "scores is [NaN]: must be a list"),
        ('{"problem": "q", "completions": ["a"], "answer": 1, "scores": [true]}', "scores is [true]: must be"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_used_is_named(tmp_path, capsys, line, message):
    path = write(tmp_path / "a.jsonl", [ROWS[0], "", line])
    sentence = refused(capsys, "--completions", path, "--out", tmp_path / "out", "--reward", "exact_answer")
    assert f"{path} line 3" in sentence and message in sentence
    assert not (tmp_path / "out").exists()


def test_refusals_that_need_no_line(tmp_path, capsys, monkeypatch):
    known = {"essays": tiny_benchmark.ESSAYS}
    monkeypatch.setattr(r1jax.evaluation.benchmarks, "BENCHMARKS", known, raising=False)
    path, out = write(tmp_path / "a.jsonl", ROWS), tmp_path / "out"
    assert "cannot be read" in refused(
        capsys, "--completions", tmp_path / "no.jsonl", "--out", out, "--reward", "format"
    )
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    assert "cannot be read" in refused(capsys, "--completions", binary, "--out", out, "--reward", "format")
    empty = write(tmp_path / "empty.jsonl", [])
    assert "has no rows" in refused(capsys, "--completions", empty, "--out", out, "--reward", "format")
    base = ("--completions", path, "--out", out)
    assert "reward='math': use one of" in refused(capsys, *base, "--reward", "math")
    assert "benchmark='tiny': use one of essays" in refused(capsys, *base, "--benchmark", "tiny")
    assert "is judged elsewhere" in refused(capsys, *base, "--benchmark", "essays")
    for option, value in (("workers", 0), ("timeout", 0)):
        assert f"error: {option}=0" in refused(capsys, *base, "--reward", "format", f"--{option}", value)
    assert not out.exists()


def test_a_torn_line_is_cut_away_for_good(tmp_path):
    for torn in (b"", b'{"row": 7, "sco', b"\xff\n", b"[1]\n"):
        path = tmp_path / f"{len(torn)}.partial"
        for i in range(3):
            with results.PartialRows(path, {"k": 1}) as rows:
                assert rows.done == {j: {"scores": [j]} for j in range(i)}
                rows.add(i, {"scores": [i]})
            path.write_bytes(path.read_bytes() + torn)


def test_two_processes_do_not_share_a_file(tmp_path):
    with results.PartialRows(tmp_path / "a.partial", {"k": 1}) as first:
        first.add(0, {"scores": [1]})
        with pytest.raises(r1jax.errors.ConfigError, match="is being written by another process"):
            results.PartialRows(tmp_path / "a.partial", {"k": 1})
    with pytest.raises(r1jax.errors.ConfigError, match="begun with other prompts or settings"):
        results.PartialRows(tmp_path / "a.partial", {"k": 2})
    with results.PartialRows(tmp_path / "a.partial", {"k": 1}) as again:
        assert again.done == {0: {"scores": [1]}}
