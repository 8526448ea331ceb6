"""The report page: whole for a whole run, honest about an unfinished one, safe with what a model may write."""

import html.parser
import json
import re
import subprocess
import sys

import pytest

from r1jax.cli import main
from r1jax.errors import ConfigError
from r1jax.evaluation import evaluation_report
from r1jax.evaluation.report import write_report
from r1jax.training.metrics import MetricsLog

VOID = {"meta", "br", "img", "hr"}


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and collects the text and the attributes that could load something."""

    def __init__(self, source: str):
        super().__init__()
        self.text, self.open, self.links = "", [], []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        assert tag != "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "


def whole_run(run_dir):
    with MetricsLog(run_dir, resume={}) as log:
        for step in range(60):
            log.write("pretrain", step, {"loss": 3.0 / (step + 1), "mtp_loss": 4.0 / (step + 1)})
        for step in range(0, 11, 5):
            scores = {"eval/pass@1": 0.25 + step / 40, "eval/cons@16": 0.5, "eval/mean_length": 10.0 + step}
            log.write("rl", step, scores | {"eval/format": 0.9, "eval/truncated": 0.1 - step / 100})
            row = {"prompt": "1+1=", "completion": f"step {step} <script>alert(1)</script>", "answer": "2"}
            log.samples("rl", step, [{**row, "reward": 1.0 if step else None}])
        for step in range(1, 11):
            values = {"reward": 0.1 * step, "rewards/format_reward/mean": 0.5, "kl": 0.01, "entropy": float("nan")}
            times = {"time/sample": 3.0, "time/update": 1.0}
            log.write("rl", step, values | times | {"completions/mean_length": 12.0, "frac_reward_zero_std": 0.5})
    (run_dir / "config.json").write_text(json.dumps({"model": {"dim": 64, "rope": {"theta": 1e4}}, "name": "nano"}))
    (run_dir / "compile_times.json").write_text(json.dumps({"sample": 2.5, "update": 9.0}))


def test_a_whole_run(tmp_path):
    whole_run(tmp_path)
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html" and not list(tmp_path.glob("*.partial"))
    source = path.read_text()
    page = Page(source)
    text = " ".join(page.text.split())
    assert "pass@1 25.0% 50.0% +25.0 points" in text
    assert "cons@16 50.0% 50.0% +0.0 points" in text
    assert "mean length, tokens 10.0 20.0 +10.0" in text
    assert "cut off 10.0% 0.0% −10.0 points" in text
    assert "sample 3.000 30.0 75.0%" in text and "update 1.000 10.0 25.0%" in text
    assert "update 9.00 sample 2.50" in text
    assert "model.rope.theta 10000.0" in text
    assert "step 0 <script>alert(1)</script>" in page.text and "step 10 <script>" in page.text
    assert "reward – · answer 2" in text and "reward 1.00 · answer 2" in text
    assert source.count("<svg") == 6 and text.count("Not logged so far.") == 4  # entropy was never finite
    assert all(link.startswith("#") for link in page.links)  # nothing is loaded from elsewhere
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]\b", source)  # every colour follows light and dark


@pytest.mark.parametrize("present", ["nothing", "pretraining", "one evaluation"])
def test_an_unfinished_run_says_what_is_absent(tmp_path, present):
    (tmp_path / "metrics.jsonl").touch()
    if present != "nothing":
        with MetricsLog(tmp_path, resume={}) as log:
            log.write("pretrain", 0, {"loss": 2.0})
            if present == "one evaluation":
                log.write("rl", 0, {"eval/pass@1": 0.5})
                log.samples("rl", 0, [{"prompt": "p", "completion": "c"}])
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"phase": "rl", "st')  # killed while writing, and not resumed yet
    text = Page(write_report(tmp_path).read_text()).text
    for absent in ("config.json is absent", "compile_times.json is absent", "No times so far"):
        assert absent in text
    assert ("No evaluation so far" in text) == (present != "one evaluation")
    assert ("Only one evaluation so far, at step 0" in text) == (present == "one evaluation")
    assert ("No samples so far" in text) == (present != "one evaluation")
    assert text.count("Not logged so far.") == {"nothing": 10, "pretraining": 9, "one evaluation": 8}[present]


def test_samples_of_different_prompts_are_still_shown(tmp_path):
    with MetricsLog(tmp_path, resume={}) as log:
        for step in (1, 2):
            log.samples("rl", step, [{"prompt": f"prompt {step}", "completion": f"completion {step}", "reward": 0.5}])
    text = Page(write_report(tmp_path).read_text()).text
    assert all(f"{word} {step}" in text for word in ("prompt", "completion") for step in (1, 2))


def test_no_such_run(tmp_path, capsys):
    (tmp_path / "other.txt").touch()
    with pytest.raises(ConfigError, match="holds neither a run nor an evaluation"):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]
    with pytest.raises(ConfigError, match="no such folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(SystemExit) as exit_info:
        main(["report", "--run-dir", str(tmp_path / "nowhere")])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.startswith("error: run_dir=")


def test_command_line(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").touch()
    main(["report", "--run-dir", str(tmp_path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    main(["--help"])
    assert "r1-zero" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_info:
        main(["r2-zero"])
    assert exit_info.value.code == 2 and "no command 'r2-zero'" in capsys.readouterr().err


def test_a_report_needs_no_jax():
    code = "import sys, r1jax.cli, r1jax.evaluation.report; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---------------------------------------------------------------------------------------------------- evaluations


def problem(number, scores, texts=None, **fields):
    row = {"id": f"p{number}", "problem": f"What is <b>{number}</b> & 1?", "answer": 2, "flags": []}
    row |= {"pass@1": sum(map(bool, scores)) / len(scores), "scores": scores}
    row |= {"completions": texts or ["text"] * len(scores), "tokens": [7] * len(scores)}
    return row | fields


def evaluation(folder, rows, name="mine", **changes):
    """A finished evaluation's folder."""
    folder.mkdir(parents=True)
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    k = max(len(row["completions"]) for row in rows)
    rate = {"value": 0.5, "interval": [0.25, 0.75]}
    result = {
        "name": name, "title": f"The {name} problems", "judge": "exact", "k": k,
        "metrics": {
            "pass@1": rate, "pass@2": rate | {"value": 0.625}, f"cons@{k}": rate | {"value": 0.375},
            "mean_length": {"value": 7.25, "interval": None}, "truncated": {"value": 0.1, "interval": None},
            "level_1/pass@1": {"value": 0.125, "interval": None}, "Elo": {"value": 1500, "interval": None},
        },
        "counts": {"problems": len(rows), "completions": k * len(rows), "gradings that timed out": 3},
        "reflection": {"wait": 4, "verify": 0}, "notes": ["something <i>left out</i>"],
        "settings": {"checkpoint": "some/model", "seed": 0}, "version": "0.1.0",
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(result | changes))
    return folder


