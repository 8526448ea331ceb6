"""The report page: whole for a whole run, honest about an unfinished one, safe with what a model may write."""

import html.parser
import json
import re
import subprocess
import sys

import pytest

from r1jax.cli import main
from r1jax.errors import ConfigError
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
    with pytest.raises(ConfigError, match="no such folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(SystemExit) as exit_info:
        main(["report", "--run-dir", str(tmp_path / "nowhere")])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.startswith("error: run_dir=")


def test_command_line(tmp_path, capsys):
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
