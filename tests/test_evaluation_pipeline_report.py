"""A recipe's page: the models compared, the chain drawn, every stage with what it was made of, finished or not."""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluation_report import Page
from test_recipes_pipeline import Told

from r1jax.cli import main
from r1jax.evaluation.chain import BOX, Box, _lanes, cut, lay_out
from r1jax.evaluation.report import write_report
from r1jax.recipes.pipeline import Pipeline, Stage, StageError
from r1jax.training.metrics import MetricsLog

NAMES = ("base", "zero", "dev1", "dev2", "dev3", "r1", "student_distilled", "student_rl")


def data(given):
    (given.folder / "train.jsonl").write_text("{}\n")
    return {"rows": 12345, "<b>": "<script>alert(1)</script>"}


def sft(given):
    with MetricsLog(given.folder, {}) as log:
        for step in range(1, 30):
            log.write("sft", step, {"loss": 2 / step} | ({} if step % 10 else {"eval_loss": 3 / step}))
    (given.folder / "model").write_text("sft")
    return {"loss": 0.0689655}


def rl(given):
    with MetricsLog(given.folder, {}) as log:
        for step in range(1, 11):
            log.write("rl", step, {"reward": step / 10, "rewards/format_reward/mean": 0.5, "loss": 0.0})
        for step in (0, 10):
            log.write("rl", step, {"eval/pass@1": 0.25 + step / 20, "eval/cons@4": 0.5, "eval/mean_length": 9.0})
    (given.folder / "model").write_text("rl")
    return {"pass@1": 0.75}


def chain(**changes):
    config = {"grpo": {"beta": 0.001}} | changes
    return [
        Stage("world", "Problems & <requests>", {}, ("train.jsonl",), None, data),
        Stage("base", "Pretraining", {"rows": "world/train.jsonl"}, ("model",), None, sft),
        Stage("zero", "R1-Zero", {"policy": "base/model", "rows": "world/train.jsonl"}, ("model",), config, rl),
        Stage("r1", "All scenarios", {"policy": "base/model", "rows": "world/train.jsonl"}, ("model",), config, sft),
    ]


def results(**changes):
    models = {}
    for i, name in enumerate(reversed(NAMES)):
        share = {"value": 0.1 + i / 10, "interval": [0.05 + i / 10, 0.125 + i / 10]}
        models[name] = {"mean_length": {"value": 31.25, "interval": [30.0, 32.5]}} | {
            metric: share for metric in ("harmless", "general", "format", "single_language", "cons@16", "pass@1")
        }
    return {"seed": 0, "models": models, "meanings": {"pass@1": "share of <right> answers"}} | changes


