"""Published checkpoints: every name, bit and slice, on one device and on meshes; refused in a sentence when wrong."""

import collections
import functools
import json
import math
import os
import re
import shutil
import tempfile
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from helpers import (
    graphdef,
    method,
    pure,
    random_state,
    random_tokens,
    relative_error,
    tiny_config,
    tiny_llama3,
    tiny_qwen2,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.checkpoints import fp8, hf
from r1jax.checkpoints.hf_config import config_from_hf, config_to_hf
from r1jax.checkpoints.hf_names import sources
from r1jax.checkpoints.tensor_files import DTYPES, INDEX, Entry, Planned, TensorFiles, write_tensors
from r1jax.configs.model import RopeScaling
from r1jax.configs.presets import model_preset
from r1jax.errors import CheckpointError, ConfigError
from r1jax.sharding import Layout, make_mesh, state_shardings

BF16, E4M3 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
DEEPSEEK = tiny_config()
CONFIGS = {
    "deepseek_v3": DEEPSEEK,
    "deepseek_v3 with plain queries, two shared experts and two modules": tiny_config(
        num_hidden_layers=3, first_k_dense_replace=1, q_lora_rank=None, n_shared_experts=2, num_nextn_predict_layers=2
    ),
    "deepseek_v3, dense": tiny_config(num_hidden_layers=2, first_k_dense_replace=2),
    "qwen2": tiny_qwen2(),
    "qwen3": tiny_llama3(rope_scaling=RopeScaling(factor=2.0, original_max_position_embeddings=64), qk_norm=True),
    "qwen3_moe": tiny_llama3(
        rope_scaling=None, qk_norm=True, num_hidden_layers=3, first_k_dense_replace=1, n_routed_experts=8,
        num_experts_per_tok=3, moe_intermediate_size=16, scoring_func="softmax",
    ),
    "llama3": tiny_llama3(),
}  # fmt: skip
MESHES = {
    "fsdp 4, expert 2": {"fsdp": 4, "expert": 2},
    "data 2, expert 2, tensor 2": {"data": 2, "expert": 2, "tensor": 2},
}
needs_8 = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 (simulated) devices")


def make_model(config, dtype="float32"):
    """Random in every parameter: norms, biases and correction biases too."""
    config = config.replace(dtype=dtype, param_dtype=dtype, initializer_range=0.02)
    state = random_state(config)
    if config.scoring_func == "softmax":  # has no correction bias
        state = nnx.map_state(lambda path, v: jnp.abs(v * 0) if "e_score_correction_bias" in path else v, state)
    return nnx.merge(graphdef(config), state), config


def flat(model):
    return {path: variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(model))}


def assert_same_bits(left, right):
    left, right = flat(left), flat(right)
    assert left.keys() == right.keys()
    for path, a in left.items():
        assert a.dtype == right[path].dtype, path
        assert np.asarray(a).tobytes() == np.asarray(right[path]).tobytes(), path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_all(folder):
    files = TensorFiles(folder)
    return {name: np.array(files.read(name)) for name in files.entries}


def write_all(folder, tensors, max_shard_size=10**9):
    plan = [Planned(name, array.dtype, array.shape) for name, array in tensors.items()]
    return write_tensors(folder, plan, tensors.values(), max_shard_size, {"format": "pt"})


def rewrite(folder, changes):
    """Replaces tensors, adds them, or (None) removes them."""
    tensors = {name: a for name, a in (read_all(folder) | changes).items() if a is not None}
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink(missing_ok=True)
    write_all(folder, tensors)


def edit_json(path, **changes):
    """Sets fields, or removes those that are to be `...`."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))


def edit_header(path, edit):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A folder with a float32 checkpoint of CONFIGS[name], in several files. Not to be changed."""

    @functools.cache
    def one(name):
        folder = tmp_path_factory.mktemp("published") / "model"
        hf.save(folder, *make_model(CONFIGS[name]), max_shard_size=40_000)
        return folder

    return one


@pytest.fixture
def copy_of(published, tmp_path):
    """A copy of `published(name)`, to be changed."""
    return lambda name: Path(shutil.copytree(published(name), tmp_path / "copy"))


# ---------------------------------------------------------------------------------------------------- one device


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_import_and_export_are_the_identity(tmp_path, name, dtype):
    model, config = make_model(CONFIGS[name], dtype)
    hf.save(tmp_path / "a", model, config, max_shard_size=100_000)
    loaded, read = hf.load(tmp_path / "a", dtype)
    assert read == config
    assert_same_bits(loaded, model)
    hf.save(tmp_path / "b", loaded, read, max_shard_size=100_000)
    assert contents(tmp_path / "b") == contents(tmp_path / "a")


