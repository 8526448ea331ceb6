"""Rows of data sets as published: from files and folders, from TFDS, or from a hub when a network is there."""

import csv
import gzip
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from r1jax.errors import DataError

FILE = "_file"
"""The key under which a row of a folder, an archive or a hub says which file in it the row is from."""

T = TypeVar("T")

_TEXT = (".jsonl", ".json", ".csv", ".tsv")
_SUFFIXES = (*_TEXT, *(f"{suffix}.gz" for suffix in _TEXT), ".parquet", ".zip")
_SPLITS = {"train", "validation", "valid", "val", "dev", "test"}
_CONVERTED = "refs/convert/parquet"  # where the hub keeps every public data set as config/split/0000.parquet


class Row(dict):
    """A row that knows where it is from: `where` is "FILE:LINE", or "FILE, row N" where a file has no lines."""

    __slots__ = ("where",)

    def __init__(self, fields: Mapping[str, Any], where: str):
        super().__init__(fields)
        self.where = where

    def __reduce__(self):
        return Row, (dict(self), self.where)


def read_rows(
    source: str | os.PathLike, split: str | None = None, columns: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """All rows of `iterate_rows` in a list."""
    return list(iterate_rows(source, split, columns))


def iterate_rows(
    source: str | os.PathLike, split: str | None = None, columns: Sequence[str] | None = None
) -> Iterator[Row]:
    """The rows of a data set, one dict each, in the order of the files' names and of their lines.

    Args:
      source: a path, "tfds:NAME[:SPLIT]" or "hf:OWNER/NAME[:CONFIG][:SPLIT]". A path is a file (jsonl, json with a
        list or with an object that holds one, csv, tsv, each also as .gz, parquet), a zip of such files, or a folder of
        all these. With one further part, a hub's address names a split if it is called like one, else a config.
      split: which files of a folder, an archive or a hub to read: those whose name or folder has this word in it
        ("data/test/x_test.csv", "test-00000-of-00001.parquet"). Where no file is named after any split, all are read; a
        file given by its own path is always read whole. A split within `source` comes first.
      columns: what the cells of a csv or tsv without a header line are called. A first line that names all of them is a
        header all the same. None: the first line is the header.

    Raises `DataError` where there is no such data, and for a malformed row, naming its file and line.
    """
    for row in iterate_all_rows(source, split, columns):
        if isinstance(row, DataError):
            raise row
        yield row


def iterate_all_rows(
    source: str | os.PathLike, split: str | None = None, columns: Sequence[str] | None = None
) -> Iterator[Row | DataError]:
    """`iterate_rows`, with a malformed row as the error that names its file and line, after which reading goes on.

    Malformed is a line that is not UTF-8 or not JSON, a row that is no object, a table's line with too many or too few
    cells. Raises `DataError` for what no reader can go on after: a file that is damaged, a quotation that never ends.
    """
    kind, colon, address = str(source).partition(":")
    if colon and kind == "tfds":
        name, _, inner = address.partition(":")
        yield from _tfds_rows(name, inner or split)
    elif colon and kind == "hf":
        for name, path in _hub_files(address, split):
            yield from _named(name, _file_rows(path, split, columns))
    else:
        path = Path(source)
        if not path.exists():
            raise DataError(f"source={str(source)!r}: no such file or folder; give the path of a data set's file")
        if not path.is_dir():
            yield from _file_rows(path, split, columns)
            return
        inside = (entry.relative_to(path).as_posix() for entry in path.rglob("*") if entry.is_file())
        for name in _of_split(inside, split, str(path)):
            yield from _named(name, _file_rows(path / name, split, columns))


def parse_rows(
    rows: Iterable[Mapping[str, Any] | DataError],
    parse: Callable[[Mapping[str, Any]], T],
    source: str,
    counts: dict[str, int],
    skip_malformed: bool = False,
) -> Iterator[T]:
    """Yields what `parse` makes of each row, and counts "rows" and "malformed" ones in `counts` as they pass.

    Malformed are the errors among `rows` (of `iterate_all_rows`) and what `parse` refuses with a `DataError`. Such a
    row is left out with `skip_malformed`; else it raises `DataError` naming its file and line, or `source` and the
    row's number where the row does not know its place.
    """
    for number, row in enumerate(rows, 1):
        counts["rows"] = counts.get("rows", 0) + 1
        try:
            if isinstance(row, DataError):
                raise row
            parsed = parse(row)
        except DataError as error:
            if skip_malformed:
                counts["malformed"] = counts.get("malformed", 0) + 1
                continue
            if error is row:
                raise
            raise DataError(f"{getattr(row, 'where', f'{source}, row {number}')}: {error}") from None
        yield parsed


def _named(name: str, rows: Iterable[Row | DataError]) -> Iterator[Row | DataError]:
    for row in rows:
        # An archive in a folder has put its own member's name in already.
        yield row if isinstance(row, DataError) else Row({FILE: name, **row}, row.where)


def _of_split(names: Iterable[str], split: str | None, where: str) -> list[str]:
    """The data files among `names` (relative, with /) that belong to `split`, sorted."""
    data = sorted(name for name in names if name.lower().endswith(_SUFFIXES) and not _is_hidden(name))
    if not data:
        raise DataError(f"{where}: no data file is in it; put one there ({', '.join(_SUFFIXES)})")
    if split is None:
        return data
    chosen = [name for name in data if split.lower() in _words(name)]
    others = sorted(set().union(*map(_words, data)) & _SPLITS)
    if not chosen and others:
        raise DataError(f"{where}: split={split!r} is not in it, only {', '.join(others)}; give one of those")
    return chosen or data


def _words(name: str) -> set[str]:
    return set(re.split(r"[/._-]+", name.lower()))


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _file_rows(path: Path, split: str | None, columns: Sequence[str] | None) -> Iterator[Row | DataError]:
    if path.suffix.lower() != ".zip":
        with path.open("rb") as binary:
            yield from _parsed(binary, path.name, str(path), columns)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in _of_split(archive.namelist(), split, str(path)):
                with archive.open(name) as binary:
                    yield from _named(name, _parsed(binary, name, f"{path}/{name}", columns))
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: the archive is damaged ({error}); download it again") from None


def _parsed(binary: IO[bytes], name: str, where: str, columns: Sequence[str] | None) -> Iterator[Row | DataError]:
    """The rows of one opened file, whose format its name tells; `where` names it in errors."""
    name = name.lower()
    if name.endswith(".parquet"):
        yield from _parquet_rows(binary, where)
        return
    try:
        if name.endswith(".gz"):
            binary, name = gzip.open(binary), name.removesuffix(".gz")
        if name.endswith(".jsonl"):
            yield from _jsonl_rows(binary, where)
            return
        text = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
        if name.endswith(".json"):
            yield from _json_rows(text, where)
        elif name.endswith((".csv", ".tsv")):
            yield from _table_rows(text, where, columns, tabs=name.endswith(".tsv"))
        else:
            raise DataError(f"{where}: its format is unknown; give one of {', '.join(_SUFFIXES)}")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start} of a block is not UTF-8; save the file as UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{where}: the file is cut short or damaged ({error}); download it again") from None