def page_of(folder):
    source = write_report(folder).read_text()
    page = Page(source)
    assert all(link.startswith("#") for link in page.links)  # nothing is loaded from elsewhere
    anchors = set(re.findall(r' id="([^"]+)"', source))
    assert {link[1:] for link in page.links} <= anchors
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]\b", source)  # every colour follows light and dark
    for svg in re.findall(r"<svg.*?</svg>", source, re.S):
        ElementTree.fromstring(svg.replace("xlink:", ""))
    return source, " ".join(page.text.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe") / "nano"
    Pipeline(chain(), folder, 3, Told()).run()
    return folder


@pytest.fixture
def whole(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "nano")
    (folder / "results.json").write_text(json.dumps(results()))
    return folder


def test_a_whole_recipe(whole):
    source, text = page_of(whole)
    assert "nano r1jax recipe report stages 4 of 4 done" in text and "seed 3 r1jax 0.1.0" in text
    columns = "base zero dev1 dev2 dev3 r1 student distilled student rl"
    assert f"With 95% intervals over problems. {columns} pass@1 80.0% 75.0–82.5 70.0%" in text
    rows = re.findall(r"<tr><td>([^<]*)</td><td class=\"number two\">", source)
    assert rows == ["pass@1", "cons@16", "single language", "format", "general", "harmless", "mean length"]
    assert "mean length 31.2 30.0–32.5 31.2" in text
    assert text.count("share of <right> answers") == 1
    zero = json.loads((whole / "zero" / "stage.json").read_text())
    assert f"model {zero['outputs']['model']['sha256'][:8]}" in text
    for name, read in zero["inputs"].items():
        assert f"input {name} {read['from']} {read['sha256'][:16]}" in text and read["sha256"] in source
    assert "grpo.beta 0.001" in text and "pass@1 0.75" in text and "loss 0.06897" in text
    assert "rows 12,345" in text and "<script>alert(1)</script>" in text and "Problems & <requests>" in text
    assert text.count("run it again") == 0 and "waiting" not in re.findall(r'class="(\w+)"', source)
    # One of the chain, seven of scores, and of the stages: two losses, reward, accuracy and length.
    assert source.count("<svg") == 1 + 7 + 5
    assert text.count("Loss nats per token") == 0 and "Accuracy on the evaluation problems" in text


def test_the_command_finds_it(whole, capsys):
    main(["report", str(whole)])
    assert capsys.readouterr().out.strip() == str(whole / "report.html")


def test_models_and_scores_may_be_absent(whole):
    some = results()
    for name in ("base", "dev2"):
        del some["models"][name]
    del some["models"]["r1"]["general"]
    some["models"]["zero"] |= {"pass@1": {"value": None, "interval": None}, "cons@16": {"value": 0.5, "interval": None}}
    some["models"]["another"] = {"pass@1": {"value": 0.5, "interval": [0.4, 0.6]}, "more": {"value": 0.125}}
    (whole / "results.json").write_text(json.dumps(some))
    _, text = page_of(whole)
    assert "zero dev1 dev3 r1 student distilled student rl another pass@1 – 60.0% 55.0–62.5" in text
    assert "cons@16 50.0% 60.0%" in text and "more – – – – – – 12.5%" in text
    for nothing in ({}, {"base": {}}):
        (whole / "results.json").write_text(json.dumps(results(models=nothing)))
        assert "the models have not been compared so far" in page_of(whole)[1]


def test_one_under_way(tmp_path):
    def stop(given):
        raise ValueError

    stages = chain()
    stages[2] = Stage("zero", "R1-Zero", dict(stages[2].inputs), ("model",), None, stop)
    with pytest.raises(StageError):
        Pipeline(stages, tmp_path, 0, Told()).run()
    source, text = page_of(tmp_path)
    assert "stages 2 of 4 done" in text and "results.json is absent" in text
    assert "zero R1-Zero begun, so far 0.0 s" in text and "r1 All scenarios to come" in text
    assert re.findall(r'class="(done|begun|waiting|stale)"', source) == ["done", "done", "begun", "waiting"]
    assert source.count('class="arrow"') == 5  # of what is to come as well

    shutil.rmtree(tmp_path / "world")
    shutil.rmtree(tmp_path / "base")
    assert "stages 0 of 4 done" in page_of(tmp_path)[1]


def test_what_is_made_of_something_earlier_is_said(whole):
    Pipeline([*chain()[:1], Stage("base", "B", {"rows": "world/train.jsonl"}, ("model",), None, rl), *chain()[2:]],
             whole, 3, Told()).run(only="base")  # fmt: skip
    source, text = page_of(whole)
    assert re.findall(r'class="(done|begun|waiting|stale)"', source) == ["done", "done", "stale", "stale"]
    assert text.count("made from an earlier base/model: run it again") == 6  # twice in the chain, and with the stage
    shutil.rmtree(whole / "base")
    assert "made from base/model, which is no longer there" in page_of(whole)[1]


def test_without_the_chains_file_the_order_is_that_of_the_inputs(whole):
    (whole / "pipeline.json").unlink()
    source, _ = page_of(whole)
    order = re.findall(r'<h2 id="stage-(\w+)"', source)
    assert order[:2] == ["world", "base"] and sorted(order[2:]) == ["r1", "zero"]


# ------------------------------------------------------------------------------------------------------- the drawing


def boxes_of(reads):
    """A chain in which stage n reads those of `reads[n]`."""
    return [
        Box(f"s{n}", "title", "done", {f"s{source}": "model" for source in sources}, "1 s", "", "")
        for n, sources in enumerate(reads)
    ]


chains = st.integers(1, 20).flatmap(
    lambda size: st.tuples(*(st.sets(st.integers(0, n - 1)) if n else st.just(set()) for n in range(size)))
)


@given(chains)
@settings(max_examples=100, deadline=None)
def test_every_input_has_one_arrow_and_no_two_share_a_line(reads):
    drawn = lay_out(boxes_of(reads))
    titles = [arrow["title"] for arrow in drawn["arrows"]]
    assert sorted(titles) == sorted(f"s{a}/model → s{b}" for b, sources in enumerate(reads) for a in sources)
    lanes, ends = {}, set()
    for arrow in drawn["arrows"]:
        source = arrow["title"].split("/")[0]
        x, y = map(float, arrow["tip"].split()[0].split(","))
        assert (x, y) not in ends  # no two arrows end in one place
        ends.add((x, y))
        target = next(at for at in drawn["boxes"] if at["box"].name == arrow["title"].split(" → ")[1])
        assert target["y"] <= y < target["y"] + BOX and x >= target["x"]
        if lane := re.match(r"M \d+ (\S+) H (\S+) V (\S+)", arrow["path"]):
            start, x, end = map(float, lane.groups())
            assert 0 < x < drawn["boxes"][0]["x"]
            lanes.setdefault(x, []).append((source, start, end))
    for spans in lanes.values():
        for source, start, end in spans:
            assert all(other == source or e <= start or end <= s for other, s, e in spans)


def test_lanes_are_used_again():
    assert _lanes({"a": (0, 2), "b": (3, 5), "c": (0, 5), "d": (2, 3)}) == {"d": 0, "a": 1, "b": 1, "c": 2}


def test_long_names_are_cut_by_what_they_take():
    assert cut("short", 5) == "short" and cut("longer", 5) == "long…"
    assert cut("问题与答案", 10) == "问题与答案" and cut("问题与答案", 9) == "问题与…"
    long = Box("n" * 300, "t" * 300, "done", {}, "1 s", "", "r" * 300)
    at = lay_out([long])["boxes"][0]
    assert all(len(at[part]) < 160 and at[part].endswith("…") for part in ("name", "title", "results"))
