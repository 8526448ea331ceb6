"""`r1jax generate`, `convert` and `chat`: what a terminal gives them, what they leave, how they fail."""

import functools
import io
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from flax import nnx
from helpers import random_model, relative_error, tiny_config, tiny_llama3
from hf_folders import ASSISTANT, BOS, EOS, USER, deepseek_folder, write_files
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from r1jax.checkpoints import hf
from r1jax.checkpoints.model import open_model
from r1jax.checkpoints.tensor_files import TensorFiles
from r1jax.cli import main
from r1jax.commands import chat
from r1jax.data.hf_tokenizer import HFTokenizer, load_tokenizer
from r1jax.data.templates import THINK_CLOSE, THINK_OPEN
from r1jax.errors import DataError
from r1jax.sampling.generator import Generator

CONFIG = tiny_llama3(num_hidden_layers=1, first_k_dense_replace=1, vocab_size=336, max_position_embeddings=64)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ {'system': '', 'user': '" + USER + "', 'assistant': '" + ASSISTANT + "'}"
    "[m.role] + m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}" + ASSISTANT
)
ROWS = [
    {"prompt": "The cat", "id": "α\u2028β", "answer": 3},
    {"messages": [{"role": "user", "content": "1 + 1"}], "id": 1},
    {"tokens": [0, 7, 9], "id": 2},
    *({"prompt": "mat" * (i % 4), "id": i} for i in range(3, 20)),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A published checkpoint that chats."""
    folder = tmp_path_factory.mktemp("model")
    hf.save(folder, random_model(CONFIG), CONFIG, assets=deepseek_folder(folder))
    return write_files(folder, {"chat_template.jinja": TEMPLATE})


@pytest.fixture(scope="module")
def tokenizer(model):
    return load_tokenizer(model)


def write_rows(path, rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def refused(capsys, *args):
    """The one line on stderr of a command that exits with status 2."""
    with pytest.raises(SystemExit) as exit:
        main([str(a) for a in args])
    lines = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and len(lines) == 1
    return lines[0]


# ----------------------------------------------------------------------------------------------------- generate


SAMPLING = "--n 4 --temperature 0.6 --top-p 0.95 --max-tokens 8 --seed 0".split()


def generate(model, prompts, out, *more):
    main(["generate", "--checkpoint", *map(str, (model, "--prompts", prompts, "--out", out)), *SAMPLING, *more])


@pytest.fixture(scope="module")
def generated(model, tmp_path_factory):
    """(prompts, completions, what the generator drew): 20 rows, 8 at a time over the 8 devices."""
    folder, drawn, draw = tmp_path_factory.mktemp("generated"), {}, Generator.__call__
    prompts = write_rows(folder / "prompts.jsonl", ROWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generator, "__call__", lambda *args: (drawn.update(batch) or batch for batch in draw(*args)))
        generate(model, prompts, folder / "out.jsonl", "--batch-size", "8", "--logps")
    return prompts, folder / "out.jsonl", drawn


def test_each_row_gets_its_completions_in_its_place(generated, tokenizer):
    assert sorted(p.name for p in generated[1].parent.iterdir()) == ["out.jsonl", "prompts.jsonl"]
    rows = read_rows(generated[1])
    new = {"completions", "tokens", "finish_reasons", "logps"}
    for i, (row, asked) in enumerate(zip(rows, ROWS, strict=True)):
        renamed = {("prompt_tokens" if name == "tokens" else name): value for name, value in asked.items()}
        assert {name: value for name, value in row.items() if name not in new} == renamed
        assert row["tokens"] == [c.tokens for c in generated[2][i]]
        assert row["completions"] == [tokenizer.decode(tokens) for tokens in row["tokens"]]
        assert len(row["tokens"]) == 4 and len({tuple(tokens) for tokens in row["tokens"]}) > 1
        for tokens, logps, reason in zip(row["tokens"], row["logps"], row["finish_reasons"], strict=True):
            assert len(tokens) == len(logps) <= 8 and reason == ("stop" if tokens[-1] == 1 else "length")


def test_prompts_are_encoded_as_in_training(model, generated, tokenizer, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Generator, "__call__", lambda self, prompts, done: asked.extend(prompts) or iter(()))
    monkeypatch.setattr("r1jax.commands.generate.Results.put", lambda self, console: None)
    generate(model, generated[0], tmp_path / "out.jsonl")
    assert [tokenizer.decode(ids) for ids in asked[:2]] == ["The cat", f"{USER}1 + 1{ASSISTANT}"]
    assert asked[2] == [0, 7, 9] and all(ids[0] == 0 and 0 not in ids[1:] for ids in asked)
    asked.clear()
    (tmp_path / "out.jsonl.partial").unlink()
    generate(model, generated[0], tmp_path / "out.jsonl", "--think")
    assert [tokenizer.decode(ids) for ids in asked[:2]] == [
        f"{USER}The cat{ASSISTANT}<think>\n",
        f"{USER}1 + 1{ASSISTANT}<think>\n",
    ]
    assert asked[2] == [0, 7, 9] and all(ids[0] == 0 and 0 not in ids[1:] for ids in asked)


def test_an_interrupted_run_goes_on_to_the_same_bytes(model, generated, tmp_path, monkeypatch, capsys):
    prompts, whole, _ = generated
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    draw, done_before = Generator.__call__, []

    def interrupted(self, prompts, done):
        done_before.append(len(done))
        yield next(draw(self, prompts, done))
        raise KeyboardInterrupt

    args = (model, prompts, out, "--batch-size", "8", "--logps")
    monkeypatch.setattr(Generator, "__call__", interrupted)
    with pytest.raises(SystemExit, match="130"):
        generate(*args)
    assert capsys.readouterr().err.strip().endswith("the same command goes on from there")
    assert not out.exists() and len(read_rows(partial)) == 1 + 8
    partial.write_bytes(partial.read_bytes()[:-20])  # a kill in the middle of a line
    with pytest.raises(SystemExit, match="130"):
        generate(*args)
    monkeypatch.setattr(Generator, "__call__", lambda *args: done_before.append(len(args[2])) or draw(*args))
    capsys.readouterr()
    for other in (("--seed", "1"), ("--max-tokens", "7")):
        with pytest.raises(SystemExit):
            generate(*args, *other)
        message = f"error: {partial} was begun with other prompts or settings: use those again, or remove it\n"
        assert capsys.readouterr().err == message
    generate(*args)
    assert done_before == [0, 7, 8]
    assert out.read_bytes() == whole.read_bytes() and [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_one_prompt_is_answered_on_stdout_alone(model, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(HFTokenizer, "decode", lambda self, ids: drawn.append(ids) or "[bold]:smile:\t[/]")
    main(["generate", "--checkpoint", str(model), "--prompt", "1 + 1", "--temperature", "0"])
    assert capsys.readouterr().out == "[bold]:smile:\t[/]\n"
    assert [len(ids) for ids in drawn] == [32]  # half of the model's positions, where 512 are too many


def test_refusals_that_need_no_model(tmp_path, capsys):
    prompts, out = write_rows(tmp_path / "prompts.jsonl", ROWS[:1]), tmp_path / "out.jsonl"
    out.touch()
    base = ("generate", "--checkpoint", tmp_path / "nowhere", "--prompts")
    assert refused(capsys, *base, prompts, "--out", out).startswith(f"error: --out {out} is already there: choose")
    assert not out.read_bytes()
    assert "the folder" in refused(capsys, *base, prompts, "--out", tmp_path / "no" / "out.jsonl")
    assert refused(capsys, *base, prompts, "--out", tmp_path / "new").startswith(f"error: {tmp_path}/nowhere holds no")
    assert "--prompts" in refused(capsys, *base, tmp_path / "no.jsonl")
    assert "give either --prompts FILE.jsonl or --prompt TEXT" in refused(capsys, *base[:-1])
    for option, value in (("n", 0), ("max_tokens", 0), ("batch_size", 0), ("seed", -1), ("top_p", 0)):
        flag = f"--{option.replace('_', '-')}"
        assert refused(capsys, *base, prompts, flag, value).startswith(f"error: {option}={value}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "prompts.jsonl"]


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "is no JSON"),
        ('{"prompt": "\\ud800"}', "is no JSON"),
        ('"text"', 'must be an object with one of "prompt" (text)'),
        ('{"prompt": ["text"]}', 'must be an object with one of "prompt" (text)'),
        ('{"question": "text"}', 'must be an object with one of "prompt" (text)'),
        ('{"prompt": "text", "tokens": [1]}', 'must be an object with one of "prompt" (text)'),
        ('{"prompt": "text", "completions": []}', "its field 'completions' has a name that the output needs"),
        ('{"prompt": "text", "finish_reasons": 1}', "its field 'finish_reasons' has a name that the output needs"),
        ('{"prompt": "text", "logps": 1}', "its field 'logps' has a name that the output needs"),
        ('{"tokens": [1], "prompt_tokens": 1}', "its field 'prompt_tokens' has a name that the output needs"),
        ('{"messages": []}', "give at least one message"),
        ('{"messages": [{"role": "user"}]}', "make it a dict with a 'role' and a 'content'"),
        ('{"messages": [{"role": "judge", "content": ""}]}', "its chat template refuses"),
        ('{"tokens": []}', "has no tokens"),
        ('{"tokens": [1, 999]}', "tokens=[1, 999]: each must be an id below"),
        ('{"tokens": ["1"]}', "tokens=['1']: each must be an id below"),
        ('{"tokens": [%s1]}' % ("1, " * 60), "has 61 tokens, which leaves no room for 8 more"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_named(model, tmp_path, capsys, line, message):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(f'{{"prompt": "a"}}\n\n{line}\n{{"prompt": "b"}}\n')
    args = ("--prompts", prompts, "--out", tmp_path / "out.jsonl", "--max-tokens", 8, "--logps")
    sentence = refused(capsys, "generate", "--checkpoint", model, *args)
    assert f"{prompts} line 3" in sentence and message in sentence
    assert [p.name for p in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_a_field_is_kept_that_the_output_does_not_need(model, tmp_path, monkeypatch):
    monkeypatch.setattr(Generator, "__call__", lambda self, prompts, done: iter([[(0, [])]]))
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "a", "logps": 1, "prompt_tokens": 2}])
    generate(model, prompts, tmp_path / "out.jsonl")
    (row,) = read_rows(tmp_path / "out.jsonl")
    assert (row["logps"], row["prompt_tokens"]) == (1, 2)


def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_read(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("r1jax.checkpoints.model.open_model", None)
    small = CONFIG.replace(vocab_size=64)
    hf.save(tmp_path / "small", random_model(small), small, assets=model)
    args = ("generate", "--prompt", "a", "--checkpoint")
    assert "has ids up to 3" in refused(capsys, *args, tmp_path / "small")
    assert "no prediction module" in refused(capsys, *args, model, "--speculative")
    assert "batch_size=3: must be a multiple of 8" in refused(capsys, *args, model, "--batch-size", 3)
    assert "its axes multiply to 5" in refused(capsys, *args, model, "--mesh.data", 5)


# ------------------------------------------------------------------------------------------------------ convert


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory):
    """A published checkpoint with every kind of tensor; its token ids are in config.json."""
    config = tiny_config(num_hidden_layers=2, first_k_dense_replace=1)
    assets = write_files(
        deepseek_folder(tmp_path_factory.mktemp("assets")), {"config.json": {"bos_token_id": 0, "eos_token_id": 1}}
    )
    folder = tmp_path_factory.mktemp("deepseek") / "model"
    hf.save(folder, random_model(config), config, assets=assets)
    return folder


def convert(source, target, *more):
    main(["convert", "--source", str(source), "--target", str(target), *more])
    return target


def test_there_and_back_is_the_identity(deepseek, tmp_path, capsys):
    ours = convert(deepseek, tmp_path / "ours", "--format", "r1jax")
    assert capsys.readouterr().out.endswith(f"written: {ours}\n")
    theirs = convert(ours, tmp_path / "theirs", "--max-shard-size", "20000")
    before, after = TensorFiles(deepseek), TensorFiles(theirs)
    assert before.entries.keys() == after.entries.keys() and len({e.file for e in after.entries.values()}) > 3
    for name in before.entries:
        a, b = before.read(name), after.read(name)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (theirs / name).read_bytes() == (deepseek / name).read_bytes(), name


def test_fp8_and_bfloat16(deepseek, tmp_path):
    source = nnx.state(open_model(deepseek).model)
    for options, kinds, tolerance in (
        (("--fp8",), {"float8_e4m3fn", "float32"}, 0.05),
        (("--dtype", "bfloat16"), {"bfloat16", "float32"}, 0.005),  # the correction bias is always float32
    ):
        files = TensorFiles(convert(deepseek, tmp_path / options[0].strip("-"), *options))
        assert {str(files.read(name).dtype) for name in files.entries} == kinds
        state = dict(nnx.to_flat_state(nnx.state(open_model(files.folder).model)))
        for path, v in nnx.to_flat_state(source):
            assert relative_error(state[path].get_value(), v.get_value()) < tolerance, path


def test_what_convert_refuses(deepseek, tmp_path, capsys):
    (tmp_path / "file").touch()
    ours = convert(deepseek, tmp_path / "ours", "--format", "r1jax")
    capsys.readouterr()
    nowhere = tmp_path / "nowhere"  # the target is looked at first
    for target in (deepseek, ours, tmp_path / "file"):
        for form in ("hf", "r1jax"):
            sentence = refused(capsys, "convert", "--source", nowhere, "--target", target, "--format", form)
            assert sentence.startswith(f"error: {target} is a file or holds a model already")
    assert "nowhere holds no model" in refused(capsys, "convert", "--source", nowhere, "--target", tmp_path / "new")
    args = ("convert", "--source", deepseek, "--target", tmp_path / "new")
    assert "fp8=True: goes with --format hf only" in refused(capsys, *args, "--fp8", "--format", "r1jax")
    assert "max_shard_size=0: must be positive" in refused(capsys, *args, "--max-shard-size", 0)
    assert not (tmp_path / "new").exists()


# --------------------------------------------------------------------------------------------------------- chat


DIM = re.compile(r"\x1b\[2m(.*?)\x1b\[0m", re.DOTALL)


def shown(pieces, thinking=False):
    """(printed, dimmed, returned) on a terminal narrower than most texts."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=10)
    answer = chat.show(console, pieces, thinking)
    printed = console.file.getvalue()
    return DIM.sub(r"\1", printed), "".join(DIM.findall(printed)), answer


PARTS = [THINK_OPEN, THINK_CLOSE, "<", "/think", "a", "é", " ", "\n", "\t", "\r", ":smile:", "[b]"]


@settings(deadline=None)
@given(text=st.lists(st.sampled_from(PARTS)).map("".join), cuts=st.lists(st.integers(0, 60)), thinking=st.booleans())
@example(text="<think>ab</think>c", cuts=[5, 12], thinking=False)
@example(text="ab</think> c", cuts=[8], thinking=True)
def test_what_is_shown_is_what_was_said_however_it_is_split(text, cuts, thinking):
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    printed, dimmed, answer = shown([text[a:b] for a, b in itertools.pairwise(edges)], thinking)
    assert printed == text + "\n"
    _, opened, thoughts = ("", "", text) if thinking else text.partition(THINK_OPEN)
    inside, closed, _ = thoughts.partition(THINK_CLOSE)
    assert dimmed == opened + inside + closed
    ended = closed or not (thinking or opened)
    assert answer == (text.rpartition(THINK_CLOSE)[2].strip() if ended else "")


def converse(monkeypatch, tokenizer, model, lines, answers, *more):
    """Types `lines` at `r1jax chat`; the model says `answers`. Returns the prompts that it was given."""
    prompts, answers = [], iter(answers)

    def stream(self, ids, turn):
        prompts.append((tokenizer._tokenizer.decode(ids, skip_special_tokens=False), turn))
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        yield from ([i] for i in [*tokenizer.encode(answer), 1])

    monkeypatch.setattr(Generator, "stream", stream)
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    terminal = functools.partial(Console, force_terminal=True, color_system="truecolor")
    monkeypatch.setattr(chat, "Console", terminal)
    main(["chat", "--checkpoint", str(model), *more])
    return prompts


def test_a_conversation(monkeypatch, capsys, tokenizer, model):
    said = "<think>ab</think>c"
    prompts = converse(monkeypatch, tokenizer, model, ["hi", "and?"], [said, said])
    assert prompts == [
        (f"{BOS}{USER}hi{ASSISTANT}", 0),
        (f"{BOS}{USER}hi{ASSISTANT}c{EOS}{USER}and?{ASSISTANT}", 1),  # without its thoughts
    ]
    printed = capsys.readouterr().out
    assert "".join(DIM.findall(printed)).count("<think>ab</think>") == 2
    assert DIM.sub("", printed).count("c\n") == 2 and "ab" not in DIM.sub("", printed)


def test_the_conversation_is_forgotten_and_the_system_prompt_is_not(monkeypatch, tokenizer, model):
    lines = ["hi", "/clear", "again", "/exit", "never"]
    prompts = converse(monkeypatch, tokenizer, model, lines, ["c", "d"], "--system", "Be kind.", "--think")
    assert [p for p, _ in prompts] == [f"{BOS}Be kind.{USER}{text}{ASSISTANT}<think>\n" for text in ("hi", "again")]
    assert not converse(monkeypatch, tokenizer, model, [""], [])


def test_a_turn_that_fails_is_left_out_and_the_conversation_goes_on(monkeypatch, capsys, tokenizer, model):
    answers = ["c", DataError("[too] long"), KeyboardInterrupt(), "<think>on and on", "d"]
    prompts = converse(monkeypatch, tokenizer, model, ["1", "2", "3", "4", "5"], answers)
    printed = capsys.readouterr().out
    assert "[too] long (/clear forgets the conversation)" in printed and "(stopped)" in printed
    past = f"{BOS}{USER}1{ASSISTANT}c{EOS}{USER}"
    assert [p for p, _ in prompts[1:4]] == [f"{past}{i}{ASSISTANT}" for i in (2, 3, 4)]
    assert prompts[4][0] == f"{past}4{ASSISTANT}{EOS}{USER}5{ASSISTANT}"  # thoughts that never ended are no answer


def test_what_chat_cannot_encode_or_render_does_not_end_it(monkeypatch, capsys, tokenizer, model, tmp_path):
    picky = TEMPLATE + "{{ raise_exception('no numbers') if messages[-1].content == '1' }}"
    base = deepseek_folder(tmp_path)
    hf.save(tmp_path / "picky", open_model(model).model, CONFIG, assets=base)
    write_files(tmp_path / "picky", {"chat_template.jinja": picky})
    prompts = converse(monkeypatch, tokenizer, tmp_path / "picky", ["1", "hi"], ["c"])
    assert "no numbers" in capsys.readouterr().out
    assert [p for p, _ in prompts] == [f"{BOS}{USER}hi{ASSISTANT}"]


def test_a_model_answers(monkeypatch, capsys, tokenizer, model):
    drawn, stream = [], Generator.stream
    monkeypatch.setattr(Generator, "stream", lambda *args: (drawn.append(some) or some for some in stream(*args)))
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
    main(["chat", "--checkpoint", str(model), "--temperature", "0"])
    assert [len(some) for some in drawn] == [8] * 4  # half of the model's positions, where 1024 are too many
    assert f">>> {tokenizer.decode([*itertools.chain(*drawn)])}\n" in capsys.readouterr().out


def test_chat_needs_a_template(tmp_path, capsys):
    hf.save(tmp_path / "base", random_model(CONFIG), CONFIG, assets=deepseek_folder(tmp_path / "assets"))
    assert "has no chat template" in refused(capsys, "chat", "--checkpoint", tmp_path / "base")
    assert refused(capsys, "chat", "--checkpoint", "x", "--max-tokens", 0).startswith("error: max_tokens=0")


# ---------------------------------------------------------------------------------------------------- processes


@pytest.mark.parametrize(
    "args",
    [
        ["generate", "--checkpoint", "nowhere", "--prompt", "a"],
        ["convert", "--source", "nowhere", "--target", "new"],
        ["chat", "--checkpoint", "nowhere"],
    ],
    ids=lambda args: args[0],
)
def test_a_failure_is_exit_status_2_and_one_line(tmp_path, args):
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); import r1jax.cli; r1jax.cli.main()"
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: nowhere holds no model") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("broken", "status"), [("sys.stdout.write('x' * 99999)", 141), ("raise BrokenPipeError", 1)])
def test_only_an_output_that_nobody_reads_ends_in_silence(broken, status):
    """As with `| head`; a pipe that breaks elsewhere is an error as any other."""
    code = f"import sys\nfrom r1jax.errors import exit_on_error\nwith exit_on_error():\n    {broken}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if status == 141:
        process.stdout.close()
    told = process.stderr.read().decode()
    assert process.wait() == status and ("Traceback" in told) == (status == 1)