def deepseek_tensors(config, p):
    """What DeepSeek-V3's index names, from nested parameters. Written down from the index, not from r1jax's tables."""
    d = config.hidden_size

    def layer(prefix, p):
        a, mlp = p["attention"], p["mlp"]
        out = {
            "input_layernorm.weight": p["input_norm"]["weight"],
            "post_attention_layernorm.weight": p["post_attention_norm"]["weight"],
            "self_attn.q_a_proj.weight": a["q_a_proj"].T,
            "self_attn.q_a_layernorm.weight": a["q_a_norm"]["weight"],
            "self_attn.q_b_proj.weight": a["q_b_proj"].reshape(config.q_lora_rank, -1).T,
            "self_attn.kv_a_proj_with_mqa.weight": a["kv_a_proj"].T,
            "self_attn.kv_a_layernorm.weight": a["kv_a_norm"]["weight"],
            "self_attn.kv_b_proj.weight": a["kv_b_proj"].reshape(config.kv_lora_rank, -1).T,
            "self_attn.o_proj.weight": a["o_proj"].reshape(-1, d).T,
        }
        if "router" not in mlp:
            out |= {f"mlp.{m}_proj.weight": mlp[f"{m}_proj"].T for m in ("gate", "up", "down")}
        else:
            out["mlp.gate.weight"] = mlp["router"]["weight"].T
            out["mlp.gate.e_score_correction_bias"] = mlp["router"]["e_score_correction_bias"]
            for m in ("gate", "up", "down"):
                out[f"mlp.shared_experts.{m}_proj.weight"] = mlp["shared"][f"{m}_proj"].T
                for e in range(config.n_routed_experts):
                    out[f"mlp.experts.{e}.{m}_proj.weight"] = mlp[f"{m}_proj"][e].T
        return {f"{prefix}.{name}": array for name, array in out.items()}

    out = {
        "model.embed_tokens.weight": p["embed"]["weight"],
        "model.norm.weight": p["norm"]["weight"],
        "lm_head.weight": p["lm_head"].T,
    }
    for i in range(2):
        out |= layer(f"model.layers.{i}", jax.tree.map(lambda a, i=i: a[i], p["dense_layers"]))
        out |= layer(f"model.layers.{i + 2}", jax.tree.map(lambda a, i=i: a[i], p["moe_layers"]))
    mtp = p["mtp"][0]
    return out | layer("model.layers.4", mtp["block"]) | {
        "model.layers.4.embed_tokens.weight": p["embed"]["weight"],
        "model.layers.4.enorm.weight": mtp["enorm"]["weight"],
        "model.layers.4.hnorm.weight": mtp["hnorm"]["weight"],
        "model.layers.4.eh_proj.weight": mtp["eh_proj"].T,
        "model.layers.4.shared_head.norm.weight": mtp["norm"]["weight"],
        "model.layers.4.shared_head.head.weight": p["lm_head"].T,
    }  # fmt: skip


def test_every_tensor_of_deepseek_v3_has_its_name_and_its_numbers(published):
    model, config = make_model(DEEPSEEK)
    wanted, got = deepseek_tensors(config, pure(nnx.state(model))), read_all(published("deepseek_v3"))
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array, name)


def test_qwen2s_heads_and_biases_have_their_names(published):
    model, config = make_model(CONFIGS["qwen2"])
    p, got = pure(nnx.state(model)), read_all(published("qwen2"))
    assert "lm_head.weight" not in got  # tied
    for i in range(config.num_hidden_layers):
        attention = jax.tree.map(lambda a, i=i: a[i], p["dense_layers"]["attention"])
        for m, heads in (("q", 4), ("k", 2), ("v", 2)):
            weight = got[f"model.layers.{i}.self_attn.{m}_proj.weight"].reshape(heads, 10, 32)
            np.testing.assert_array_equal(weight, attention[f"{m}_proj"].transpose(1, 2, 0))
            bias = got[f"model.layers.{i}.self_attn.{m}_proj.bias"].reshape(heads, 10)
            np.testing.assert_array_equal(bias, attention[f"{m}_bias"])


# DeepSeek-R1's files, 91,991 tensors: name, shape and dtype, for layers first..last and for each expert.
R1 = """
model.embed_tokens.weight 129280 7168
model.norm.weight 7168
lm_head.weight 129280 7168
0..61 input_layernorm.weight 7168
0..61 post_attention_layernorm.weight 7168
0..61 self_attn.q_a_proj.weight 1536 7168 fp8
0..61 self_attn.q_a_layernorm.weight 1536
0..61 self_attn.q_b_proj.weight 24576 1536 fp8
0..61 self_attn.kv_a_proj_with_mqa.weight 576 7168 fp8
0..61 self_attn.kv_a_layernorm.weight 512
0..61 self_attn.kv_b_proj.weight 32768 512 fp8
0..61 self_attn.o_proj.weight 7168 16384 fp8
0..2 mlp.gate_proj.weight 18432 7168 fp8
0..2 mlp.up_proj.weight 18432 7168 fp8
0..2 mlp.down_proj.weight 7168 18432 fp8
3..61 mlp.gate.weight 256 7168
3..61 mlp.gate.e_score_correction_bias 256
3..61 mlp.shared_experts.gate_proj.weight 2048 7168 fp8
3..61 mlp.shared_experts.up_proj.weight 2048 7168 fp8
3..61 mlp.shared_experts.down_proj.weight 7168 2048 fp8
3..61 mlp.experts.E.gate_proj.weight 2048 7168 fp8
3..61 mlp.experts.E.up_proj.weight 2048 7168 fp8
3..61 mlp.experts.E.down_proj.weight 7168 2048 fp8
61..61 embed_tokens.weight 129280 7168
61..61 enorm.weight 7168
61..61 hnorm.weight 7168
61..61 eh_proj.weight 7168 14336
61..61 shared_head.norm.weight 7168
61..61 shared_head.head.weight 129280 7168
"""


def test_r1s_own_files_are_what_its_config_asks_for(monkeypatch):
    """Names and shapes at full size, by which a load decides before it reads."""
    entries = {}
    for line in R1.split("\n")[1:-1]:
        words = line.split()
        layers = words.pop(0).split("..") if ".." in words[0] else None
        name, *shape = (w for w in words if w != "fp8")
        shape, code = tuple(map(int, shape)), "F8_E4M3" if words[-1] == "fp8" else "BF16"
        names = [name] if layers is None else [
            f"model.layers.{i}.{name}" for i in range(int(layers[0]), int(layers[1]) + 1)
        ]  # fmt: skip
        if "experts.E" in name:
            names = [n.replace("experts.E", f"experts.{e}") for n in names for e in range(256)]
        entries |= {n: Entry(Path("r1"), code, shape, 0) for n in names}
        if code == "F8_E4M3":
            scales = tuple(math.ceil(n / 128) for n in shape)
            entries |= {f"{n}_scale_inv": Entry(Path("r1"), "F32", scales, 0) for n in names}
    assert len(entries) == 91_991
    size = sum(math.prod(e.shape) * DTYPES[e.code].itemsize for e in entries.values())
    assert round(size / 2**30, 2) == 641.29

    files = TensorFiles.__new__(TensorFiles)
    files.folder, files.entries = Path("r1"), entries
    monkeypatch.setattr(hf, "_same", lambda *_: True)
    config = model_preset("deepseek-v3-671b")
    state = nnx.state(nnx.eval_shape(lambda: hf.Decoder(config, nnx.Rngs(params=0))))
    check = functools.partial(
        hf._check_tensors, files, config, dict(nnx.to_flat_state(state)), sources(config, state), (128, 128)
    )
    check()
    del entries["model.layers.60.mlp.experts.255.up_proj.weight_scale_inv"]
    with pytest.raises(CheckpointError, match=r"no tensor model\.layers\.60\.mlp\.experts\.255\.up_proj\.weight_scale"):
        check()


