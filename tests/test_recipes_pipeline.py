"""A chain of stages: what is unchanged is not run again, what was killed goes on, and the record says the truth."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import r1jax
from r1jax.errors import ConfigError, R1JaxError
from r1jax.recipes import pipeline
from r1jax.recipes.artefacts import sha256_of
from r1jax.recipes.pipeline import Pipeline, Stage, StageError


@dataclasses.dataclass(frozen=True)
class Rows:
    count: int = 3
    where: Path = Path("somewhere")


@dataclasses.dataclass(frozen=True)
class Train:
    rate: float = 0.5
    rows: Rows = Rows()


def write_rows(given):
    rows = [f"{given.seed} {i}\n" for i in range(given.config.count)]
    (given.folder / "train.jsonl").write_text("".join(rows))
    return {"rows": np.int64(len(rows))}


def learn(given):
    """A file for each row, and how many are done: work that a kill interrupts and a restart goes on with."""
    model, done = given.folder / "model", given.folder / "done"
    model.mkdir(exist_ok=True)
    policy = given.inputs.get("policy")
    start = (policy / "weights").read_text() if policy else "0"
    with (given.folder / "metrics.jsonl").open("a") as log:
        for i, row in enumerate(given.inputs["rows"].read_text().splitlines()):
            if i >= (int(done.read_text()) if done.exists() else 0):
                (given.folder / "unfinished").write_text(f"{start} {row} {given.config.rate}")
                os.replace(given.folder / "unfinished", model / f"{i}.npy")
                (given.folder / "unfinished").write_text(str(i + 1))
                os.replace(given.folder / "unfinished", done)
                log.write(json.dumps({"phase": "rl", "step": i, "time/update": os.getpid()}) + "\n")
    weights = "".join(path.read_text() for path in sorted(model.glob("*.npy")))
    (model / "weights").write_text(weights)
    return {"size": len(weights), "score": np.float32(0.25), "text": "fine", "none": float("nan")}


def tally(given):
    sizes = {name: len((path / "weights").read_text()) for name, path in given.inputs.items()}
    (given.folder / "sizes.json").write_text(json.dumps(sizes))
    return sizes


def chain(rows=Rows(), base=Train(), zero=Train(0.25)):
    return [
        Stage("world", "Problems", {}, ("train.jsonl",), rows, write_rows),
        Stage("base", "Pretraining", {"rows": "world/train.jsonl"}, ("model", "metrics.jsonl"), base, learn),
        Stage("zero", "R1-Zero", {"policy": "base/model", "rows": "world/train.jsonl"}, ("model",), zero, learn),
        Stage("aside", "Another", {"rows": "world/train.jsonl"}, ("model",), Train(0.75), learn),
        Stage("results", "Scores", {"base": "base/model", "zero": "zero/model"}, ("sizes.json",), None, tally),
    ]


class Told(Console):
    """A console that keeps what is said."""

    def __init__(self):
        super().__init__(file=io.StringIO(), width=200)

    def lines(self):
        return self.file.getvalue().splitlines()


def run(run_dir, stages=None, seed=0, **options):
    """What was said, and {stage: its state}."""
    told = Told()
    Pipeline(stages or chain(), run_dir, seed, told).run(**options)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.lines() if line.startswith("│")]
    return told.lines(), {name: state for name, state, *_ in cells}


def record(run_dir, stage):
    return json.loads((run_dir / stage / "stage.json").read_text())


def everything(run_dir):
    """Every file's content, without times."""
    found = {}
    for path in sorted(p for p in run_dir.rglob("*") if p.is_file() and p.name != "lock"):
        found[str(path.relative_to(run_dir))] = path.read_bytes()
        if path.name == "stage.json":
            content = json.loads(path.read_text())
            assert content.pop("seconds") >= 0
            found[str(path.relative_to(run_dir))] = content
        elif path.name == "metrics.jsonl":
            found[str(path.relative_to(run_dir))] = "present"
    return found


