"""Rows from files as published, from TFDS and from a hub: read whole and in order, or refused by file and line."""

import csv
import gzip
import io
import json
import pickle
import types
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data.sources import FILE, iterate_all_rows, iterate_rows, parse_rows, read_rows
from r1jax.errors import DataError

DATA = Path(__file__).parents[2] / "shared" / "data"
ROWS = [{"question": 'a "b", c', "answer": "1\u2028x"}, {"question": "日本\nlines", "answer": ""}]


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(rows, header=True):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys())
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def parquet(rows):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def put(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def zipped(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


FORMATS = {
    "a.jsonl": jsonl(ROWS),
    "a.json": json.dumps(ROWS),
    "object.json": json.dumps({"version": 1, "rows": ROWS}),
    "a.csv": table(ROWS),
    "bom.csv": "\ufeff" + table(ROWS),
    "blank.jsonl": "\n" + jsonl(ROWS).replace("}\n", "}\n  \n"),
    "a.jsonl.gz": gzip.compress(jsonl(ROWS).encode()),
    "a.csv.gz": gzip.compress(table(ROWS).encode()),
    "A.JSONL": jsonl(ROWS),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    put(tmp_path, {name: FORMATS[name]})
    assert read_rows(tmp_path / name) == ROWS
    assert list(iterate_rows(str(tmp_path / name))) == ROWS


def test_parquet(tmp_path):
    rows = [{"question": "q", "choices": ["a", "b"], "answer": 1}, {"question": "r", "choices": [], "answer": None}]
    put(tmp_path, {"a.parquet": parquet(rows), "b.zip": zipped({"in/b.parquet": parquet(rows)})})
    assert read_rows(tmp_path / "a.parquet") == rows
    assert read_rows(tmp_path / "b.zip") == [{FILE: "in/b.parquet"} | row for row in rows]


def test_tables_without_a_header(tmp_path):
    put(tmp_path, {"a.csv": table(ROWS, header=False), "headed.csv": table(ROWS), "a.tsv": '"say hi\t3\nb"\t4\n'})
    names = ("question", "answer")
    assert read_rows(tmp_path / "a.csv", columns=names) == ROWS
    assert read_rows(tmp_path / "headed.csv", columns=names) == ROWS  # a header that names them all is one
    # A tsv has no quoting: MGSM's questions hold quotation marks that nothing closes.
    assert read_rows(tmp_path / "a.tsv", columns=names) == [
        {"question": '"say hi', "answer": "3"},
        {"question": 'b"', "answer": "4"},
    ]


@given(
    st.lists(
        st.fixed_dictionaries({"a": st.text(st.characters(exclude_categories=["Cs"])), "b": st.integers(0, 9)}),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_text_survives(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("any")
    as_text = [{name: str(value) for name, value in row.items()} for row in rows]
    put(folder, {"a.jsonl": jsonl(rows), "a.json": json.dumps({"data": rows})})
    assert read_rows(folder / "a.jsonl") == read_rows(folder / "a.json") == rows
    if "\x00" not in "".join(row["a"] for row in as_text):
        put(folder, {"a.csv": table(as_text)})
        assert read_rows(folder / "a.csv") == as_text


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', "a.jsonl:3: not JSON"),
        ("a.jsonl", '{"a": 1}\n[2]\n', "a.jsonl:2: a row is an object, not [2]"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\nx'), "a.jsonl.gz:2: not JSON"),
        ("a.json", "[1", "a.json: not JSON"),
        ("a.json", '[{"a": 1}, "b"]', "a.json, row 2: a row is an object"),
        ("a.json", '{"a": [], "b": []}', "a.json: the object holds 2 lists"),
        ("a.json", "3", "a.json: it holds a int"),
        ("a.json", "[" * 100_000, "a.json: not JSON"),
        ("a.csv", "a,b\n1,2\n3\n", "a.csv:3: 1 cells where 2 are due (a, b)"),
        ("a.csv", 'a,b\n1,"2\n', "a.csv:2: unexpected end of data"),
        ("a.csv", 'a,b\n1,"2"x\n', "a.csv:2:"),
        ("a.tsv", "a\tb\n1\t2\t3\n", "a.tsv:2: 3 cells where 2 are due"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl:2: byte 7 of the line is not UTF-8"),
        ("a.jsonl.gz", gzip.compress(jsonl(ROWS * 99).encode())[:-20], "a.jsonl.gz: the file is cut short or damaged"),
        ("a.jsonl.gz", b"plain", "a.jsonl.gz: the file is cut short or damaged"),
        ("a.zip", b"PK no", "a.zip: the archive is damaged"),
        ("a.zip", zipped({"README.txt": "x"}), "a.zip: no data file is in it"),
        ("a.zip", zipped({"d/a.csv": "a,b\n1\n"}), "a.zip/d/a.csv:2: 1 cells where 2 are due"),
        ("a.parquet", b"PAR1", "a.parquet: not a whole parquet file"),
        ("a.txt", "x", "a.txt: its format is unknown"),
    ],
)
def test_malformed_files_are_named_with_their_line(tmp_path, name, content, told):
    put(tmp_path, {name: content})
    with pytest.raises(DataError) as error:
        read_rows(tmp_path / name)
    assert str(tmp_path / told.partition(":")[0]) in str(error.value) and told in str(error.value)


def test_rows_before_a_malformed_one_are_given(tmp_path):
    put(tmp_path, {"a.jsonl": jsonl(ROWS) + "{"})
    rows = iterate_rows(tmp_path / "a.jsonl")
    assert [next(rows), next(rows)] == ROWS
    with pytest.raises(DataError, match=r"a\.jsonl:3"):
        next(rows)


FAULTY = {
    "a.jsonl": (b'{"a": 1}\n\n{"a"\n{"a": "\xff"}\n[4]\n{"a": 5}', "1 3! 4! 5! 6"),
    "bom.jsonl": ('\ufeff{"a": 1}\n{"a": 2}\n', "1 2"),
    "a.jsonl.gz": (gzip.compress(b'{"a": 1}\nx\n{"a": 3}\n'), "1 2! 3"),
    "a.csv": ('a,b\n"1\n2",3\n4\n\n5,6,7\n8,9\n', "2 4! 6! 7"),
    "a.tsv": ("a\tb\n1\n2\t3\n", "2! 3"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_every_row_knows_its_line_and_reading_goes_on_after_a_malformed_one(tmp_path, name):
    content, told = FAULTY[name]
    put(tmp_path, {name: content})
    rows = list(iterate_all_rows(tmp_path / name))
    expected = [(f"{tmp_path / name}:{line.rstrip('!')}", line.endswith("!")) for line in told.split()]
    where = [(str(r).split(": ")[0], True) if isinstance(r, DataError) else (r.where, False) for r in rows]
    assert where == expected
    assert [row for row in rows if isinstance(row, DataError)] or "!" not in told


def test_rows_of_files_without_lines_know_their_number(tmp_path):
    rows = [{"a": i} for i in range(3)]
    put(tmp_path, {"a.json": json.dumps([rows[0], 1, rows[2]]), "d/b.parquet": parquet(rows)})
    first, wrong, third, *others = iterate_all_rows(tmp_path)
    assert (first.where, third.where) == (f"{tmp_path}/a.json, row 1", f"{tmp_path}/a.json, row 3")
    assert str(wrong).startswith(f"{tmp_path}/a.json, row 2: a row is an object")
    assert [row.where for row in others] == [f"{tmp_path}/d/b.parquet, row {i}" for i in (1, 2, 3)]
    assert others[1] == {FILE: "d/b.parquet", "a": 1}
    again = pickle.loads(pickle.dumps(others[1]))
    assert again == others[1] and again.where == others[1].where


def test_what_cannot_be_read_on_is_no_malformed_row(tmp_path):
    """A quotation that never ends takes the rest of the file with it: skipped, it would hide all of that."""
    put(
        tmp_path,
        {"a.csv": 'a,b\n1,2\n3,"4\n' + "5,6\n" * 9, "a.jsonl.gz": gzip.compress(jsonl(ROWS * 99).encode())[:-20]},
    )
    for name in ("a.csv", "a.jsonl.gz"):
        with pytest.raises(DataError, match=name):
            list(iterate_all_rows(tmp_path / name))


def test_parsed_rows_are_counted_and_named(tmp_path):
    put(tmp_path, {"d/a.jsonl": '{"a": 1}\n{"a": "x"}\n{\n{"a": 4}\n'})

    def parse(row):
        if not isinstance(row["a"], int):
            raise DataError(f"a={row['a']!r}: give a number")
        return row["a"]

    counts = {}
    assert list(parse_rows(iterate_all_rows(tmp_path), parse, "s", counts, skip_malformed=True)) == [1, 4]
    assert counts == {"rows": 4, "malformed": 2}
    for rows, told in (
        (iterate_all_rows(tmp_path), f"{tmp_path}/d/a.jsonl:2: a='x'"),
        ([{"a": 1}, {"a": None}], "s, row 2: a=None"),
    ):
        with pytest.raises(DataError) as error:
            list(parse_rows(rows, parse, "s", {}))
        assert str(error.value).startswith(told)
    put(tmp_path, {"d/a.jsonl": "{"})
    with pytest.raises(DataError) as error:
        list(parse_rows(iterate_all_rows(tmp_path), parse, "s", {}))
    assert str(error.value).count("a.jsonl:1") == 1


def one(value):
    return jsonl([{"a": value}])


def test_a_folder_is_read_by_split(tmp_path):
    put(
        tmp_path,
        {
            "train.jsonl": one("train"),
            "test.jsonl": one("test 1"),
            "deep/test-00000-of-00001.jsonl.gz": gzip.compress(one("test 2").encode()),
            "latest.jsonl": one("not a split's word"),
            "README.md": "no data",
            ".cache/test.jsonl": "{",
            "__MACOSX/test.jsonl": "{",
        },
    )
    assert read_rows(tmp_path, "test") == [
        {FILE: "deep/test-00000-of-00001.jsonl.gz", "a": "test 2"},
        {FILE: "test.jsonl", "a": "test 1"},
    ]
    assert [row["a"] for row in read_rows(tmp_path)] == ["test 2", "not a split's word", "test 1", "train"]
    assert read_rows(tmp_path / "train.jsonl", "test") == [{"a": "train"}]  # named by its own path: what was asked for
    # Reading the training problems where the test ones were meant would go unnoticed.
    with pytest.raises(DataError, match=r"split='validation' is not in it, only test, train"):
        read_rows(tmp_path, "validation")


def test_files_without_any_split_are_all_read(tmp_path):
    put(
        tmp_path,
        {"aime2024.jsonl": one(1), "b.zip": zipped({"data/dev/x_dev.jsonl": one(2), "data/test/x_test.jsonl": one(3)})},
    )
    assert [row["a"] for row in read_rows(tmp_path, "test")] == [1, 3]
    assert read_rows(tmp_path / "b.zip", "test") == [{FILE: "data/test/x_test.jsonl", "a": 3}]
    assert [row["a"] for row in read_rows(tmp_path / "b.zip")] == [2, 3]


def test_what_is_not_there(tmp_path):
    for source, told in ((tmp_path / "no", "no such file or folder"), (tmp_path, "no data file is in it")):
        with pytest.raises(DataError, match=told):
            read_rows(source)


def test_tfds(tmp_path, monkeypatch):
    from r1jax.data.arithmetic.arithmetic_dataset_builder import ArithmeticConfig, Builder  # registers the data set

    config = ArithmeticConfig(name="few", train_size=8, test_size=4)
    monkeypatch.setattr(Builder, "builder_configs", {"few": config})
    Builder(data_dir=str(tmp_path), file_format="array_record", config=config).download_and_prepare()
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    rows = read_rows(f"tfds:{Builder.name}/few:test")
    assert len(rows) == 4 and rows == read_rows(f"tfds:{Builder.name}/few", "test")
    assert len(read_rows(f"tfds:{Builder.name}/few:train", "test")) == 8
    json.dumps(rows)  # plain values: no bytes, no arrays
    assert all(sum(row["terms"]) == int(row["answer"]) for row in rows)


def test_tfds_that_cannot_be_had(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="say which split, as in 'tfds:x:test'"):
        read_rows("tfds:x")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"TFDS cannot give it .* or give the path"):
        read_rows("tfds:r1jax_has_no_such_set:test")


class Hub:
    """huggingface_hub as far as it is used: a folder for each revision, or no network at all."""

    def __init__(self, monkeypatch, folder, online=True):
        import huggingface_hub

        self.folder, self.online, self.asked = folder, online, []
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.cached)

    def dataset_info(self, repo, revision, timeout):
        self.asked.append(revision)
        if not self.online:
            raise ConnectionError("Name or service not known")
        root = self.folder / (revision or "main")
        names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]
        return types.SimpleNamespace(siblings=[types.SimpleNamespace(rfilename=name) for name in names])

    def download(self, repo, name, repo_type, revision):
        assert (repo, repo_type) == ("owner/name", "dataset")
        return str(self.folder / (revision or "main") / name)

    def cached(self, repo, repo_type, revision, local_files_only):
        assert local_files_only
        if not (self.folder / "cache").exists():
            raise FileNotFoundError("no snapshot")
        return str(self.folder / "cache")


PUBLISHED = {
    "main/README.md": "",
    "main/main/train-00000-of-00001.jsonl": one("main train"),
    "main/main/test-00000-of-00001.jsonl": one("main test"),
    "main/socratic/test-00000-of-00001.jsonl": one("socratic test"),
    "main/gpqa_diamond.csv": "a\ndiamond\n",
    "main/gpqa_main.csv": "a\nmain csv\n",
    "refs/convert/parquet/only_converted/test/0000.jsonl": one("converted"),
}


@pytest.mark.parametrize(
    ("address", "values"),
    [
        ("main:test", ["main test"]),
        ("socratic", ["socratic test"]),
        ("gpqa_diamond", ["diamond"]),
        ("gpqa_diamond:test", ["diamond"]),
        ("test", ["main test", "socratic test"]),
        ("only_converted:test", ["converted"]),
    ],
)
def test_hub(tmp_path, monkeypatch, address, values):
    Hub(monkeypatch, put(tmp_path, PUBLISHED))
    assert [row["a"] for row in read_rows(f"hf:owner/name:{address}")] == values


def test_hub_takes_the_split_from_either_place(tmp_path, monkeypatch):
    Hub(monkeypatch, put(tmp_path, PUBLISHED))
    assert [row["a"] for row in read_rows("hf:owner/name:main", "train")] == ["main train"]
    assert [row["a"] for row in read_rows("hf:owner/name:main:test", "train")] == ["main test"]
    with pytest.raises(DataError, match="config 'main', split 'validation' from https"):
        read_rows("hf:owner/name:main:validation")
    with pytest.raises(DataError, match="hf:OWNER/NAME"):
        read_rows("hf:name:main")


def test_hub_without_a_network(tmp_path, monkeypatch):
    hub = Hub(monkeypatch, tmp_path, online=False)
    with pytest.raises(DataError) as error:
        read_rows("hf:owner/name:main:test")
    assert str(error.value) == (
        "source='hf:owner/name:main:test' cannot be read (ConnectionError: Name or service not known): download the "
        "data file of config 'main', split 'test' from https://huggingface.co/datasets/owner/name and give its path as "
        "the source"
    )
    assert hub.asked == [None]  # the second revision would wait for the same network
    put(tmp_path / "cache", {"main/test.jsonl": one("cached"), "main/train.jsonl": one("other")})
    assert [row["a"] for row in read_rows("hf:owner/name:main:test")] == ["cached"]


@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not here")
@pytest.mark.parametrize(
    ("source", "split", "columns", "count"),
    [
        ("aime", "test", None, 30),
        ("amc23/test.jsonl", None, None, 40),
        ("code_contests", "test", None, 60),
        ("gsm8k", "test", None, 1319),
        ("gsm8k", "train", None, 7473),
        ("humaneval", "test", None, 164),
        ("ifeval", "test", None, 541),
        ("math500", "test", None, 500),
        ("mbpp", "test", None, 213),
        ("mgsm", "ja", ("question", "answer"), 250),
        ("mmlu/mmlu.zip", "test", ("question", "A", "B", "C", "D", "answer"), 14042),
        ("mmlu", "dev", ("question", "A", "B", "C", "D", "answer"), 285),
    ],
)
def test_published_files(source, split, columns, count):
    assert len(read_rows(DATA / source, split, columns)) == count