def test_the_correction_bias_stays_float32(tmp_path):
    """On the way in and out, whatever the model's dtype: a rounded bias chooses other experts."""
    model, config = make_model(DEEPSEEK, "bfloat16")
    path = ("moe_layers", "mlp", "router", "e_score_correction_bias")
    bias = np.asarray(flat(model)[path])
    assert bias.dtype == np.float32 and (bias != bias.astype(BF16).astype(np.float32)).all()
    hf.save(tmp_path / "a", model, config)
    stored = read_all(tmp_path / "a")
    for i in (2, 3):
        np.testing.assert_array_equal(stored[f"model.layers.{i}.mlp.gate.e_score_correction_bias"], bias[i - 2])
    assert {a.dtype for n, a in stored.items() if "correction_bias" not in n} == {BF16}
    loaded = flat(hf.load(tmp_path / "a", "bfloat16")[0])
    assert np.asarray(loaded[path]).tobytes() == bias.tobytes()
    assert {str(a.dtype) for p, a in loaded.items() if p[-1] != path[-1]} == {"bfloat16"}


@pytest.mark.parametrize("stored", [np.float16, BF16, np.float64], ids=str)
def test_other_dtypes_are_converted_once(copy_of, stored):
    folder = copy_of("qwen2")
    tensors = {name: a.astype(stored) for name, a in read_all(folder).items()}
    rewrite(folder, tensors)
    # Nothing in the format aligns tensors; a header of odd length puts every one at an odd offset.
    file = folder / "model.safetensors"
    edit_header(file, lambda header: header["__metadata__"].update(pad=""))
    if int.from_bytes(file.read_bytes()[:8], "little") % 2 == 0:
        edit_header(file, lambda header: header["__metadata__"].update(pad="x"))
    for dtype in ("float32", "bfloat16"):
        for name, array in hf.tensors(*hf.load(folder, dtype)):
            assert array.tobytes() == tensors[name].astype(dtype).tobytes(), name


def test_float64_with_x64_on(published):
    with jax.enable_x64():
        model, config = hf.load(published("deepseek_v3"), "float64")
        assert config.dtype == config.param_dtype == "float64"
        stored = read_all(published("deepseek_v3"))
        for name, array in hf.tensors(model, config):
            assert array.dtype == (np.float32 if "correction_bias" in name else np.float64)
            np.testing.assert_array_equal(array, stored[name], name)


def test_what_may_be_left_out_and_what_may_repeat(copy_of, tmp_path):
    folder = copy_of("deepseek_v3")
    whole, config = hf.load(folder)
    rewrite(folder, {name: None for name in read_all(folder) if ".layers.4." in name})
    trunk, read = hf.load(folder, remat=True)  # transformers drops the prediction module when it saves
    assert read == config.replace(num_nextn_predict_layers=0, remat=True)
    assert_same_bits(
        trunk, nnx.merge(graphdef(read), nnx.filter_state(nnx.state(whole), lambda path, _: path[0] != "mtp"))
    )

    model, config = make_model(CONFIGS["qwen2"])
    hf.save(tmp_path / "qwen2", model, config)
    embedding = read_all(tmp_path / "qwen2")["model.embed_tokens.weight"]
    constant = np.ones(5, np.float32)
    rewrite(tmp_path / "qwen2", {"lm_head.weight": embedding, "model.layers.0.self_attn.rotary_emb.inv_freq": constant})
    assert_same_bits(hf.load(tmp_path / "qwen2")[0], model)


def test_assets_and_ids_come_along(published, tmp_path):
    source = tmp_path / "source"
    (source / "additional_chat_templates").mkdir(parents=True)
    for name in ("tokenizer.json", "generation_config.json", "additional_chat_templates/tool.jinja", "README.md"):
        (source / name).write_text(f"contents of {name}")
    (source / "config.json").write_text('{"eos_token_id": [7, 8], "hidden_size": 5}')
    hf.save(tmp_path / "a", *make_model(CONFIGS["qwen2"]), assets=source)
    expected = json.loads((published("qwen2") / "config.json").read_text()) | {"eos_token_id": [7, 8]}
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == expected
    copied = {str(p.relative_to(tmp_path / "a")): p for p in (tmp_path / "a").rglob("*") if p.is_file()}
    wanted = {"tokenizer.json", "generation_config.json", "additional_chat_templates/tool.jinja"}
    assert copied.keys() == wanted | {"config.json", "model.safetensors"}
    assert all(copied[name].read_text() == f"contents of {name}" for name in wanted)


# -------------------------------------------------------------------------------------------------------- meshes


