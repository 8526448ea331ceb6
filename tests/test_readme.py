"""The README is right: its Python runs, its commands are the ones that exist."""

import pathlib
import re

from helpers import random_model, random_tokens, tiny_config

from r1jax.checkpoints import hf

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


RELEASED, PARTS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_released_models_example_runs(tmp_path):
    model = random_model(tiny_config())
    hf.save(tmp_path / "in", model, tiny_config())
    names = {"tokens": random_tokens((8, 6))}
    code = RELEASED.replace('"DIR"', repr(str(tmp_path / "in"))).replace('"OUT"', repr(str(tmp_path / "out")))
    exec(compile(code.replace('"fsdp": -1', '"fsdp": 4, "data": -1'), "README.md", "exec"), names)
    assert names["logits"].shape == (8, 6, 64) and names["logits"].dtype == "float32"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}


def test_the_python_example_runs():
    names = {}
    exec(compile(PARTS, "README.md", "exec"), names)
    assert int(names["state"].step) == 1
    assert names["metrics"]["grad_norm"] > 0


def test_the_two_commands_are_there():
    assert "pip install -e . && python experiments/r1_zero.py" in README
    assert "pip install -e '.[test]' && pytest" in README


def test_every_room_that_it_names_exists_and_every_room_is_named():
    table = README.split("## What is where")[1].split("\n## ")[0]
    named = {name.rstrip("/") for name in re.findall(r"^\| `([\w/.]+)`", table, flags=re.MULTILINE)}
    assert all((ROOT / name).exists() for name in named)
    rooms = {f"r1jax/{p.parent.name}" for p in (ROOT / "r1jax").glob("*/__init__.py")}
    assert rooms <= named


def test_every_dependency_is_explained():
    listed = re.findall(r'^        "([A-Za-z0-9_-]+)', (ROOT / "setup.py").read_text(), flags=re.MULTILINE)
    table = README.split("## Why each dependency is there")[1]
    missing = [name for name in listed if not re.search(rf"\b{re.escape(name)}\b", table)]
    assert not missing


def test_the_graders_examples_are_right():
    from r1jax.rewards import code_accuracy, language_consistency, math_accuracy

    names = {f.__name__: f for f in (code_accuracy, language_consistency, math_accuracy)}
    calls = re.findall(
        r"^    ((?:math|code)_accuracy\(.*\)|language_consistency\(.*\)) +# (.*)$", README, flags=re.MULTILINE
    )
    assert len(calls) == 4
    for call, result in calls:
        assert eval(call, names) == eval(result), call
