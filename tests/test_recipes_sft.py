"""`r1jax sft`: a model learns from conversations, ends the same however often it is stopped, says what it read."""

import json
import re

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import random_model, tiny_llama3
from hf_folders import deepseek_folder, write_files
from test_commands import TEMPLATE, refused

from r1jax.checkpoints import hf
from r1jax.checkpoints.model import fingerprint, open_model
from r1jax.checkpoints.run import RunCheckpoints
from r1jax.cli import main
from r1jax.data.chat import ChatTemplate
from r1jax.data.conversations import Encoder
from r1jax.data.hf_tokenizer import load_tokenizer
from r1jax.training import loop

CONFIG = tiny_llama3(num_hidden_layers=1, first_k_dense_replace=1, vocab_size=336, max_position_embeddings=64)
CHATS = [(f"{a} + 1", f"<think>\nadd\n</think>\n\n{a + 1}") for a in range(23)]
ROWS = [
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    for question, answer in CHATS
] + [{"prompt": "The cat", "completion": " sat on the mat"}]
OPTIONS = "--epochs 3 --rows 8 --length 32 --save-every 2 --optimizer.learning-rate 1e-2".split()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft") / "checkpoint"  # runs lie beside it
    folder.mkdir()
    hf.save(folder, random_model(CONFIG), CONFIG, assets=deepseek_folder(folder))
    write_files(folder, {"chat_template.jinja": TEMPLATE})
    write_files(folder.parent, {"train.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS)})
    return folder


def arguments(checkpoint, run_dir, *more):
    train = checkpoint.parent / "train.jsonl"
    return [str(a) for a in ("sft", "--checkpoint", checkpoint, "--data", train, "--run-dir", run_dir, *OPTIONS, *more)]


def metrics(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


@pytest.fixture(scope="module")
def trained(checkpoint):
    run_dir = checkpoint.parent / "run"
    main(arguments(checkpoint, run_dir, "--eval-data", checkpoint.parent / "train.jsonl"))
    return run_dir


def nll(folder, checkpoint):
    """Mean loss of the responses' tokens, a conversation a row."""
    model, _, _ = open_model(folder)
    encoder = Encoder(load_tokenizer(checkpoint), ChatTemplate.find(checkpoint))
    examples = [example for row in ROWS for example in encoder(row)]
    tokens, masks = np.zeros((2, len(examples), 32), np.int32)
    for i, example in enumerate(examples):
        tokens[i, : len(example.tokens)], masks[i, : len(example.tokens)] = example.tokens, example.mask
    log_p = jax.nn.log_softmax(nnx.jit(lambda model: model(tokens))(model))
    chosen = np.take_along_axis(np.asarray(log_p)[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
    return -(chosen * masks[:, 1:]).sum() / masks.sum()


def test_the_loss_is_that_of_the_responses_and_falls(trained, checkpoint):
    rows = metrics(trained)
    evaluated = [row for row in rows if "eval_loss" in row]
    assert [row["step"] for row in evaluated][:3] == [0, 2, 4]
    assert evaluated[0]["eval_loss"] == pytest.approx(nll(checkpoint, checkpoint), rel=1e-5)
    assert evaluated[-1]["eval_loss"] == pytest.approx(nll(trained, checkpoint), rel=1e-5)  # a run's folder, as a model
    assert evaluated[-1]["eval_loss"] < 0.5 * evaluated[0]["eval_loss"]
    learned = json.loads((trained / "data.json").read_text())["data"]["learned_tokens"]
    assert sum(row.get("num_tokens", 0) for row in rows) == 3 * learned


def test_a_card_says_what_was_read(trained):
    cards = json.loads((trained / "data.json").read_text())
    assert cards["data"]["rows"] == cards["data"]["examples"] == len(ROWS)
    assert cards["data"]["sha256"] == cards["eval_data"]["sha256"]
    assert "eval_loss" not in cards and "held out" in (trained / "report.html").read_text()


def test_stopped_anywhere_it_ends_the_same(trained, checkpoint, monkeypatch, capsys):
    """Stopped after a checkpoint and in between, before the model is written and half way through writing it."""
    run_dir = checkpoint.parent / "again"
    args = arguments(checkpoint, run_dir, "--eval-data", checkpoint.parent / "train.jsonl")
    steps = iter((3, 5))

    class Stop(BaseException):
        pass

    def stopping(batches, first, last):
        stop = next(steps, None)
        for step in range(first, last):
            if step == stop:
                raise Stop
            yield batches[step]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "prefetch", stopping)
        for _ in range(2):
            with pytest.raises(Stop):
                main(args)
        assert RunCheckpoints(run_dir / "checkpoints" / "sft").latest_step() == 4
        patch.setattr("r1jax.checkpoints.hf.copy_assets", lambda *_: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            main(args)
    assert not (run_dir / "model" / "model.json").exists()
    main(args)
    assert "resuming after step" in capsys.readouterr().out
    assert fingerprint(open_model(run_dir).model) == fingerprint(open_model(trained).model)
    assert metrics(run_dir) == metrics(trained)
    main(args)  # nothing is left to do
    assert "complete" in capsys.readouterr().out


def test_microbatches_and_devices_change_nothing_but_rounding(trained, checkpoint):
    run_dir = checkpoint.parent / "parts"
    mesh = ("--mesh.data", 1, "--mesh.fsdp", 4, "--mesh.tensor", 2)
    main(arguments(checkpoint, run_dir, "--num-microbatches", 2, *mesh))
    for row, other in zip(metrics(run_dir), metrics(trained)[1:], strict=True):
        assert row.pop("phase") == other.pop("phase")
        other.pop("eval_loss", None)
        assert row == pytest.approx(other, rel=1e-5 if row["step"] == 1 else 1e-2), row["step"]


def test_refusals_leave_nothing(checkpoint, trained, capsys, tmp_path):
    def told(*more):
        out = refused(capsys, *arguments(checkpoint, tmp_path / "run", *more))
        assert not (tmp_path / "run").exists()
        return out

    bad = write_files(tmp_path, {"bad.jsonl": json.dumps(ROWS[0]) + '\n\n{"question": 1}\n{"prompt'}) / "bad.jsonl"
    assert "bad.jsonl:3: its fields are question" in told("--data", bad)
    assert "no such file" in told("--data", tmp_path / "none.jsonl")
    assert "length=65: must not exceed" in told("--length", 65)
    assert "num_microbatches=3: must divide rows=8" in told("--num-microbatches", 3)
    assert "rows / num_microbatches=4: must be a multiple of 8" in told("--num-microbatches", 2)
    assert "holds no model" in told("--checkpoint", tmp_path)
    assert "tensor=4 does not divide kv_heads=2" in told("--mesh.data", 2, "--mesh.tensor", 4)
    bad_data = ("--data", bad, "--skip-malformed", "--epochs", 1)
    main(arguments(checkpoint, tmp_path / "run", *bad_data))
    assert json.loads((tmp_path / "run" / "data.json").read_text())["data"]["malformed"] == 2
    other = "seed=1: the run in .* began with seed=0"
    assert re.search(other, refused(capsys, *arguments(checkpoint, tmp_path / "run", *bad_data, "--seed", 1)))


def test_changed_data_is_refused(checkpoint, tmp_path, capsys):
    data = write_files(tmp_path, {"d.jsonl": json.dumps(ROWS[0]) + "\n"}) / "d.jsonl"
    args = arguments(checkpoint, tmp_path / "run", "--data", data, "--epochs", 1)
    main(args)
    write_files(tmp_path, {"d.jsonl": json.dumps(ROWS[1]) + "\n"})
    assert "are no longer those that the run" in refused(capsys, *args)


def test_a_chat_template_of_ones_own_is_learned_and_goes_along(checkpoint, tmp_path, capsys):
    """A base model has none: the examples, and whoever talks to the model, must see the same one."""
    own = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    own += "{% if add_generation_prompt %}<me>{% endif %}"
    write_files(tmp_path, {"own.jinja": own})
    run_dir = tmp_path / "run"
    args = arguments(checkpoint, run_dir, "--epochs", 1, "--chat-template", tmp_path / "own.jinja")
    main(args)
    assert ChatTemplate.from_folder(run_dir / "model").render(ROWS[0]["messages"][:1]) == "<user>0 + 1<me>"
    encoder = Encoder(load_tokenizer(checkpoint), ChatTemplate(own))
    tokens = sum(len(example.tokens) for row in ROWS for example in encoder(row))
    assert json.loads((run_dir / "data.json").read_text())["data"]["tokens"] == tokens
    assert "none.jinja' cannot be read" in refused(
        capsys, *arguments(checkpoint, tmp_path / "other", "--chat-template", tmp_path / "none.jinja")
    )