@needs_8
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("name", ["deepseek_v3", "qwen2"])
def test_a_mesh_gives_one_devices_parameters_where_the_learner_has_them(published, tmp_path, name, mesh):
    one, config = hf.load(published(name))
    mesh = make_mesh(mesh)
    split, read = hf.load(published(name), mesh=mesh)
    assert read == config
    assert_same_bits(split, one)
    layout, state = Layout(mesh, "learn"), nnx.state(split)
    wanted = nnx.to_flat_state(state_shardings(state, layout))
    for (path, value), (_, sharding) in zip(flat(split).items(), wanted, strict=True):
        assert value.sharding == sharding.get_value(), path
    tokens = random_tokens((8, 8))
    logits = method(config, "__call__", layout)(state, jax.device_put(tokens, layout.sharding(("batch", "length"))))
    assert relative_error(logits, method(config, "__call__")(nnx.state(one), tokens)) <= 2e-5
    hf.save(tmp_path / "again", split, config, max_shard_size=40_000)
    assert contents(tmp_path / "again") == contents(published(name))


@pytest.fixture
def asked(monkeypatch):
    """name -> how often each entry of that tensor was asked of the files."""
    counts, read = {}, TensorFiles.read

    def counting(self, name, index=()):
        counts.setdefault(name, np.zeros(self.entries[name].shape, int))[index] += 1
        return read(self, name, index)

    monkeypatch.setattr(TensorFiles, "read", counting)
    monkeypatch.setattr(hf, "_same", lambda *_: True)  # reads in order to compare
    return counts


@needs_8
@pytest.mark.parametrize("mesh", [*MESHES.values(), {"expert": 8}, {"data": 8}], ids=str)
def test_nothing_is_read_twice(published, asked, mesh):
    hf.load(published("deepseek_v3"), mesh=make_mesh(mesh))
    copies = {"model.layers.4.embed_tokens.weight", "model.layers.4.shared_head.head.weight"}
    assert asked.keys() == TensorFiles(published("deepseek_v3")).entries.keys() - copies
    for name, count in asked.items():
        assert (count == 1).all(), name


class Host:
    """A sharding as the host of some of its devices sees it."""

    def __init__(self, sharding, devices):
        self.sharding, self.devices = sharding, devices

    def addressable_devices_indices_map(self, shape):
        return {d: i for d, i in self.sharding.devices_indices_map(shape).items() if d in self.devices}


