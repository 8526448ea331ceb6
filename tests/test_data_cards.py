"""Cards of data sets: they say what is there, a hub can read them, and the same data have the same card."""

import json

import pytest
from huggingface_hub import DatasetCard
from hypothesis import given, settings
from hypothesis import strategies as st

import r1jax
from r1jax.data.cards import Card, card_path, read_card, write_data_set
from r1jax.errors import ConfigError, DataError

ROWS = [
    {"id": 1, "text": "a|b\n```python\nx\n```", "tags": ["x", "y"], "score": 0.5},
    {"id": 2, "text": "日本" * 2000, "tags": [], "score": None},
    {"id": 3, "text": "third", "tags": ["x"], "messages": [{"role": "user"}]},
]
FACTS = dict(
    title="Sums: cold start",
    description="Worked sums.",
    sources={"zero/model": "ab" * 32, "problems | train": "cd" * 32},
    removed={"truncated": 4, "languages": 1200},
    counts={"samples": 16, "by kind": {"sum": {"kept": 3}}},
    settings={"n": 4, "curation": {"format": None}},
    tokens=1234,
    languages=["zh", "en", "zh"],
)


def write(folder, rows=ROWS, name="train.jsonl", **changes):
    return write_data_set(folder / name, rows, **(FACTS | changes))


def test_the_card_is_what_was_said_and_counted(tmp_path):
    card = write(tmp_path, iter(ROWS))
    assert [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()] == ROWS
    assert read_card(tmp_path / "train.jsonl") == card
    assert (card.rows, card.tokens, card.version) == (3, 1234, r1jax.__version__)
    assert list(card.removed.items()) == [("truncated", 4), ("languages", 1200)]
    assert card.fields == {
        "id": "integer",
        "text": "text",
        "tags": "empty list or list of text",
        "score": "null or number, in 2 rows",
        "messages": "list of object, in 1 rows",
    }


def test_a_hub_can_read_it_and_so_can_a_person(tmp_path):
    write(tmp_path)
    page = card_path(tmp_path / "train.jsonl").read_text()
    assert card_path(tmp_path / "train.jsonl").name == "train.card.md"
    head = DatasetCard(page).data
    assert "| curation / format | None |" in page
    assert (head.pretty_name, head.language, head.size_categories) == ("Sums: cold start", ["en", "zh"], "n<1K")
    assert head.configs == [{"config_name": "default", "data_files": "train.jsonl"}]
    assert "| languages | 1,200 |" in page and f"| problems \\| train | {'cd' * 32} |" in page
    assert "| by kind / sum / kept | 3 |" in page and "… (4,000 characters)" in page and '"third"' not in page
    assert [line for line in page.splitlines() if line.startswith("```")] == ["```json", "```"] * 2


def test_the_same_data_have_the_same_card_wherever_they_lie(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder)
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} for folder in "ab")
    assert a == b and sorted(a) == ["train.card.md", "train.jsonl"]
    assert str(tmp_path).encode() not in a["train.card.md"]
    with pytest.raises(ConfigError, match="without the folders of this machine"):
        write(tmp_path / "a", sources={str(tmp_path): "ab"})


def test_what_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no row is left to write \(4 by 'truncated', 1,200 by 'languages'\)"):
        write(tmp_path, [])
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"has no card train\.card\.md"):
        read_card(tmp_path / "train.jsonl")
    write(tmp_path)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(DataError, match="not the file that its card describes"):
        read_card(tmp_path / "train.jsonl")
    assert read_card(tmp_path / "train.jsonl", check=False).rows == 3
    for damaged in ("no head", "---\npretty_name: x\n---\n", "---\nr1jax:\n  rows: 1\n---\n"):
        card_path(tmp_path / "train.jsonl").write_text(damaged)
        with pytest.raises(DataError, match="is damaged"):
            read_card(tmp_path / "train.jsonl")


def test_a_kill_leaves_no_card_of_other_data(tmp_path):
    write(tmp_path)

    def stopping():
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, stopping())
    with pytest.raises(DataError, match="has no card"):
        read_card(tmp_path / "train.jsonl")


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=20)  # what YAML folds


@settings(max_examples=60, deadline=None)
@given(TEXT, TEXT, st.dictionaries(TEXT, st.integers(), max_size=3), st.lists(st.dictionaries(TEXT, TEXT), min_size=1))
def test_any_text_comes_back(tmp_path_factory, title, description, counts, rows):
    path = tmp_path_factory.mktemp("any") / "d.jsonl"
    card = write_data_set(path, rows, title=title, description=description, removed=counts, counts={"n": counts})
    assert isinstance(card, Card) and read_card(path) == card