def _jsonl_rows(lines: Iterable[bytes], where: str) -> Iterator[Row | DataError]:
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            row = _row(_json(text, f"{where}:{number}"), f"{where}:{number}") if text.strip() else None
        except UnicodeDecodeError as error:
            row = DataError(f"{where}:{number}: byte {error.start} of the line is not UTF-8; save the file as UTF-8")
        except DataError as error:
            row = error
        if row is not None:
            yield row


def _json_rows(text: IO[str], where: str) -> Iterator[Row | DataError]:
    content = _json(text.read(), where)
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        if len(lists) != 1:
            raise DataError(f"{where}: the object holds {len(lists)} lists; give a list of rows, or an object with one")
        content = lists[0]
    if not isinstance(content, list):
        raise DataError(f"{where}: it holds a {type(content).__name__}; give a list of rows")
    for number, value in enumerate(content, start=1):
        yield _row(value, f"{where}, row {number}")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); mend or remove it") from None


def _row(value: Any, where: str) -> Row | DataError:
    if not isinstance(value, dict):
        return DataError(f"{where}: a row is an object, not {json.dumps(value, ensure_ascii=False):.60}")
    return Row(value, where)


def _table_rows(text: IO[str], where: str, columns: Sequence[str] | None, tabs: bool) -> Iterator[Row | DataError]:
    csv.field_size_limit(2**31 - 1)  # a problem with its tests passes csv's 128 KiB
    # A tsv as published (MGSM's) has no quoting: a quotation mark is a character like any other.
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    table = csv.reader(text, **style)
    names, end = columns, 0
    try:
        for number, cells in enumerate(table):
            start, end = end + 1, table.line_num  # a quoted cell may go over several lines
            if not number and _is_header(cells, columns):
                names = cells
                continue
            if not cells:
                continue
            if len(cells) != len(names):
                yield DataError(
                    f"{where}:{start}: {len(cells)} cells where {len(names)} are due ({', '.join(names)}); "
                    "mend the line"
                )
                continue
            yield Row(dict(zip(names, cells, strict=True)), f"{where}:{start}")
    except csv.Error as error:
        raise DataError(f"{where}:{table.line_num}: {error}; mend the line") from None


