"""Problems on disk: builds the arithmetic data set where it is missing, and reads it by index."""

import contextlib
import fcntl
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1jax.data.problems import Split
from r1jax.errors import DataError, check_field

if TYPE_CHECKING:
    from r1jax.data.arithmetic.arithmetic_dataset_builder import ArithmeticConfig


class ProblemSource:
    """A split, by index: dicts of question, answer, kind (str), terms (tuple of int) and level (int)."""

    def __init__(self, source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._source[index]
        return {
            "question": row["question"].decode(),
            "answer": row["answer"].decode(),
            "terms": tuple(map(int, row["terms"])),
            "level": int(row["level"]),
            "kind": row["kind"].decode(),
        }


def load_problems(data_dir: str | os.PathLike, split: Split, config: "ArithmeticConfig | None" = None) -> ProblemSource:
    """The arithmetic problems of a split, built under `data_dir` first (two seconds) unless they are there and whole.

    Safe for several processes at once. What a killed build left behind is removed, and a data set that cannot be read
    is built again; raises `DataError` where that does not help.
    """
    from r1jax.data.arithmetic.arithmetic_dataset_builder import Builder  # TFDS takes a second to import

    check_field(split in ("train", "test"), "split", split, "use 'train' or 'test'")

    def read() -> ProblemSource:
        builder = Builder(data_dir=os.fspath(data_dir), file_format="array_record", config=config)
        if not builder.data_path.exists():
            _build(builder)
        source = ProblemSource(builder.as_data_source(split=split))
        _ = source[0], source[len(source) - 1]  # a damaged file fails here rather than in the middle of a run
        return source

    folder = Path(Builder(data_dir=os.fspath(data_dir), config=config).data_path)
    with _locked(folder.with_name(f"{folder.name}.lock")):
        try:
            return read()
        except Exception:  # whatever a damaged file makes ArrayRecord, protobuf or TFDS raise
            shutil.rmtree(folder, ignore_errors=True)
        try:
            return read()
        except Exception as error:
            raise DataError(f"data set {os.fspath(folder)!r} cannot be built and read ({error})") from error


def _build(builder) -> None:
    folder = Path(builder.data_path)
    for leftover in folder.parent.glob(f"incomplete.*_{folder.name}"):
        shutil.rmtree(leftover, ignore_errors=True)
    # TFDS renames a finished folder into place, and says much on the way.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder.download_and_prepare()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock that the system drops with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