ALL = ["world", "base", "zero", "aside", "results"]


def states(**different):
    return {name: different.get(name, "unchanged") for name in ALL}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "whole"
    assert run(folder)[1] == dict.fromkeys(ALL, "run")
    return folder


@pytest.fixture
def finished(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


# ------------------------------------------------------------------------------------------------------ the record


def test_a_stage_records_what_it_consumed_and_made(whole):
    zero = record(whole, "zero")
    assert list(zero) == ["name", "title", "inputs", "config", "seed", "version", "outputs", "results", "seconds"]
    assert zero["name"] == "zero" and zero["title"] == "R1-Zero" and zero["seed"] == 0
    assert zero["version"] == r1jax.__version__
    assert zero["config"] == {"rate": 0.25, "rows": {"count": 3, "where": "somewhere"}}
    assert zero["inputs"] == {
        "policy": {"from": "base/model", "sha256": sha256_of(whole / "base/model")},
        "rows": {"from": "world/train.jsonl", "sha256": sha256_of(whole / "world/train.jsonl")},
    }
    assert zero["outputs"] == {"model": {"sha256": sha256_of(whole / "zero/model")}}
    size = len((whole / "zero/model/weights").read_text())
    assert zero["results"] == {"size": size, "score": 0.25, "text": "fine", "none": None}
    assert list(record(whole, "base")["outputs"]) == ["model"]  # metrics.jsonl holds times
    assert not list(whole.rglob("begun.json")) and not list(whole.rglob("*unfinished"))


def test_it_is_told_as_it_goes(tmp_path):
    told, _ = run(tmp_path)
    assert told[:2] == ["[1/5] world: Problems", "[2/5] base: Pretraining"]
    assert next(line for line in told if line.startswith("│ world")).split()[-2:] == ["3", "│"]
    results = [line for line in told if line.startswith(("│ zero", "│ base"))]
    assert all("score 0.25" in line and "text fine" in line and "none None" in line for line in results)


def test_the_folders_of_the_stages_are_returned(finished):
    assert Pipeline(chain(), finished, 0, Told()).run() == [finished / name for name in ALL]
    assert Pipeline(chain(), finished, 0, Told()).run(only="zero") == [finished / "zero"]


# -------------------------------------------------------------------------------------------- what is run, what not


def test_the_second_time_nothing_is_run(finished):
    before = everything(finished)
    told, found = run(finished)
    assert found == states() and told[0] == "[1/5] world: Problems (unchanged)"
    assert everything(finished) == before


def test_a_change_runs_the_stage_and_what_it_changes(finished, tmp_path):
    told, found = run(finished, chain(base=Train(0.75)))
    assert "base: config.rate was 0.5, is 0.75: run again" in told
    assert any(line.startswith("zero: input policy was ") and line.endswith(": run again") for line in told)
    assert found == states(base="run", zero="run", results="run")
    assert record(finished, "results")["inputs"]["base"]["sha256"] == sha256_of(finished / "base/model")


@pytest.fixture
def fresh(tmp_path):
    def make(stages, seed=0):
        run(tmp_path / "fresh", stages, seed)
        return everything(tmp_path / "fresh")

    return make


def test_after_any_change_it_is_as_if_made_so_at_once(finished, fresh):
    stages = chain(rows=Rows(2), zero=Train(1.0))
    run(finished, stages, seed=3)
    assert everything(finished) == fresh(stages, seed=3)


def test_bits_that_stay_the_same_stop_a_change(finished):
    """The stage is run again, but makes the same: nothing after it has another input."""
    told, found = run(finished, chain(rows=Rows(where=Path("elsewhere"))))
    assert 'world: config.where was "somewhere", is "elsewhere": run again' in told
    assert found == states(world="run")


def test_seed_and_version_are_part_of_it(finished, monkeypatch):
    assert "world: seed was 0, is 1: run again" in run(finished, seed=1)[0]
    monkeypatch.setattr(r1jax, "__version__", "9")
    told, found = run(finished, seed=1)
    assert f'aside: version was "{record(finished, "world")["version"]}"' not in told
    assert found == dict.fromkeys(ALL, "run")


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda run_dir: (run_dir / "base/model/1.npy").write_text("x"), "base: output model was changed: run again"),
        (lambda run_dir: (run_dir / "base/model/new").touch(), "base: output model was changed: run again"),
        (lambda run_dir: shutil.rmtree(run_dir / "base/model"), "base: output model is missing: run again"),
        (lambda run_dir: (run_dir / "base/metrics.jsonl").unlink(), "base: output metrics.jsonl is missing: run again"),
    ],
    ids=["changed", "more", "gone", "no metrics"],
)
def test_damaged_outputs_are_made_again(finished, damage, said):
    before = everything(finished)
    damage(finished)
    told, found = run(finished)
    assert said in told and found == states(base="run") and everything(finished) == before


