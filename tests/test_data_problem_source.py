"""The problems on disk: built once, read by index, mended when a build was cut short; TensorFlow stays out of it."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1jax.data import generate, load_problems
from r1jax.data.arithmetic.arithmetic_dataset_builder import ArithmeticConfig
from r1jax.errors import ConfigError, DataError

SMALL = {"train_size": 60, "test_size": 20}


def problems(split, count, seed=0):
    return [dataclasses.asdict(problem) for problem in generate(seed, count, split)]


def test_builds_once_and_reads_by_index(tmp_path, capfd):
    train = load_problems(tmp_path, "train", ArithmeticConfig(**SMALL))
    assert [train[i] for i in range(len(train))] == problems("train", 60)
    assert all(type(train[0][name]) is kind for name, kind in {"question": str, "level": int, "terms": tuple}.items())
    record = next(tmp_path.rglob("*train.array_record*"))
    written = record.stat().st_mtime_ns
    test = load_problems(tmp_path, "test", ArithmeticConfig(**SMALL))
    assert [test[i] for i in range(len(test))] == problems("test", 20)
    assert record.stat().st_mtime_ns == written
    assert capfd.readouterr() == ("", "")
    # Other settings are another data set.
    other = load_problems(tmp_path, "test", ArithmeticConfig(**SMALL, seed=1))
    assert [other[i] for i in range(len(other))] == problems("test", 20, seed=1)


@pytest.mark.parametrize("damage", ["truncated", "no info", "no records", "leftover"])
def test_a_half_written_build_is_mended(tmp_path, damage):
    load_problems(tmp_path, "test", ArithmeticConfig(**SMALL))
    record, info = next(tmp_path.rglob("*test.array_record*")), next(tmp_path.rglob("dataset_info.json"))
    if damage == "truncated":
        os.truncate(record, record.stat().st_size // 2)
    elif damage == "no info":
        info.unlink()
    elif damage == "no records":
        record.unlink()
    else:  # killed before the finished folder was renamed into place
        folder = record.parent
        folder.rename(folder.with_name(f"incomplete.ABC123_{folder.name}"))
    test = load_problems(tmp_path, "test", ArithmeticConfig(**SMALL))
    assert [test[i] for i in range(len(test))] == problems("test", 20)
    assert not list(tmp_path.rglob("incomplete*"))


def test_errors(tmp_path):
    with pytest.raises(ConfigError, match="split='dev'"):
        load_problems(tmp_path, "dev")
    with pytest.raises(DataError, match="different sums"):
        load_problems(tmp_path, "test", ArithmeticConfig(levels=(1,), test_size=4000, train_size=10))


def test_no_tensorflow_and_two_builders_at_once(tmp_path):
    code = f"""
import sys
from r1jax.data import load_problems
from r1jax.data.arithmetic.arithmetic_dataset_builder import ArithmeticConfig
source = load_problems({str(tmp_path)!r}, "train", ArithmeticConfig(**{SMALL!r}))
assert len(source) == 60 and source[59]["level"] == 4
assert "tensorflow" not in sys.modules
"""
    root = Path(__file__).parents[1]
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=root) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
