"""Folders of safetensors files, read a slice at a time and written a tensor at a time.

The format (github.com/huggingface/safetensors) is eight bytes of header length, a JSON header, and raw little-endian
arrays. The library's own NumPy reader holds neither float8 nor less than a whole mapped file, so reading is done here.
"""

from __future__ import annotations

import json
import math
import mmap
import operator
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from r1jax.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """Where one tensor lies."""

    file: Path
    code: str  # of its dtype, as safetensors names it
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file


class TensorFiles:
    """The tensors of a checkpoint folder by name. Opening one reads and checks every header and no data.

    Raises:
      CheckpointError: no weights, a missing, truncated or damaged file, or a tensor that the index promises in vain.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        index = self.folder / INDEX
        placed: dict[str, str] | None = None
        if index.is_file():
            placed = _read_index(index)
            names = sorted(set(placed.values()))
            for name in names:
                if not (self.folder / name).is_file():
                    count = sum(file == name for file in placed.values())
                    raise CheckpointError(
                        f"{self.folder / name} is missing, which {INDEX} lists for {count} tensors: copy it there"
                    )
        else:
            names = sorted(path.name for path in self.folder.glob("*.safetensors"))
            if not names:
                raise CheckpointError(
                    f"{self.folder} holds no *.safetensors: point at the folder of a published checkpoint"
                )
        self.entries: dict[str, Entry] = {}
        for file in names:
            for name, entry in _read_header(self.folder / file).items():
                if name in self.entries:
                    raise CheckpointError(
                        f"tensor {name} is in {self.entries[name].file} and in {entry.file}: keep one"
                    )
                self.entries[name] = entry
        for name, file in (placed or {}).items():
            if name not in self.entries or self.entries[name].file.name != file:
                raise CheckpointError(f"{self.folder / file} has no tensor {name}, which {INDEX} says is in it")

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A view of part of a tensor in the file's own dtype. Only the pages looked at are read; drop it to unmap."""
        entry = self.entries[name]
        dtype = DTYPES[entry.code]
        if not math.prod(entry.shape):
            return np.zeros(entry.shape, dtype)[index]
        page = entry.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        end = entry.offset + math.prod(entry.shape) * dtype.itemsize
        with entry.file.open("rb") as file:  # np.memmap does the same in several times the time
            mapped = mmap.mmap(file.fileno(), end - page, access=mmap.ACCESS_READ, offset=page)
        array = np.frombuffer(mapped, dtype, math.prod(entry.shape), entry.offset - page)
        return array.reshape(entry.shape)[index]


def _read_index(path: Path) -> dict[str, str]:
    try:
        placed = json.loads(path.read_text())["weight_map"]
        if all(isinstance(file, str) and Path(file).name == file for file in placed.values()):
            return placed
        problem = "its weight_map must hold file names"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise CheckpointError(f"{path} is no index of safetensors files ({problem}): copy it again")


def _read_header(path: Path) -> dict[str, Entry]:
    """Every tensor of a file, whose bytes are there in full."""
    size = path.stat().st_size
    entries: dict[str, Entry] = {}
    ends: dict[str, int] = {}
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(f"{path} is truncated ({size} bytes end within its header): copy it again")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, e in header.items():
                first, last = (8 + length + operator.index(offset) for offset in e["data_offsets"])
                entries[name] = Entry(path, str(e["dtype"]), tuple(map(operator.index, e["shape"])), first)
                ends[name] = last
                if min((first - 8 - length, *entries[name].shape)) < 0:
                    raise ValueError(f"tensor {name} has a negative size")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is no safetensors file ({error}): copy it again") from None
    end = max(ends.values(), default=0)
    if size < end:
        raise CheckpointError(
            f"{path} is truncated: it has {size} bytes of the {end} its header promises; copy it again"
        )
    for name, entry in entries.items():
        if entry.code not in DTYPES:
            raise CheckpointError(
                f"{path}: tensor {name} has dtype {entry.code}, which r1jax cannot hold; it reads {', '.join(DTYPES)}"
            )
        wanted, given = math.prod(entry.shape) * DTYPES[entry.code].itemsize, ends[name] - entry.offset
        if given != wanted:
            raise CheckpointError(
                f"{path}: tensor {name} of shape {list(entry.shape)} and dtype {entry.code} needs {wanted} bytes, "
                f"but its header gives it {given}; copy the file again"
            )
    return entries


class Planned(NamedTuple):
    """A tensor that is to be written."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    folder: Path,
    plan: Iterable[Planned],
    arrays: Iterable[np.ndarray],
    max_shard_size: int,
    metadata: Mapping[str, str],
) -> list[str]:
    """Writes the planned tensors, whose `arrays` come in the same order and are held one at a time, and the index.

    Returns the files' names. `max_shard_size` is in bytes; a larger tensor gets a file of its own.
    """
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in plan:
        if shards[-1] and size + tensor.nbytes > max_shard_size:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    count = len(shards)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)] if count > 1 else [SINGLE]
    source = iter(arrays)
    for name, tensors in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            file.write(_header(tensors, metadata))
            for tensor in tensors:
                array = next(source)
                if array.dtype != tensor.dtype or array.shape != tensor.shape:
                    raise ValueError(f"{tensor} was planned, {array.dtype}{array.shape} came")
                file.write(np.ascontiguousarray(array).view(np.uint8).data)
    if count > 1:
        placed = {tensor.name: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors}
        total = sum(tensor.nbytes for tensors in shards for tensor in tensors)
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": placed}, indent=2))
    return names


def _header(tensors: list[Planned], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # arrays begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text