def test_another_title_or_name_of_the_source_runs_nothing_and_is_recorded(finished):
    stages = chain()
    stages[3] = dataclasses.replace(stages[3], title="Renamed")
    assert run(finished, stages)[1] == states()
    assert record(finished, "aside")["title"] == "Renamed"


def test_another_output_runs_the_stage(finished):
    stages = chain()
    stages[4] = dataclasses.replace(stages[4], outputs=("sizes.json", "more.json"))
    with pytest.raises(StageError, match=r"^stage results has not written more\.json in .*results: mend its function$"):
        run(finished, stages)
    assert run(finished)[1] == states(results="resumed")


# -------------------------------------------------------------------------------------------------- --only and --from


def test_only_runs_one_stage_even_if_it_is_unchanged(finished):
    before = everything(finished)
    (finished / "zero" / "mark").touch()
    told, found = run(finished, only="zero")
    assert found == {"zero": "run"} and "zero: asked for: run again" in told
    assert everything(finished) == before  # the mark went with the folder


def test_only_takes_its_inputs_as_they_are(finished):
    stages = chain(base=Train(0.75))  # base is not what it would be now
    told, found = run(finished, stages, only="zero")
    assert found == {"zero": "run"} and "base: config.rate was 0.5, is 0.75: used as it is" in told
    assert (
        record(finished, "zero")["inputs"]["policy"]["sha256"] == record(finished, "base")["outputs"]["model"]["sha256"]
    )
    assert run(finished, stages)[1] == states(base="run", zero="run", results="run")


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda base: shutil.rmtree(base), "not complete"),
        (lambda base: (base / "stage.json").rename(base / "begun.json"), "not complete"),
        (lambda base: shutil.rmtree(base / "model"), "output model is missing"),
        (lambda base: (base / "model/0.npy").write_text("x"), "output model was changed"),
    ],
    ids=["absent", "begun", "gone", "changed"],
)
def test_only_needs_inputs_that_are_whole(finished, damage, said):
    damage(finished / "base")
    before = everything(finished)
    with pytest.raises(
        ConfigError, match=f"^base/model: stage base: {said}; run that stage first, or leave out --only$"
    ):
        run(finished, only="zero")
    assert everything(finished) == before  # zero is still there
    run(finished, only="aside")  # which needs no base


def test_from_runs_a_stage_again_and_what_that_changes(finished):
    told, found = run(finished, start="base")
    assert found == states(base="run") and "base: asked for: run again" in told  # the same bits: nothing else is run

    random = chain()
    random[1] = dataclasses.replace(random[1], run=lambda given: noise(given))
    assert run(finished, random, start="base")[1] == states(base="run", zero="run", results="run")


def noise(given):
    results = learn(given)
    (given.folder / "model" / "weights").write_text(os.urandom(4).hex())
    return results