@needs_8
@pytest.mark.parametrize("axis", ["expert", "fsdp", "tensor"])
def test_a_host_reads_only_what_its_devices_hold(published, asked, monkeypatch, axis):
    """The host of the first half of the devices along one axis, of three of size 2."""
    mesh = make_mesh({"expert": 2, "fsdp": 2, "tensor": 2})
    mine = set(mesh.devices.take(0, mesh.axis_names.index(axis)).flat)
    monkeypatch.setattr(jax, "make_array_from_single_device_arrays", lambda shape, place, arrays: arrays)
    files, state = TensorFiles(published("deepseek_v3")), graph_state(DEEPSEEK)
    wanted, places = sources(DEEPSEEK, state), dict(nnx.to_flat_state(state_shardings(state, Layout(mesh, "learn"))))
    for path, variable in nnx.to_flat_state(state):
        hf._read_parameter(files, wanted[path], variable, Host(places[path].get_value(), mine), None)
    assert all(count.max() == 1 for count in asked.values())
    read = {name: tuple(slice(0, int(np.flatnonzero(count.any(1 - i))[-1]) + 1) for i in (0, 1))
            for name, count in asked.items() if count.ndim == 2}  # fmt: skip
    assert all((asked[name][box] == 1).all() for name, box in read.items())
    extents = {name: tuple(s.stop for s in box) for name, box in read.items()}
    experts = {int(name.split(".")[5]) for name in extents if ".experts." in name}
    assert experts == set(range(4 if axis == "expert" else 8))
    # [out, in]: `fsdp` splits hidden_size = 32 and the low ranks, `tensor` heads (4), MLP widths and the vocabulary.
    d, tensor = (16 if axis == "fsdp" else 32), 2 if axis == "tensor" else 1
    assert extents["model.layers.3.mlp.experts.0.gate_proj.weight"] == (16 // tensor, d)
    assert extents["model.layers.3.mlp.experts.0.down_proj.weight"] == (d, 16 // tensor)
    assert extents["model.layers.1.mlp.up_proj.weight"] == (48 // tensor, d)
    assert extents["model.layers.0.self_attn.q_b_proj.weight"] == (28 * 4 // tensor, 10 if axis == "fsdp" else 20)
    assert extents["model.layers.0.self_attn.o_proj.weight"] == (d, 10 * 4 // tensor)
    assert extents["model.embed_tokens.weight"] == (64 // tensor, d)
    assert extents["model.layers.4.eh_proj.weight"] == (32, 32 if axis == "fsdp" else 64)


def graph_state(config):
    return nnx.state(nnx.eval_shape(lambda: hf.Decoder(config, nnx.Rngs(params=0))))


# ----------------------------------------------------------------------------------------------------------- FP8

# Blocks of 128 end anywhere: within a head, within a device's slice, partial at the edges. Matrices of more than 256
# rows are copied in bands.
FP8 = tiny_config(
    num_hidden_layers=2, first_k_dense_replace=1, hidden_size=160, intermediate_size=272, num_attention_heads=4,
    q_lora_rank=136, kv_lora_rank=132, qk_nope_head_dim=36, qk_rope_head_dim=16, v_head_dim=34,
    moe_intermediate_size=144, n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2,
)  # fmt: skip
PROJECTION = re.compile(
    r"model\.layers\.\d+\.(self_attn\.(q_a|q_b|kv_b|o)_proj|self_attn\.kv_a_proj_with_mqa"
    r"|mlp\.((shared_experts|experts\.\d+)\.)?(gate|up|down)_proj)\.weight"
)


def random_e4m3(rng, shape):
    bits = rng.integers(0, 256, shape).astype(np.uint8)
    return np.where(bits & 0x7F == 0x7F, 0, bits).astype(np.uint8).view(E4M3)  # no NaN


def fp8_checkpoint(folder, block):
    """A checkpoint with random e4m3 weights and scales, and what each tensor is: value x its block's scale."""
    hf.save(folder, *make_model(FP8))
    edit_json(folder / "config.json", quantization_config={
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(block),
    })  # fmt: skip
    rng, changes, meant = np.random.default_rng(3), {}, {}
    for name, array in read_all(folder).items():
        meant[name] = array
        if PROJECTION.fullmatch(name):
            weight = random_e4m3(rng, array.shape)
            blocks = [math.ceil(n / size) for n, size in zip(array.shape, block, strict=True)]
            scale = np.exp(rng.normal(-8, 1, blocks)).astype(np.float32)
            changes |= {name: weight, f"{name}_scale_inv": scale}
            meant[name] = np.empty(array.shape, np.float32)
            for i in range(blocks[0]):
                for j in range(blocks[1]):
                    at = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
                    meant[name][at] = weight[at].astype(np.float32) * scale[i, j]
    rewrite(folder, changes)
    return meant


@pytest.mark.parametrize("block", [(128, 128), (48, 80)], ids=str)
def test_fp8_is_value_times_its_blocks_scale(tmp_path, block):
    meant = fp8_checkpoint(tmp_path / "fp8", block)
    for dtype in ("float32", "bfloat16"):  # rounded once, after the product
        for name, array in hf.tensors(*hf.load(tmp_path / "fp8", dtype)):
            wanted = meant[name] if "correction_bias" in name else meant[name].astype(dtype)
            np.testing.assert_array_equal(array, wanted, name)


@needs_8
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_fp8_on_a_mesh(tmp_path, mesh):
    fp8_checkpoint(tmp_path / "fp8", (128, 128))
    assert_same_bits(hf.load(tmp_path / "fp8", mesh=make_mesh(mesh))[0], hf.load(tmp_path / "fp8")[0])


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_dequantising_a_part_is_part_of_dequantising(data):
    """Against the formula of DeepSeek's `weight_dequant`, entry by entry."""
    draw = functools.partial(data.draw)
    shape, block = (tuple(draw(st.integers(1, n)) for _ in range(2)) for n in (12, 5))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    weight = random_e4m3(rng, shape)
    scale = rng.standard_normal(fp8.scale_shape(shape, block)).astype(np.float32)
    first = tuple(draw(st.integers(0, n - 1)) for n in shape)
    last = tuple(draw(st.integers(a + 1, n)) for a, n in zip(first, shape, strict=True))
    part = fp8.dequantise(weight[first[0] : last[0], first[1] : last[1]], scale, block, first)
    assert part.dtype == np.float32
    for i, j in np.ndindex(part.shape):
        r, c = first[0] + i, first[1] + j
        assert part[i, j] == np.float32(weight[r, c]) * scale[r // block[0], c // block[1]]


def test_saved_as_fp8(tmp_path):
    model, config = make_model(FP8)
    hf.save(tmp_path / "plain", model, config)
    hf.save(tmp_path / "a", model, config, quantise_fp8=True)
    original, stored = read_all(tmp_path / "plain"), read_all(tmp_path / "a")
    projections = {name for name in original if PROJECTION.fullmatch(name)}
    assert {name for name, a in stored.items() if a.dtype == E4M3} == projections
    assert stored.keys() == original.keys() | {f"{name}_scale_inv" for name in projections}
    loaded, read = hf.load(tmp_path / "a")
    assert read == config
    for name, array in hf.tensors(loaded, config):
        exact = original[name]
        if name not in projections:
            assert array.tobytes() == exact.tobytes(), name
            continue
        # e4m3 has 4 significant bits, and steps of 2^-9 below its smallest normal number.
        scale = np.repeat(np.repeat(stored[f"{name}_scale_inv"], 128, 0), 128, 1)[: exact.shape[0], : exact.shape[1]]
        assert (np.abs(array - exact) <= np.maximum(2.0**-4 * np.abs(exact), 2.0**-10 * scale) * (1 + 1e-6)).all(), name
    hf.save(tmp_path / "b", loaded, read, quantise_fp8=True)
    for name, array in read_all(tmp_path / "b").items():
        if name.endswith("_scale_inv"):  # 448 x scale / 448 is not always the same float32
            np.testing.assert_array_max_ulp(array, stored[name], 1)
        else:
            assert array.tobytes() == stored[name].tobytes(), name
    assert (tmp_path / "b" / "config.json").read_bytes() == (tmp_path / "a" / "config.json").read_bytes()


def test_quantising_nothing_and_the_largest():
    weight = np.zeros((130, 129), np.float32)
    weight[129, 128], weight[0, 128] = -3.0, 1e-45  # the least float32: a 448th of it is zero
    values, scales = fp8.quantise(weight)
    assert np.isfinite(scales).all() and (scales > 0).all()
    assert values[129, 128] == -448 and fp8.dequantise(values, scales, fp8.BLOCK)[129, 128] == -3
    np.testing.assert_array_equal(values[:128, :128].astype(np.float32), 0)


# ----------------------------------------------------------------------------------------------------- bad input

A_TENSOR = "model.layers.3.mlp.experts.5.up_proj.weight"


def config_change(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


def tensor_change(name, change):
    return lambda folder: rewrite(folder, {name: change(read_all(folder).get(name))})


def to_file_of(name, change):
    return lambda folder: change(TensorFiles(folder).entries[name].file)


def header_change(**changes):
    return to_file_of(A_TENSOR, lambda file: edit_header(file, lambda header: header[A_TENSOR].update(changes)))


def cut(size):
    return lambda file: file.write_bytes(file.read_bytes()[:size])


def as_fp8(array):
    return np.zeros(array.shape, E4M3)


YARN = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}
BAD = {
    "no folder": ("deepseek_v3", shutil.rmtree, r"config\.json is missing"),
    "no weights": (
        "qwen2",
        lambda f: [p.unlink() for p in f.iterdir() if p.name != "config.json"],
        r"copy holds no \*\.safetensors",
    ),
    "missing shard": (
        "deepseek_v3",
        lambda f: sorted(f.glob("*.safetensors"))[2].unlink(),
        r"model-00003-of-\d+\.safetensors is missing, which model\.safetensors\.index\.json lists for \d+ tensors",
    ),
    "cut in the header": ("deepseek_v3", to_file_of(A_TENSOR, cut(100)), r"\.safetensors is truncated \(100 bytes"),
    "cut in its length": ("deepseek_v3", to_file_of(A_TENSOR, cut(5)), r"\.safetensors is truncated \(5 bytes"),
    "cut in the data": ("deepseek_v3", to_file_of(A_TENSOR, cut(-1)), r"it has \d+ bytes of the \d+ its header"),
    "corrupt header": (
        "deepseek_v3",
        to_file_of(A_TENSOR, lambda f: f.write_bytes(f.read_bytes()[:8] + b"!" + f.read_bytes()[9:])),
        r"\.safetensors is no safetensors file",
    ),
    "header with other fields": ("deepseek_v3", header_change(shape=None), r"is no safetensors file"),
    "negative sizes": ("deepseek_v3", header_change(shape=[-16, -32]), rf"tensor {A_TENSOR} has a negative size"),
    "offset before the data": ("deepseek_v3", header_change(data_offsets=[-8, 2040]), rf"{A_TENSOR} has a negative"),
    "size that is not its shape's": (
        "deepseek_v3",
        header_change(shape=[16, 16]),
        rf"tensor {A_TENSOR} of shape \[16, 16\] and dtype F32 needs 1024 bytes, but its header gives it 2048",
    ),
    "dtype I8": ("deepseek_v3", header_change(dtype="I8"), rf"tensor {A_TENSOR} has dtype I8, which"),
    "dtype F8_E5M2": ("deepseek_v3", header_change(dtype="F8_E5M2"), rf"tensor {A_TENSOR} has dtype F8_E5M2, which"),
    "wrong shape": (
        "deepseek_v3",
        tensor_change(A_TENSOR, lambda a: a.T),
        rf"tensor {A_TENSOR} has shape \[32, 16\], but config\.json asks for \[16, 32\]",
    ),
    "missing tensor": ("deepseek_v3", tensor_change(A_TENSOR, lambda _: None), rf"copy has no tensor {A_TENSOR}"),
    "unknown tensor": (
        "deepseek_v3",
        tensor_change("model.layers.5.mlp.gate.weight", lambda _: np.ones((8, 32), np.float32)),
        r"model\.safetensors: tensor model\.layers\.5\.mlp\.gate\.weight has no place in DeepseekV3ForCausalLM",
    ),
    "an expert more": (
        "deepseek_v3",
        tensor_change("model.layers.2.mlp.experts.8.up_proj.weight", lambda _: np.ones((16, 32), np.float32)),
        r"tensor model\.layers\.2\.mlp\.experts\.8\.up_proj\.weight has no place",
    ),
    "FP8 without blocks": (
        "deepseek_v3", tensor_change(A_TENSOR, as_fp8), rf"tensor {A_TENSOR} is FP8, but config\.json has no"
    ),
    "FP8 without scales": (
        "deepseek_v3",
        lambda f: (tensor_change(A_TENSOR, as_fp8)(f), config_change(quantization_config=config_to_hf(DEEPSEEK, True)[
            "quantization_config"])(f)),
        rf"copy has no tensor {A_TENSOR}_scale_inv",
    ),
    "FP8 embedding": (
        "deepseek_v3",
        tensor_change("model.embed_tokens.weight", as_fp8),
        r"tensor model\.embed_tokens\.weight is FP8, which only projections may be",
    ),
    "module's embedding is another": (
        "deepseek_v3",
        tensor_change("model.layers.4.embed_tokens.weight", lambda a: np.where(np.arange(64)[:, None] == 63, -a, a)),
        r"tensor model\.layers\.4\.embed_tokens\.weight differs from model\.embed_tokens\.weight",
    ),
    "module's head is another": (
        "deepseek_v3",
        tensor_change("model.layers.4.shared_head.head.weight", lambda a: a.astype(BF16)),
        r"tensor model\.layers\.4\.shared_head\.head\.weight differs from lm_head\.weight",
    ),
    "tied head is another": (
        "qwen2",
        lambda f: rewrite(f, {"lm_head.weight": read_all(f)["model.embed_tokens.weight"] + 1}),
        r"model\.safetensors: tensor lm_head\.weight differs from model\.embed_tokens\.weight",
    ),
    "one tensor in two files": (
        "deepseek_v3",
        lambda f: (write_all(f, {A_TENSOR: np.ones((16, 32), np.float32)}), (f / INDEX).unlink()),
        rf"tensor {A_TENSOR} is in .*\.safetensors and in .*\.safetensors: keep one",
    ),
    "index naming a tensor in vain": (
        "deepseek_v3",
        lambda f: edit_json(f / INDEX, weight_map={"extra.weight": min(f.glob("*.safetensors")).name}),
        r"model-00001-of-\d+\.safetensors has no tensor extra\.weight, which model\.safetensors\.index\.json says",
    ),
    "corrupt index": ("deepseek_v3", lambda f: cut(50)(f / INDEX), r"index\.json is no index of safetensors files"),
    "index of paths": (
        "deepseek_v3",
        lambda f: edit_json(f / INDEX, weight_map={"a": "../a.safetensors"}),
        r"index\.json is no index .*must hold file names",
    ),
    "corrupt config": ("qwen2", lambda f: cut(50)(f / "config.json"), r"config\.json cannot be read"),
    "config that is no object": ("qwen2", lambda f: (f / "config.json").write_text("[]"), r"must hold a JSON object"),
    "unknown architecture": (
        "qwen2", config_change(architectures=["GPT2LMHeadModel"]), r"config\.json: architecture 'GPT2LMHeadModel'"
    ),
    "no architecture": ("qwen2", config_change(architectures=..., model_type="bert"), r"architecture 'bert' is not"),
    "missing field": ("qwen2", config_change(hidden_size=...), r"config\.json has no 'hidden_size'"),
    "missing field of MLA": ("deepseek_v3", config_change(kv_lora_rank=None), r"config\.json has no 'kv_lora_rank'"),
    "field of another type": ("qwen2", config_change(vocab_size="64"), r"vocab_size='64' must be a whole number"),
    "negative field": ("deepseek_v3", config_change(q_lora_rank=-1), r"q_lora_rank=-1 must be a whole number"),
    "field that cannot be": ("qwen2", config_change(num_key_value_heads=3), r"num_key_value_heads=3: must be"),
    "no heads": ("qwen2", config_change(num_attention_heads=0), r"config\.json"),
    "gelu": ("qwen2", config_change(hidden_act="gelu"), r"config\.json: hidden_act='gelu' is not supported"),
    "sliding window": ("qwen2", config_change(use_sliding_window=True), r"use_sliding_window=True is not supported"),
    "sliding layers": (
        "qwen3", config_change(layer_types=["full_attention", "sliding_attention"]), r"layer_types=\['sliding_att"
    ),
    "biases in Llama": ("llama3", config_change(attention_bias=True), r"attention_bias=True is not supported"),
    "softmax in DeepSeek": ("deepseek_v3", config_change(scoring_func="softmax"), r"scoring_func='softmax' is not"),
    "rope linear": (
        "qwen2", config_change(rope_scaling={"type": "linear", "factor": 2.0}), r"config\.json: rope type 'linear'"
    ),
    "rope without a factor": ("qwen2", config_change(rope_scaling={"type": "yarn"}), r"'yarn' needs 'factor'"),
    "rope factor of text": ("qwen2", config_change(rope_scaling=YARN | {"factor": "8"}), r"factor='8' must be"),
    "rope settings of text": ("qwen2", config_change(rope_scaling="yarn"), r"config\.json cannot be read"),
    "half of a head rotated": (
        "qwen2", config_change(rope_parameters={"partial_rotary_factor": 0.5}), r"partial_rotary_factor is not"
    ),
    "dense layers in between": ("qwen3_moe", config_change(mlp_only_layers=[1]), r"mlp_only_layers=\[1\] is not"),
    "quantised by AWQ": (
        "qwen2", config_change(quantization_config={"quant_method": "awq", "bits": 4}), r"quant_method='awq'"
    ),
    "FP8 per tensor": ("qwen2", config_change(quantization_config={"quant_method": "fp8"}), r"weight_block_size=None"),
    "FP8 blocks of nothing": (
        "qwen2",
        config_change(quantization_config={"quant_method": "fp8", "weight_block_size": [0, 128]}),
        r"weight_block_size=\[0, 128\]",
    ),
    "quantisation of text": ("qwen2", config_change(quantization_config="fp8"), r"quant_method=None"),
}  # fmt: skip


@pytest.fixture
def no_arrays(monkeypatch):
    """Whatever is wrong is said before anything is put on a device."""

    def fail(*_, **__):
        raise AssertionError("an array was made")

    monkeypatch.setattr(jax, "device_put", fail)


@pytest.mark.parametrize("name, damage, message", BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_a_sentence(copy_of, no_arrays, name, damage, message):
    folder = copy_of(name)
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as error:
        hf.load(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_copies_are_compared_to_their_last_row(copy_of):
    folder = copy_of("deepseek_v3")
    BAD["module's embedding is another"][1](folder)
    files = TensorFiles(folder)
    assert not hf._same(files, "model.layers.4.embed_tokens.weight", "model.embed_tokens.weight", rows=10)
    assert hf._same(files, "model.layers.4.shared_head.head.weight", "lm_head.weight", rows=10)


@pytest.mark.parametrize(
    "dtype, message",
    [
        ("float64", "dtype='float64': needs jax_enable_x64"),
        (jnp.int8, "dtype='int8': must be one of float32, bfloat16, float64"),
        ("fp8", "dtype='fp8': must be one of"),
    ],
)
def test_dtypes_that_cannot_be_held(published, no_arrays, dtype, message):
    with pytest.raises(ConfigError, match=message):
        hf.load(published("qwen2"), dtype)


def test_both_spellings_of_rope_settings():
    old = config_to_hf(DEEPSEEK)
    scaling = {name: value for name, value in old["rope_scaling"].items() if name != "type"}
    new = {name: value for name, value in old.items() if not name.startswith("rope_")}
    new |= {"rope_parameters": scaling | {"rope_theta": old["rope_theta"]}}
    assert config_from_hf(new) == config_from_hf(old) == DEEPSEEK.replace(initializer_range=0.02)
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    assert config_from_hf(config_to_hf(tiny_qwen2()) | plain).rope_theta == 7.0


@pytest.mark.parametrize(
    "config, message",
    [
        (CONFIGS["qwen3_moe"], r"router\.e_score_correction_bias is not zero, and Qwen3MoeForCausalLM has no place"),
        (tiny_qwen2(num_nextn_predict_layers=1), "is none of DeepseekV3ForCausalLM.*save it with Orbax"),
    ],
    ids=["softmax with a bias", "a module of Qwen2's"],
)
def test_decoders_that_no_published_architecture_computes(tmp_path, config, message):
    with pytest.raises(ConfigError, match=message):
        hf.save(tmp_path / "a", nnx.merge(graphdef(config), random_state(config)), config)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------- files written


def test_never_writes_over_a_checkpoint(copy_of):
    folder = copy_of("qwen2")
    (folder / "config.json").unlink()  # weights alone are enough to be spared
    before = contents(folder)
    with pytest.raises(CheckpointError, match=r"copy already holds a checkpoint: choose another folder"):
        hf.save(folder, *make_model(CONFIGS["qwen2"]))
    assert contents(folder) == before and [p.name for p in folder.parent.iterdir()] == ["copy"]


@pytest.mark.parametrize("moment", ["a tensor", "config.json"])
def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch, moment):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    model, config = make_model(CONFIGS["qwen2"])
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        owner, name, calls = (hf._Export, "read", 10) if moment == "a tensor" else (Path, "write_text", 2)
        real, left = getattr(owner, name), iter(range(calls, 0, -1))

        def fail(self, *args):
            if next(left) == 1:
                raise OSError(28, "No space left on device")
            return real(self, *args)

        patch.setattr(owner, name, fail)
        hf.save(folder, model, config, max_shard_size=40_000)
    assert contents(folder) == {"notes.txt": b"mine"} and [p.name for p in tmp_path.iterdir()] == ["model"]
    hf.save(folder, model, config)
    assert_same_bits(hf.load(folder)[0], model)


def test_config_json_which_makes_a_folder_a_checkpoint_comes_last(tmp_path, monkeypatch):
    moved = []
    monkeypatch.setattr(os, "replace", lambda source, target: moved.append(target.name))
    hf.save(tmp_path / "a", *make_model(CONFIGS["qwen2"]), max_shard_size=40_000)
    assert INDEX in moved[:-1] and moved[-1] == "config.json"


SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
TENSORS = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6), st.tuples(st.sampled_from([*DTYPES.values()]), SHAPES), max_size=6
)


@given(TENSORS, st.integers(1, 200), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_files_hold_what_was_written(tensors, max_shard_size, seed):
    rng = np.random.default_rng(seed)
    arrays = {n: rng.bytes(math.prod(s) * d.itemsize) for n, (d, s) in tensors.items()}
    arrays = {n: np.frombuffer(arrays[n], d).reshape(s) for n, (d, s) in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        names = write_all(Path(folder), arrays, max_shard_size)
        assert sorted(p.name for p in Path(folder).glob("*.safetensors")) == sorted(names)
        files = TensorFiles(folder)
        assert files.entries.keys() == arrays.keys()
        held = collections.defaultdict(list)
        for name, array in arrays.items():
            held[files.entries[name].file.name].append(array.nbytes)
            got = files.read(name)
            assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())
            index = tuple(slice(*sorted(rng.integers(0, n + 1, 2))) for n in array.shape)
            assert files.read(name, index).tobytes() == array[index].tobytes()
        assert all(len(sizes) == 1 or sum(sizes) <= max_shard_size for sizes in held.values())
        if len(names) > 1:
            index = json.loads((Path(folder) / INDEX).read_text())
            assert index["weight_map"] == {n: e.file.name for n, e in files.entries.items()}
            assert index["metadata"]["total_size"] == sum(a.nbytes for a in arrays.values())


def test_the_safetensors_library_reads_what_was_written(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    hf.save(tmp_path / "a", *make_model(FP8), quantise_fp8=True)
    names = {dtype: code for code, dtype in DTYPES.items()}
    read = dict(safetensors.deserialize((tmp_path / "a" / "model.safetensors").read_bytes()))
    stored = read_all(tmp_path / "a")
    assert read.keys() == stored.keys()
    for name, array in stored.items():
        tensor = read[name]
        assert (tensor["dtype"], tuple(tensor["shape"])) == (names[array.dtype], array.shape)
        assert bytes(tensor["data"]) == array.tobytes()


# -------------------------------------------------------------------------------------------------------- memory


@needs_8
@pytest.mark.parametrize("quantised", [False, True], ids=["bfloat16", "fp8"])
def test_streaming_holds_one_shard_and_one_tensor(tmp_path, monkeypatch, quantised):
    """In NumPy's arrays, which is what an import holds on the host (experiments/benchmarks/checkpoint_memory.py
    measures the whole process)."""
    config = tiny_config(
        vocab_size=256, hidden_size=256, num_hidden_layers=13, first_k_dense_replace=1, intermediate_size=256,
        moe_intermediate_size=256, num_nextn_predict_layers=0, param_dtype="bfloat16",
    )  # fmt: skip
    empty = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), graph_state(config))
    hf.save(tmp_path / "a", nnx.merge(graphdef(config), empty), config, quantise_fp8=quantised)
    device_put, aliased, beyond = jax.device_put, set(), 0

    def counting(local, device):
        nonlocal beyond
        beyond = max(beyond, tracemalloc.get_traced_memory()[1] - sum(size for _, size in aliased))
        array = device_put(local, device)
        if array.unsafe_buffer_pointer() == local.ctypes.data:  # a device of a CPU may keep NumPy's array as its own
            aliased.add((local.ctypes.data, local.nbytes))
        tracemalloc.reset_peak()
        return array

    monkeypatch.setattr(jax, "device_put", counting)
    tracemalloc.start()
    try:
        hf.load(tmp_path / "a", mesh=make_mesh({"expert": 2, "fsdp": 4}))
    finally:
        tracemalloc.stop()
    tensor = 256 * 256 * 4
    shard = 12 * 8 * tensor / 8
    assert shard <= beyond <= 1.3 * shard + tensor


def test_a_device_that_gives_its_parameters_away_leaves_the_others_theirs(published):
    """On a CPU, devices with the same shard hold the same memory, which is NumPy's."""
    buffer = hf._aligned_zeros((3, 5), np.dtype(np.float32))
    assert buffer.shape == (3, 5) and buffer.flags.writeable and not buffer.any()
    if jax.default_backend() == "cpu":
        assert jax.device_put(buffer, jax.devices()[0]).unsafe_buffer_pointer() == buffer.ctypes.data
    two = make_mesh({"data": 2}, jax.devices()[:2])
    weight = hf.load(published("qwen2"), mesh=two)[0].embed.weight[...]
    before = np.array(weight)
    first, second = (shard.data for shard in weight.addressable_shards)
    jax.block_until_ready(jax.jit(lambda x: 2 * x, donate_argnums=0)(first))
    np.testing.assert_array_equal(second, before)