def _is_header(cells: Sequence[str], columns: Sequence[str] | None) -> bool:
    return columns is None or {name.lower() for name in columns} <= {cell.strip().lower() for cell in cells}


def _parquet_rows(binary: IO[bytes], where: str) -> Iterator[Row | DataError]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{where}: reading parquet needs pyarrow; pip install pyarrow") from None
    try:
        # A member of a zip is no file that pyarrow can seek in.
        batches = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(binary.read())).iter_batches()
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
            yield Row(row, f"{where}, row {number}")
    except pyarrow.ArrowException as error:
        raise DataError(f"{where}: not a whole parquet file ({_brief(error)}); download it again") from None


def _tfds_rows(name: str, split: str | None) -> Iterator[Row | DataError]:
    import tensorflow_datasets as tfds  # takes a second

    if split is None:
        raise DataError(f"source='tfds:{name}': say which split, as in 'tfds:{name}:test'")
    try:
        examples = tfds.data_source(name, split=split)
    except Exception as error:  # TFDS and its downloads raise of every kind
        raise DataError(
            f"source='tfds:{name}:{split}': TFDS cannot give it ({_brief(error)}); build it where there is a network, "
            "or give the path of the data set's file"
        ) from error
    for number, example in enumerate(examples, start=1):
        yield Row(_plain(example), f"tfds:{name}:{split}, row {number}")


def _plain(value: Any) -> Any:
    """TFDS's bytes and arrays as strings, numbers and lists."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


def _hub_files(address: str, split: str | None) -> list[tuple[str, Path]]:
    """(name in the repository, path here) of a hub's files, downloaded unless they are in its cache."""
    import huggingface_hub as hub

    repo, config, split = _hub_address(address, split)
    why = "none of its data files is of that config"
    for revision in (None, _CONVERTED):
        try:
            # Listing the files by other calls retries for half a minute where there is no network.
            info = hub.HfApi().dataset_info(repo, revision=revision, timeout=20)
            names = [sibling.rfilename for sibling in info.siblings or ()]
            chosen = _of_config(names, config, split, address)
            paths = [hub.hf_hub_download(repo, name, repo_type="dataset", revision=revision) for name in chosen]
            if chosen:
                return list(zip(chosen, map(Path, paths), strict=True))
        except DataError as error:
            why = str(error)
        except Exception as error:  # no network, no such repository, a gate: each is an exception of its own
            why = _brief(error)
            if cached := _cached(repo, config, split, revision):
                return cached
            break
    wanted = ", ".join(f"{name} {value!r}" for name, value in (("config", config), ("split", split)) if value)
    raise DataError(
        f"source='hf:{address}' cannot be read ({why}): download the data file{wanted and f' of {wanted}'} from "
        f"https://huggingface.co/datasets/{repo} and give its path as the source"
    )


def _hub_address(address: str, split: str | None) -> tuple[str, str | None, str | None]:
    repo, *rest = address.split(":")
    if repo.count("/") != 1 or len(rest) > 2:
        raise DataError(f"source='hf:{address}': write hf:OWNER/NAME[:CONFIG][:SPLIT]")
    if len(rest) == 1 and rest[0] in _SPLITS:
        return repo, None, rest[0]
    return repo, rest[0] if rest else None, rest[1] if len(rest) == 2 else split


def _of_config(names: Iterable[str], config: str | None, split: str | None, where: str) -> list[str]:
    """The files of a config: below a folder of its name, or called by it. None at all gives an empty list."""
    if config is not None:
        names = [name for name in names if config in {part.split(".")[0] for part in PurePosixPath(name).parts}]
    names = [name for name in names if name.lower().endswith(_SUFFIXES)]
    return _of_split(names, split, f"hf:{where}") if names else []


def _cached(repo: str, config: str | None, split: str | None, revision: str | None) -> list[tuple[str, Path]]:
    import huggingface_hub as hub

    try:
        folder = Path(hub.snapshot_download(repo, repo_type="dataset", revision=revision, local_files_only=True))
    except Exception:  # not in the cache, or not wholly
        return []
    names = [entry.relative_to(folder).as_posix() for entry in folder.rglob("*") if entry.is_file()]
    return [(name, folder / name) for name in _of_config(names, config, split, repo)]


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
