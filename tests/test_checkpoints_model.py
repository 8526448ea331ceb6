"""One model from any folder: r1jax's own bit for bit, a run's newest policy, and plain words for the rest."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from helpers import graphdef, make_layout, random_model, random_state, shard, tiny_config, tiny_qwen2
from hf_folders import deepseek_folder, qwen_folder, write_files

from r1jax.checkpoints import hf
from r1jax.checkpoints.model import fingerprint, open_model, save_model, saved_fingerprint
from r1jax.checkpoints.run import RunCheckpoints
from r1jax.configs import presets
from r1jax.configs.training import OptimizerConfig
from r1jax.data.hf_tokenizer import load_tokenizer
from r1jax.errors import CheckpointError, ConfigError
from r1jax.recipes.artefacts import sha256_of
from r1jax.recipes.config import R1ZeroConfig
from r1jax.sharding import state_shardings
from r1jax.training.optimizer import make_optimizer
from r1jax.training.state import TrainState, with_reference

CONFIG = tiny_config(num_hidden_layers=2, first_k_dense_replace=1)


def bits(state):
    """{path: (dtype, bytes)} of a model or a state."""
    state = nnx.state(state) if isinstance(state, nnx.Module) else state
    arrays = {path: np.asarray(v.get_value()) for path, v in nnx.to_flat_state(state)}
    return {path: (a.dtype, a.tobytes()) for path, a in arrays.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of `save_model`."""
    folder = tmp_path_factory.mktemp("models") / "saved"
    save_model(folder, random_model(CONFIG), CONFIG, None)
    return folder


@pytest.mark.parametrize(
    "config",
    [CONFIG, tiny_qwen2(param_dtype="bfloat16", dtype="bfloat16")],  # the second has no buffers and no rope scaling
    ids=["deepseek", "qwen2"],
)
def test_a_round_trip_keeps_every_bit_and_the_config(tmp_path, config):
    model = random_model(config)
    save_model(tmp_path / "new" / "model", model, config, None)
    opened = open_model(tmp_path / "new" / "model")
    assert (opened.config, opened.assets) == (config, tmp_path / "new" / "model")
    assert opened.model.config == config and bits(opened.model) == bits(model)
    assert open_model(tmp_path / "new" / "model", remat=True).model.config == config.replace(remat=True)


def test_a_mesh_gets_its_shards_and_saves_the_same(saved, tmp_path):
    layout = make_layout({"data": 2, "expert": 2, "tensor": 2})
    model, config, _ = open_model(saved, mesh=layout.mesh)
    assert bits(model) == bits(random_state(CONFIG))
    state = nnx.state(model)
    wanted = dict(nnx.to_flat_state(state_shardings(state, layout)))
    for path, v in nnx.to_flat_state(state):
        assert v.get_value().sharding.is_equivalent_to(wanted[path].get_value(), v.get_value().ndim), path
    two = open_model(saved, mesh=make_layout({"expert": 2}).mesh).model
    save_model(tmp_path / "again", two, config, None)
    assert bits(open_model(tmp_path / "again").model) == bits(model)


def test_another_dtype_is_that_of_every_parameter_and_of_the_config(saved):
    opened = open_model(saved, "bfloat16")
    assert opened.config == opened.model.config == CONFIG.replace(dtype="bfloat16", param_dtype="bfloat16")
    expected = jax.tree.map(
        lambda v: v.replace(v.get_value().astype(jnp.bfloat16)) if isinstance(v, nnx.Param) else v,
        random_state(CONFIG),
        is_leaf=lambda v: isinstance(v, nnx.Variable),
    )
    assert bits(opened.model) == bits(expected)
    assert nnx.graphdef(opened.model) == graphdef(opened.config)
    with pytest.raises(ConfigError, match="dtype='float16': must be one of"):
        open_model(saved, "float16")


def test_a_published_checkpoint_is_float32_unless_another_dtype_is_asked_for(tmp_path):
    folder = tmp_path / "published"
    hf.save(folder, random_model(CONFIG.replace(param_dtype="bfloat16")), CONFIG)
    for dtype, name in ((None, "float32"), ("bfloat16", "bfloat16")):
        model, config, assets = open_model(folder, dtype)
        assert (assets, config.param_dtype, model.embed.weight.dtype) == (folder, name, name)


