"""tpu/aot.py: what it compiles on eight simulated devices, what it counts, and, with libtpu, a small TPU topology."""

import importlib.util
import io
import sys
from pathlib import Path

import jax
import pytest
from helpers import tiny_config
from rich.console import Console

from r1jax.configs.training import GRPOConfig
from r1jax.errors import ConfigError
from r1jax.recipes.config import MeshConfig
from r1jax.sharding import make_mesh

SCRIPT = Path(__file__).parents[1] / "tpu/aot.py"
MESH = {"fsdp": 4, "expert": 2}
CONFIG = GRPOConfig(num_prompts=4, num_generations=2, max_completion_length=8)
# Two layers, one of each kind, and no MTP: nothing that the programs do is left out, and they compile in seconds.
MODEL = tiny_config(num_hidden_layers=2, first_k_dense_replace=1, num_nextn_predict_layers=0, remat=True)


def load():
    spec = importlib.util.spec_from_file_location("aot", SCRIPT)
    module = sys.modules["aot"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


aot = load()
has_libtpu = importlib.util.find_spec("libtpu") is not None


def compile_all(model, mesh):
    """By program: (program, training state, need, compiled)."""
    pairs = aot.programs(model, CONFIG, 8, mesh)
    return {program.name: (program, state, *aot.compile_program(program, state)) for program, state in pairs}


@pytest.fixture(scope="module")
def compiled():
    return compile_all(MODEL, make_mesh(MESH))


def test_every_program_compiles_and_is_accounted_for(compiled):
    assert set(compiled) == set(aot.PROGRAMS)
    for name, (program, _, need, _) in compiled.items():
        given = aot.bytes_per_chip(program.args)
        # XLA drops what a program does not read: the reference's correction bias, the sampler's unused limits.
        assert 0.9 * given <= need.arguments <= given + 4096, name
        assert need.temporaries > 0


def test_what_a_program_is_not_given_is_kept(compiled):
    state, kept = compiled["update"][1], {name: entry[2].kept for name, entry in compiled.items()}
    whole = aot.bytes_per_chip(state)
    assert kept == {
        "update": 0,
        "logps": whole - aot.bytes_per_chip((state.ref_params, state.buffers)),
        "sample": whole - aot.bytes_per_chip((state.params, state.buffers)),
        "decode": whole,  # it is given a copy
    }


def test_the_state_is_split_and_donated(compiled):
    """Adam's moments and the gradients lie as the parameters do: nothing of the size of the whole model is left."""
    _, state, need, program = compiled["update"]
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    assert aot.bytes_per_chip(state.params) < 4 * parameters / 3
    assert state.ref_params["embed"]["weight"].get_value().dtype == "bfloat16"
    assert need.outputs < aot.bytes_per_chip(state.params)  # in the donated state's place
    assert program.memory_analysis().alias_size_in_bytes > 2 * aot.bytes_per_chip(state.params)


def test_the_table_says_what_does_not_fit():
    need = aot.Need("update", 61.0, int(60e9), int(1e9), int(30e9), int(5e9))
    assert need.total == 96e9
    console = Console(file=io.StringIO(), width=110)
    console.print(aot.table([need], 95, "title"), aot.table([need], 96, "title"))
    text = console.file.getvalue()
    assert "fits 95 GB" in text and " NO " in text and " yes " in text and "96.00" in text


def test_without_libtpu_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"libtpu is not installed.*r1jax\[tpu\]"):
        aot.topology_devices("v5p:8x8x8")


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(preset="deepseek"), ["preset='deepseek'", "deepseek-v3-671b"]),
        (dict(topology="h100:8"), ["topology='h100:8'", "--limit", "v5p"]),
        (dict(sequences=500), ["group=16", "500"]),
        (dict(prompt=5000), ["prompt=5000", "4096"]),
    ],
)
def test_options_that_cannot_work_are_named(options, words):
    with pytest.raises(ConfigError) as error:
        aot.main(aot.Options(**options))
    for word in words:
        assert word in str(error.value)


@pytest.mark.skipif(not has_libtpu, reason="libtpu is not installed (pip install 'r1jax[tpu]')")
def test_a_tpu_topology_that_is_not_there():
    mesh = make_mesh(MESH, aot.topology_devices("v5p:2x2x2"))
    model = MODEL.replace(dtype="bfloat16", moe_backend="ragged", attention_chunk=8, logits_chunk=8, moe_chunk=8)
    assert all(0 < need.total < 95e9 for _, _, need, _ in compile_all(model, mesh).values())


@pytest.mark.skipif(not has_libtpu, reason="libtpu is not installed (pip install 'r1jax[tpu]')")
def test_an_unknown_topology_is_named():
    with pytest.raises(ConfigError, match="topology='v5p:9x9x9x9'"):
        aot.main(aot.Options(topology="v5p:9x9x9x9", mesh=MeshConfig()))