def page_of(folder):
    source = write_report(folder).read_text()
    page = Page(source)
    assert all(link.startswith("#") for link in page.links)  # nothing is loaded from elsewhere
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]\b", source)
    return source, " ".join(page.text.split())


def test_an_evaluation(tmp_path):
    answers = {"answers": ["2", "2", "</b>", None], "majority": "2", "consensus": True}
    rows = [
        problem(
            0, [1.0, 1.0, 0.0, None], ["<script>alert(1)</script>", "b", "c", "d" * 800], flags=["cut off"], **answers
        ),
        problem(1, [0.0] * 4),
        problem(2, [1.0] * 4, finish_reasons=["stop", "length", "stop", "stop"]),
        problem(3, [0.5] * 4) | {"pass@1": 0.0},
        problem(4, [0.0] * 4, [""] * 4, flags=["not asked: too long"]) | {"tokens": [None] * 4},
    ]
    source, text = page_of(evaluation(tmp_path / "mine", rows))
    assert "pass@1 50.0% 25.0–75.0%" in text and "pass@2 62.5% 25.0–75.0%" in text and "cons@4 37.5%" in text
    assert "mean_length 7 truncated 10.0%" in text and "level_1/pass@1 12.5% Elo 1,500" in text
    assert "gradings that timed out 3" in text and "something <i>left out</i>" in text
    assert "wait 4 20.0" in text and "verify" not in text
    assert "0/4 p4 What is <b>4</b> & 1? What is <b>4</b> & 1? answer 2 · not asked: too long Sometimes" in text
    assert "Never right : 3 problems 0/4 p1 What is <b>1</b> & 1?" in text
    assert "Sometimes right : 1 problem 2/4 p0" in text and "Always right : 1 problem 4/4 p2" in text
    assert "answer 2 · votes 2 × 2, </b> × 1 · cut off" in text
    assert "✓ right · answer 2 · 7 tokens · 1 of 4 <script>alert(1)</script>" in text
    assert "✗ wrong · answer </b> · 7 tokens · 3 of 4 c" in text and "– unscored · 7 tokens · 4 of 4" in text
    assert "✗ wrong (0.5)" in text and "✓ right · 7 tokens · length · 2 of 4" in text
    assert re.search(r"<details>\s*<summary>[^d]*unscored", source)  # the long one is folded, a short one is not
    assert re.search(r"<details open>\s*<summary>\s*<b class=\"right\">", source)
    assert source.count("<svg") == 2 and "right 6" in text and "not right 10" in text
    assert "some/model" in text and "seed 0" in text