@pytest.mark.parametrize("only_in_config", [False, True])
def test_the_tokenizer_comes_along(tmp_path, only_in_config):
    source = deepseek_folder(tmp_path / "source")
    if only_in_config:  # its ids are named nowhere but in config.json
        ids = {"bos_token_id": 0, "eos_token_id": [1, 5], "vocab_size": 64}
        write_files(source, {"config.json": ids, "generation_config.json": None, "tokenizer_config.json": None})
    write_files(source, {"chat_template.jinja": "{{ messages }}", "additional_chat_templates/tool_use.jinja": "x"})
    save_model(tmp_path / "model", random_model(CONFIG), CONFIG, source)
    ours, theirs = load_tokenizer(open_model(tmp_path / "model").assets), load_tokenizer(source)
    assert (ours.eos_ids, ours.bos_id, ours.pad_id) == (theirs.eos_ids, theirs.bos_id, theirs.pad_id)
    assert ours.bos_id == 0 and ours.encode("The cat") == theirs.encode("The cat")
    for name in ("chat_template.jinja", "additional_chat_templates/tool_use.jinja"):
        assert (tmp_path / "model" / name).read_bytes() == (source / name).read_bytes()


def test_a_folder_with_a_model_is_left_as_it_was(saved, tmp_path):
    published, file = tmp_path / "published", tmp_path / "file"
    hf.save(published, random_model(CONFIG), CONFIG, assets=qwen_folder(tmp_path / "qwen"))
    file.write_text("mine")
    begun = write_files(tmp_path / "run", {"config.json": {"grpo": {}}})
    for target in (saved, published, begun, file):
        before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
        with pytest.raises(CheckpointError, match=f"^{target} is a file or holds a model already: choose another"):
            save_model(target, random_model(CONFIG), CONFIG, deepseek_folder(tmp_path / "other"))
        assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("at", [(hf, "copy_assets"), (os, "replace")], ids=["tokenizer", "description"])
def test_a_kill_before_the_end_leaves_no_model(tmp_path, monkeypatch, at):
    step = getattr(*at)

    def kill(source, target):
        if target in (tmp_path / "model", tmp_path / "model" / "model.json"):
            raise KeyboardInterrupt
        return step(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*at, kill)
        save_model(tmp_path / "model", random_model(CONFIG), CONFIG, deepseek_folder(tmp_path / "source"))
    with pytest.raises(CheckpointError, match="model holds no model"):
        open_model(tmp_path / "model")
    with pytest.raises(CheckpointError, match="choose another folder, or remove it first"):
        save_model(tmp_path / "model", random_model(CONFIG), CONFIG, None)


# --------------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run that has just begun: no checkpoint yet."""
    monkeypatch.setitem(presets.MODEL_PRESETS, "nano", CONFIG)
    (tmp_path / "run" / "world").mkdir(parents=True)
    return write_files(tmp_path / "run", {"config.json": R1ZeroConfig().as_json()})


def train_state(seed, rl):
    params, buffers = nnx.split_state(random_state(CONFIG, seed), nnx.Param, ...)
    optimizer = make_optimizer(OptimizerConfig(), 10)
    state = TrainState(jnp.int32(seed), params, buffers, optimizer.init(params))
    return with_reference(state, optimizer, "bfloat16") if rl else state


def test_a_run_gives_its_newest_policy_and_no_more_is_read(run, monkeypatch):
    with pytest.raises(CheckpointError, match="base holds no complete checkpoint"):
        open_model(run)
    RunCheckpoints(run / "checkpoints" / "base").save(3, train_state(1, False), {})
    opened = open_model(run)
    assert (opened.config, opened.assets) == (CONFIG, run / "world")
    assert bits(opened.model) == bits(random_state(CONFIG, 1))

    for step, seed in ((5, 2), (6, 3)):
        RunCheckpoints(run / "checkpoints" / "rl").save(step, train_state(seed, True), {})
    read, restore = {}, ocp.Checkpointer.restore
    monkeypatch.setattr(ocp.Checkpointer, "restore", lambda *a, **k: read.update(restore(*a, **k)) or read)
    assert bits(open_model(run).model) == bits(random_state(CONFIG, 3))
    assert {name.split("/")[0] for name in read} == {"params", "buffers"}
    assert len(read) == len(bits(random_state(CONFIG)))