@pytest.mark.parametrize(
    "options, said",
    [
        ({"only": "cold"}, "only='cold': must be one of world, base, zero, aside, results"),
        ({"start": "cold"}, "from='cold': must be one of"),
        ({"start": "zero", "only": "base"}, "from='zero': cannot go together with only='base'; give one"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        run(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------------- failures


def failing(error):
    def stop(given):
        (given.folder / "half").write_text("done")
        raise error

    stages = chain()
    stages[2] = dataclasses.replace(stages[2], run=stop)
    return stages


@pytest.mark.parametrize(
    "error, kind, said",
    [
        (
            ValueError("odd\nvalue"),
            StageError,
            r"stage zero failed \(ValueError: odd value\): mend that and run again, ",
        ),
        (OSError(errno.ENOSPC, "full", "/x/y"), StageError, "/x/y: no space is left on its disk; free some and run"),
        (ConfigError("mine=1: must be 2"), ConfigError, "mine=1: must be 2$"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
    ids=["exception", "full disk", "ours", "ctrl-c"],
)
def test_a_failure_is_one_sentence_and_can_be_gone_on_from(tmp_path, whole, error, kind, said):
    with pytest.raises(kind, match=said) as raised:
        run(tmp_path / "run", failing(error))
    assert isinstance(error, KeyboardInterrupt) or isinstance(raised.value, R1JaxError)
    assert "\n" not in str(raised.value)
    zero = tmp_path / "run" / "zero"
    assert (zero / "failure.txt").exists() == isinstance(error, ValueError)
    assert (zero / "half").exists() and json.loads((zero / "begun.json").read_text())["seconds"] > 0
    assert run(tmp_path / "run")[1] == states(zero="resumed", aside="run", results="run")
    (zero / "half").unlink()
    assert everything(tmp_path / "run") == everything(whole)


def test_a_full_disk_while_the_record_is_written(tmp_path, whole, monkeypatch):
    def full(path, value):
        if path == tmp_path / "run" / "zero" / "stage.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, value)

    write = pipeline.write_json
    with monkeypatch.context() as patch, pytest.raises(StageError, match=r"zero/stage\.json: no space is left"):
        patch.setattr(pipeline, "write_json", full)
        run(tmp_path / "run")
    assert run(tmp_path / "run")[1]["zero"] == "resumed" and everything(tmp_path / "run") == everything(whole)


def test_what_was_begun_from_something_else_is_begun_anew(tmp_path, fresh):
    with pytest.raises(StageError):
        run(tmp_path / "run", failing(ValueError()))
    stages = chain(zero=Train(2.0))
    told, found = run(tmp_path / "run", stages)
    assert "zero: config.rate was 0.25, is 2.0: begun anew" in told and found["zero"] == "run"
    assert everything(tmp_path / "run") == fresh(stages)  # "half" is gone


def test_seconds_are_of_all_processes(tmp_path, monkeypatch):
    now, attempts = [0.0], []
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: now[0])

    def slow(given):
        now[0] += 40
        attempts.append(now[0])
        if len(attempts) < 3:
            raise ValueError
        return learn(given)

    stages = chain()
    stages[2] = dataclasses.replace(stages[2], run=slow)
    for _ in range(2):
        with pytest.raises(StageError):
            run(tmp_path, stages)
        now[0] += 1000
    run(tmp_path, stages)
    assert record(tmp_path, "zero")["seconds"] == 120


def test_seconds_are_kept_while_a_stage_runs(tmp_path):
    path = tmp_path / "begun.json"
    path.write_text('{"seconds": 5.0}')
    with pipeline._clock(path, interval=0.01):
        for _ in range(500):
            if (seconds := json.loads(path.read_text())["seconds"]) > 5:
                break
            pipeline.time.sleep(0.01)
    assert seconds > 5


def test_only_goes_on_with_a_stage_that_was_begun(tmp_path, whole):
    with pytest.raises(StageError):
        run(tmp_path / "run", failing(ValueError()))
    assert run(tmp_path / "run", only="zero")[1] == {"zero": "resumed"}
    assert (tmp_path / "run" / "zero" / "half").exists() and not (tmp_path / "run" / "aside").exists()
    assert record(tmp_path / "run", "zero")["outputs"] == record(whole, "zero")["outputs"]


def test_nothing_foreign_is_removed(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="base holds something that no stage has left there: move it, or use another"):
        run(tmp_path)
    assert (tmp_path / "base" / "thesis.tex").exists() and not (tmp_path / "world").exists()  # said before any work
    shutil.rmtree(tmp_path / "base")
    (tmp_path / "base").touch()
    with pytest.raises(ConfigError, match="base holds something"):
        run(tmp_path)


def test_one_process_at_a_time(tmp_path):
    def second(given):
        run(given.folder.parent)
        return {}

    stages = chain()
    stages[0] = dataclasses.replace(stages[0], run=second)
    with pytest.raises(ConfigError, match="another process is running there"):
        run(tmp_path, stages)


def test_a_damaged_record_is_named(finished):
    (finished / "base" / "stage.json").write_text("{")
    with pytest.raises(ConfigError, match=r"base/stage\.json is damaged .*: remove its folder"):
        run(finished)


# ------------------------------------------------------------------------------------------------------- descriptions


def changed(position, **fields):
    stages = chain()
    stages[position] = dataclasses.replace(stages[position], **fields)
    return stages


@pytest.mark.parametrize(
    "stages, said",
    [
        (changed(1, name="world"), "stage='world': two stages have this name"),
        (
            changed(1, name="../base"),
            r"stage='../base': must be a plain file name: not empty, no \"/\", no leading dot",
        ),
        (changed(1, name=""), "stage='': must be a plain"),
        (changed(1, name=".base"), "stage='.base': must be a plain"),
        (changed(4, name="lock"), "stage='lock': must be a plain"),
        (changed(1, outputs=("model", "stage.json")), "base.outputs='stage.json': must be a plain"),
        (changed(1, outputs=("model", "a/b")), "base.outputs='a/b': must be a plain"),
        (changed(1, outputs=("model", "model")), r"base.outputs=\('model', 'model'\): names one twice"),
        (changed(1, inputs={"rows": "zero/model"}), "base.inputs.rows='zero/model': must be an output of an earlier"),
        (changed(1, inputs={"rows": "base/model"}), "base.inputs.rows='base/model': must be an output of an earlier"),
        (changed(1, inputs={"rows": "world"}), "base.inputs.rows='world': must be .*: world/train.jsonl$"),
        (changed(0, inputs={"rows": "a/b"}), "world.inputs.rows='a/b': must be .*: there is none$"),
        (changed(2, inputs={"m": "base/metrics.jsonl"}), "zero.inputs.m='base/metrics.jsonl': must be"),
        (changed(1, config={"f": print}), r"base.config: must be plain values and paths \(builtin_function_or_method"),
    ],
)
def test_a_chain_that_cannot_be_is_refused(tmp_path, stages, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        Pipeline(stages, tmp_path / "run", 0)
    assert not (tmp_path / "run").exists()


def test_a_seed_is_not_negative_and_a_folder_can_be_written(tmp_path):
    with pytest.raises(ConfigError, match="seed=-1"):
        Pipeline(chain(), tmp_path, -1)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"run_dir='.*file/run': cannot be written"):
        run(tmp_path / "file" / "run")


def test_a_chain_is_described_without_jax():
    code = "import sys, r1jax.recipes.pipeline; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_of_several_processes_the_first_alone_touches_files(finished, monkeypatch):
    """The second does its part of the stages that the first says are to be run."""
    import jax
    from jax.experimental import multihost_utils

    # Opening; for each stage which it is and, if it is run, its end.
    said = iter([0, pipeline._UNCHANGED, pipeline._RESUMED, 0, pipeline._UNCHANGED, pipeline._UNCHANGED, -1])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda value: next(said))
    (finished / "base" / "begun.json").write_text('{"seconds": 1.0}')
    ran, before = [], everything(finished)
    stages = [dataclasses.replace(stage, run=lambda given: ran.append(given.folder.name) or {}) for stage in chain()]
    with pytest.raises(StageError, match="process 0 failed: it says why"):
        run(finished, stages)
    assert ran == ["base"] and everything(finished) == before


# -------------------------------------------------------------------------------------------------------------- kills


def test_trap_7_killed_at_every_point_it_ends_the_same(tmp_path):
    """A first run, one with other settings (gone on with, or taken back), --only and --from: killed before every change
    of a file."""
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kills = dict(line.split() for line in done.stdout.splitlines())
    assert all(int(kills[name]) > 15 for name in ("first", "changed", "begun", "only", "from")), kills


def changes(folder, event, arguments):
    """Whether an audit event is a change of something in the folder."""
    if event in ("os.remove", "os.rmdir"):  # in a tree that is removed they have no whole path
        return True
    inside = bool(arguments) and str(arguments[0]).startswith(str(folder))
    if event == "open":
        return inside and bool(set(str(arguments[1])) & set("wax"))
    return inside and event in ("os.rename", "os.mkdir", "shutil.rmtree")


def in_a_process(folder, kill_at, stages, options):
    """The exit status of a run in a process of its own, which dies at its `kill_at`-th change of `folder`."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        count = 0

        def hook(event, arguments):
            nonlocal count
            if changes(folder, event, arguments):
                count += 1
                if count == kill_at:
                    os._exit(9)

        sys.addaudithook(hook)
        run(folder, stages, **options)
        status = 0
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        os._exit(status)


def interrupted(given):
    learn(given)
    raise KeyboardInterrupt


def kill_everywhere(folder):
    # One process, no devices: the hundreds of children are born and die sooner without the real one.
    sys.modules["jax"] = types.SimpleNamespace(process_count=lambda: 1, process_index=lambda: 0)
    plain = chain(rows=Rows(2))[:3]
    changed_chain = chain(rows=Rows(1), base=Train(0.75))[:3]
    start = folder / "start"
    run(start, plain)
    expected = {True: everything(start)}
    run(shutil.copytree(start, folder / "changed"), changed_chain)
    expected[False] = everything(folder / "changed")
    begun = folder / "begun"
    with contextlib.suppress(KeyboardInterrupt):
        run(begun, [plain[0], dataclasses.replace(plain[1], run=interrupted)])
    assert (begun / "base" / "begun.json").exists()
    scenarios = {
        "first": (None, plain, {}, [plain]),
        "changed": (start, changed_chain, {}, [changed_chain]),
        "begun": (begun, changed_chain, {"only": "base"}, [changed_chain, plain]),  # gone on with, or taken back
        "only": (start, plain, {"only": "zero"}, [plain]),
        "from": (start, plain, {"start": "base"}, [plain]),
    }
    for name, (begin, stages, options, later) in scenarios.items():
        kill = 0
        status = 9
        while status == 9:
            kill += 1
            at = folder / f"{name}-{kill}"
            if begin is None:
                at.mkdir()
            else:
                shutil.copytree(begin, at)
            status = in_a_process(at, kill, stages, options)
            assert status in (0, 9), (name, kill, status)
            for after in later:
                again = at if len(later) == 1 else shutil.copytree(at, folder / "again")
                if status == 9 or name == "begun":
                    run(again, after)
                found, wanted = everything(again), expected[after is plain]
                assert found == wanted, (name, kill, {k for k in found | wanted if found.get(k) != wanted.get(k)})
                assert not list(again.glob(".*")), (name, kill)
                shutil.rmtree(again)
            shutil.rmtree(at, ignore_errors=True)
        print(name, kill - 1)


if __name__ == "__main__":
    kill_everywhere(Path(sys.argv[1]).resolve())