def test_several_evaluations(tmp_path):
    evaluation(tmp_path / "b", [problem(0, [1.0, 0.0])], "b")
    evaluation(tmp_path / "a", [problem(0, [1.0, 0.0])], "a")
    essays = [{name: v for name, v in problem(1, [0.0]).items() if name not in ("pass@1", "scores")}]
    evaluation(tmp_path / "c", essays, "c", metrics={}, judge=None, notes=["not scored: c is judged elsewhere"])
    (tmp_path / "unfinished").mkdir()
    source, text = page_of(tmp_path)
    assert "problems k pass@1 cons@k pass@2 length cut off" in text
    assert "a 1 2 50.0% 25.0–75.0 37.5% 25.0–75.0 62.5% 25.0–75.0 7 10.0%" in text and "c 1 1" in text
    assert text.index("The a problems") < text.index("The b problems") < text.index("The c problems")
    assert "not scored: c is judged elsewhere" in text and "Not judged here : 1 problem p1" in text
    assert 'href="#a"' in source and 'id="a"' in source


def test_a_large_evaluation_stays_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_report, "PROBLEMS_SHOWN", 5)
    monkeypatch.setattr(evaluation_report, "CHARACTERS_SHOWN", 2000)
    long = "left " + "x" * 50_000 + " right"
    rows = [problem(i, [0.0] * 15 + [1.0], [long] * 16) for i in range(300)]
    source, text = page_of(evaluation(tmp_path / "large", rows))
    shown, kept = evaluation_report.PROBLEMS_SHOWN, evaluation_report.CHARACTERS_SHOWN
    assert len(source) < 100_000
    assert f"Sometimes right : 300 problems, the first {shown} of them here, all in problems.jsonl" in text
    assert f"{50_011 - kept:,} characters left out" in text and "left xxx" in text and "xxx right" in text
    assert (
        text.count("1/16 p0") == 1 and "✓ right · 7 tokens · 16 of 16" in text
    )  # the one of its kind is among the four
    assert text.split("1/16 p1 ")[0].count(" of 16 ") == 4


def test_a_run_with_an_evaluation_inside_is_still_a_run(tmp_path):
    whole_run(tmp_path)
    evaluation(tmp_path / "mine", [problem(0, [1.0])])
    assert "r1jax run report" in page_of(tmp_path)[1] and "r1jax evaluation report" in page_of(tmp_path / "mine")[1]


def test_the_folder_may_stand_alone_on_the_command_line(tmp_path, capsys):
    evaluation(tmp_path / "mine", [problem(0, [1.0])])
    main(["report", str(tmp_path / "mine")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "mine" / "report.html")


def test_a_rule_that_is_only_watched_is_drawn_beside_the_preference(tmp_path):
    """The monitor of reward hacking: both of the same completions, and only where a run has both."""
    config = {"grpo": {}, "reward": {"functions": ["exact", "rule", "liked"], "weights": [1.0, 0.0, 1.0]}}
    rows = [
        {"phase": "rl", "step": step, "reward": 1.0, "rewards/rule/mean": 0.5, "rewards/liked/mean": step / 10}
        for step in range(1, 6)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for models, drawn in (({"liked": "somewhere"}, True), ({}, False)):
        (tmp_path / "config.json").write_text(json.dumps(config | {"reward_models": models}))
        page = write_report(tmp_path).read_text()
        assert ("Rule against preference" in page) == drawn
        assert ("rule (rule)" in page and "liked (preference)" in page) == drawn