# ------------------------------------------------------------------------------------------------------- damage


def change(**fields):
    return json.dumps(dataclasses.asdict(CONFIG) | fields)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", r"model\.json cannot be read \("),
        ("[]", r"model\.json must hold a JSON object"),
        (change(colour="red"), r"model\.json does not describe a model of this version of r1jax \(.*'colour'"),
        (change(hidden_size=0), r"model\.json does not describe a model .*hidden_size=0: must be positive"),
        (change(hidden_size="wide"), r"model\.json does not describe a model"),
        (change(rope_scaling={"type": "yarn", "speed": 1}), r"model\.json does not describe a model .*'speed'"),
        ("{}", r"model\.json does not describe a model .*vocab_size"),
        (change(intermediate_size=40), r"00000000 is from another configuration: at leaf params/dense_layers/mlp/"),
    ],
)
def test_a_damaged_description_is_named(saved, tmp_path, text, message):
    (tmp_path / "weights").symlink_to(saved / "weights")
    with pytest.raises(CheckpointError, match=message):
        open_model(write_files(tmp_path, {"model.json": text}))


def test_a_run_without_a_model_in_its_config_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json does not describe a model"):
        open_model(write_files(tmp_path, {"config.json": {"grpo": {}}}))


def test_a_flipped_bit_in_the_weights_is_noticed(saved, tmp_path):
    save_model(tmp_path / "model", random_model(CONFIG), CONFIG, None)
    largest = max((tmp_path / "model" / "weights").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"00000000 is damaged \(.* was changed\)"):
        open_model(tmp_path / "model")


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_where_nothing_lies_that_is_said(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=rf"{name} holds no model \(no config\.json, no model\.json\): point at"):
        open_model(tmp_path / name)


def test_weights_are_known_by_their_bits():
    """On any mesh the same; one bit of one parameter makes another model."""
    config = tiny_qwen2(param_dtype="bfloat16", dtype="bfloat16")
    state = random_state(config)
    known = fingerprint(nnx.merge(graphdef(config), state))
    assert fingerprint(nnx.merge(graphdef(config), shard(state, make_layout({"fsdp": 2, "tensor": 2})))) == known
    leaves, treedef = jax.tree.flatten(state)
    leaves[3] = np.array(leaves[3])
    leaves[3].view(np.uint16).flat[5] ^= 1
    assert fingerprint(nnx.merge(graphdef(config), treedef.unflatten(map(jnp.asarray, leaves)))) != known


def test_a_saved_model_is_known_by_its_weights_and_what_comes_with_them(tmp_path):
    """The files of the weights are others on another mesh; the hash is not."""
    config, first, again = (
        tiny_qwen2(num_hidden_layers=1, first_k_dense_replace=1),
        tmp_path / "first",
        tmp_path / "two",
    )
    save_model(first, random_model(config), config, None)
    assert saved_fingerprint(first) == fingerprint(random_model(config))
    known = sha256_of(first)
    state = shard(random_state(config), make_layout({"fsdp": 2, "tensor": 2}))
    save_model(again, nnx.merge(graphdef(config), state), config, None)
    sizes = ({p.stat().st_size for p in (folder / "weights").rglob("*")} for folder in (first, again))
    assert next(sizes) != next(sizes) and sha256_of(again) == known
    (again / "weights.json").unlink()  # as an older version left it: opened to be known
    assert sha256_of(again) == known

    save_model(tmp_path / "other", random_model(config, seed=1), config, None)
    (again / "tokenizer.json").write_text("{}")
    assert len({known, sha256_of(tmp_path / "other"), sha256_of(again)}) == 3


def test_a_saved_model_without_all_of_its_weights_has_no_hash(tmp_path):
    save_model(tmp_path / "model", random_model(CONFIG), CONFIG, None)
    largest = max((tmp_path / "model" / "weights").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"00000000 is damaged \(.* has \d+ bytes instead of \d+\)"):
        sha256_of(tmp_path / "model")
    (tmp_path / "model" / "weights" / "00000000" / "complete.json").unlink()
    with pytest.raises(CheckpointError, match="weights holds no complete checkpoint"):
        sha256_of(tmp_path / "model")
