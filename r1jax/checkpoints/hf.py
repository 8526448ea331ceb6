"""Published checkpoints in and out: folders of config.json and safetensors, as the Hugging Face hub has them.

Tensors are read straight into the shards that hold them, by a few threads with one tensor each; no more than one shard
of one stacked parameter is on the host at once, beside those that CPU devices hold.
"""

from __future__ import annotations

import functools
import gc
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from rich.console import Console

from r1jax import sharding
from r1jax.checkpoints import fp8
from r1jax.checkpoints.hf_config import architecture_of, config_from_hf, config_to_hf, fp8_block, read_json
from r1jax.checkpoints.hf_names import Source, copies, sources
from r1jax.checkpoints.tensor_files import Entry, Planned, TensorFiles, write_tensors
from r1jax.configs.model import ModelConfig
from r1jax.errors import CheckpointError, ConfigError, check_field
from r1jax.models.decoder import Decoder
from r1jax.progress import stage

# What a tokenizer and a generation loop need besides the weights; copied as they are.
ASSETS = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "generation_config.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_DTYPES = ("float32", "bfloat16", "float64")
_READERS = min(4, os.cpu_count() or 1)  # threads, each of which holds a tensor


def load(
    path: str | os.PathLike,
    dtype: jax.typing.DTypeLike = jnp.float32,
    mesh: jax.sharding.Mesh | None = None,
    *,
    show_progress: bool = False,
    **changes: object,
) -> tuple[Decoder, ModelConfig]:
    """A published model, whole or not at all.

    Args:
      path: a folder with config.json and *.safetensors (several with an index), whose weights are float32, bfloat16,
        float16 or FP8 in blocks. Architectures: those of `r1jax.checkpoints.hf_config.ARCHITECTURES`.
      dtype: of parameters and activations, "float32", "bfloat16" or "float64". The routers' correction bias is always
        float32.
      mesh: from `r1jax.sharding.make_mesh`; parameters are laid out over it as the learner has them. None: one device.
      show_progress: a bar on the terminal.
      changes: other fields of `ModelConfig` that do not change the function, such as remat=True.

    Returns:
      The model and its config: `model(tokens)` gives float32 logits [B, T, vocab], `model.mtp_logits(tokens)` those of
      the prediction module if the checkpoint has one.

    Raises:
      CheckpointError: naming the file and the tensor, whatever is missing, damaged, unknown or of the wrong shape.
      ConfigError: a dtype that cannot be held, or a mesh that does not divide the model.
    """
    folder = Path(path)
    name = checked_dtype(dtype)
    config, files = describe(folder)
    block = fp8_block(read_json(folder / "config.json"), str(folder / "config.json"))
    config = config.replace(dtype=name, param_dtype=name, **changes)

    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(params=0))))
    if mesh is None:
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        places = jax.tree.map(lambda v: v.replace(place), state, is_leaf=lambda v: isinstance(v, nnx.Variable))
    else:
        places = sharding.state_shardings(state, sharding.Layout(mesh, "learn"))
    wanted = sources(config, state)
    variables = dict(nnx.to_flat_state(state))
    _check_tensors(files, config, variables, wanted, block)

    places = dict(nnx.to_flat_state(places))
    loaded = []
    with stage(f"loading {folder.name}", len(variables), console=Console(quiet=not show_progress)) as progress:
        for at, variable in variables.items():
            value = _read_parameter(files, wanted[at], variable, places[at].get_value(), block)
            loaded.append((at, variable.replace(value)))
            progress.advance()
    return nnx.merge(graph, nnx.from_flat_state(loaded)), config


def describe(path: str | os.PathLike) -> tuple[ModelConfig, TensorFiles]:
    """The shape of a published model, and its tensors, none of them read. Raises `CheckpointError`."""
    folder = Path(path)
    config, files = config_from_hf(read_json(folder / "config.json"), str(folder / "config.json")), TensorFiles(folder)
    after = f"model.layers.{config.num_hidden_layers}."
    if not any(tensor.startswith(after) for tensor in files.entries):
        config = config.replace(num_nextn_predict_layers=0)  # transformers, for one, drops the module when it saves
    return config, files


def checked_dtype(dtype: jax.typing.DTypeLike) -> str:
    """The name of a dtype that parameters can have, or a `ConfigError`."""
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    check_field(name in _DTYPES, "dtype", name, f"must be one of {', '.join(_DTYPES)}")
    held = jax.dtypes.canonicalize_dtype(name).name
    check_field(held == name, "dtype", name, "needs jax_enable_x64, without which JAX holds float32")
    return name


def _check_tensors(
    files: TensorFiles,
    config: ModelConfig,
    variables: dict,
    wanted: dict,
    block: tuple[int, int] | None,
) -> None:
    """Raises `CheckpointError` unless the files hold exactly the tensors of the model, before any is read."""
    repeated = copies(config)
    known = set(repeated)
    for path, variable in variables.items():
        source = wanted[path]
        for at, name in np.ndenumerate(source.names) if source else ():
            shape = source.shape(variable.shape[len(at) :])
            entry = _check_tensor(files, name, shape)
            known.add(name)
            if entry.code == "F8_E4M3":
                if not source.inputs:
                    raise CheckpointError(
                        f"{entry.file}: tensor {name} is FP8, which only projections may be; convert it to bfloat16"
                    )
                if block is None:
                    raise CheckpointError(
                        f"{entry.file}: tensor {name} is FP8, but config.json has no quantization_config that gives "
                        f"its blocks: copy the published config.json"
                    )
                _check_tensor(files, name + fp8.SUFFIX, fp8.scale_shape(shape, block))
                known.add(name + fp8.SUFFIX)
    for name, entry in files.entries.items():
        if name not in known and not name.endswith(".rotary_emb.inv_freq"):  # Llama's files of old hold a constant
            raise CheckpointError(
                f"{entry.file}: tensor {name} has no place in {architecture_of(config)} as config.json describes it; "
                f"use the config.json that was published with these files"
            )
    if jax.process_index() == 0:
        for name, original in repeated.items():
            if name in files.entries and not _same(files, name, original):
                raise CheckpointError(
                    f"{files.entries[name].file}: tensor {name} differs from {original}, but r1jax holds only one of "
                    f"them; untie them in config.json, or leave the prediction module out"
                )


def _check_tensor(files: TensorFiles, name: str, shape: tuple[int, ...]) -> Entry:
    entry = files.entries.get(name)
    if entry is None:
        raise CheckpointError(
            f"{files.folder} has no tensor {name}, which its config.json asks for: copy all its files"
        )
    if entry.shape != shape:
        raise CheckpointError(
            f"{entry.file}: tensor {name} has shape {list(entry.shape)}, but config.json asks for {list(shape)}; "
            f"use the config.json that was published with these files"
        )
    return entry


def _same(files: TensorFiles, name: str, original: str, rows: int = 4096) -> bool:
    """Whether two tensors are equal, bit for bit, read a few rows at a time."""
    a, b = files.entries[name], files.entries[original]
    if (a.code, a.shape) != (b.code, b.shape):
        return False
    parts = (slice(i, i + rows) for i in range(0, a.shape[0], rows))
    return all(np.array_equal(*(files.read(n, (part,)).view(np.uint8) for n in (name, original))) for part in parts)


def _read_parameter(
    files: TensorFiles,
    source: Source | None,
    variable: nnx.Variable,
    place: jax.sharding.Sharding,
    block: tuple[int, int] | None,
) -> jax.Array:
    """One parameter, shard by shard; shards that several devices share are read once."""
    shape, dtype = variable.shape, jnp.dtype(variable.dtype)
    devices: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in place.addressable_devices_indices_map(shape).items():
        bounds = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
        devices.setdefault(bounds, []).append(device)
    arrays = []
    for bounds, holders in devices.items():
        local = _read_shard(files, source, shape, bounds, dtype, block)
        # Waited for, so that the host's copy (on CPU it is the parameter) is gone before the next one is made: jaxlib
        # lets go of what it has copied only when Python collects garbage.
        arrays += [jax.block_until_ready(jax.device_put(local, device)) for device in holders]
        del local
        gc.collect(0)
    return jax.make_array_from_single_device_arrays(shape, place, arrays)


def _read_shard(
    files: TensorFiles,
    source: Source | None,
    shape: tuple[int, ...],
    bounds: tuple[tuple[int, int], ...],
    dtype: np.dtype,
    block: tuple[int, int] | None,
) -> np.ndarray:
    """Part `bounds` of a parameter of this shape, on the host; zeros if no tensor is its source."""
    local = _aligned_zeros([stop - start for start, stop in bounds], dtype)
    if source is None:
        return local
    stacked = source.names.ndim

    def read(at: tuple[int, ...]) -> None:
        name = source.names[tuple(start + i for i, (start, _) in zip(at, bounds, strict=False))]
        _read_piece(files, name, source, shape[stacked:], bounds[stacked:], block, local[at])

    with ThreadPoolExecutor(_READERS) as readers:
        for _ in readers.map(read, np.ndindex(local.shape[:stacked])):  # raises what a reader raised
            pass
    return local


def _aligned_zeros(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Zeros that a CPU device takes as they are, without a copy: JAX asks for 64-byte alignment."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + 64, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + size].view(dtype).reshape(shape)


def _read_piece(
    files: TensorFiles,
    name: str,
    source: Source,
    piece: tuple[int, ...],
    bounds: tuple[tuple[int, int], ...],
    block: tuple[int, int] | None,
    out: np.ndarray,
) -> None:
    """Fills `out` with part `bounds` of one layer's (and expert's) parameter of shape `piece`."""
    if source.table:
        out[...] = files.read(name, tuple(slice(*b) for b in bounds))
        return
    inputs = _flat(piece[: source.inputs], bounds[: source.inputs])
    outputs = _flat(piece[source.inputs :], bounds[source.inputs :])
    index = (outputs, inputs) if source.inputs else (outputs,)
    tensor = files.read(name, index)
    if tensor.dtype == fp8.DTYPE:
        first = (outputs.start, inputs.start)
        tensor = fp8.dequantise(tensor, files.read(name + fp8.SUFFIX), block, first)
    out = out.reshape(tensor.shape[::-1])
    for i in range(0, len(tensor), 256):  # in bands that the caches hold, or large matrices take twice as long
        out[..., i : i + 256] = tensor[i : i + 256].T


def _flat(shape: tuple[int, ...], bounds: tuple[tuple[int, int], ...]) -> slice:
    """The rows of the flattened axes that `bounds` takes; only the first axis of several is ever split."""
    if not shape:
        return slice(0, 1)
    rest = math.prod(shape[1:])
    if any((start, stop) != (0, n) for n, (start, stop) in zip(shape[1:], bounds[1:], strict=True)):
        raise ValueError(f"axes {shape[1:]} must be whole, not {bounds[1:]}")
    return slice(bounds[0][0] * rest, bounds[0][1] * rest)


# ------------------------------------------------------------------------------------------------------- export


def tensors(model: Decoder, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """(published name, array in the published layout) of every parameter, layer by layer, one at a time on the host."""
    for tensor in _plan(model, config):
        yield tensor.name, tensor.read()


class _Export:
    """One tensor to write: which part of which parameter, and how it is laid out."""

    def __init__(self, name: str, source: Source, value: jax.Array, at: tuple[int, ...], host: _HostCopy):
        self.name, self.source, self.value, self.at, self.host = name, source, value, at, host
        self.shape = source.shape(value.shape[len(at) :])
        self.dtype = np.dtype(value.dtype)

    def read(self) -> np.ndarray:
        whole = self.host.read(self.value, self.at)
        if not self.source.inputs:
            return whole.reshape(self.shape)
        return np.ascontiguousarray(whole.reshape(self.shape[::-1]).T)


class _HostCopy:
    """The one layer of one parameter that is on the host."""

    def __init__(self):
        self._key, self._array = None, None

    def read(self, value: jax.Array, at: tuple[int, ...]) -> np.ndarray:
        key = (id(value), at[:1])
        if key != self._key:
            self._key, self._array = None, None  # dropped before the next is made
            self._array = np.asarray(_take(value, at[0]) if at else _whole(value))
            self._key = key
        return self._array[at[1:]] if at else self._array


def _replicated(value: jax.Array) -> jax.sharding.Sharding | None:
    if isinstance(value.sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(value.sharding.mesh, jax.sharding.PartitionSpec())
    return None


@functools.cache
def _taker(place: jax.sharding.Sharding | None) -> Callable[[jax.Array, jax.Array], jax.Array]:
    # The index is traced: one program serves all layers.
    return jax.jit(lambda x, i: lax.dynamic_index_in_dim(x, i, keepdims=False), out_shardings=place)


@functools.cache
def _gatherer(place: jax.sharding.Sharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=place)


def _take(value: jax.Array, i: int) -> jax.Array:
    """Entry i of the first axis, whole on every device."""
    return _taker(_replicated(value))(value, jnp.int32(i))


def _whole(value: jax.Array) -> jax.Array:
    place = _replicated(value)
    return value if place is None else _gatherer(place)(value)


def _plan(model: Decoder, config: ModelConfig) -> list[_Export]:
    """Every tensor to write, in the order of layers."""
    state = nnx.state(model)
    values = {path: variable.get_value() for path, variable in nnx.to_flat_state(state)}
    host = _HostCopy()
    plan: list[tuple[float, _Export]] = []
    by_name: dict[str, _Export] = {}
    for path, source in sources(config, state).items():
        value = values[path]
        if source is None:
            if bool(jnp.any(value != 0)):
                raise ConfigError(
                    f"parameter {'.'.join(map(str, path))} is not zero, and {architecture_of(config)} has no place for "
                    f"it: save the model with Orbax instead"
                )
            continue
        for at, name in np.ndenumerate(source.names):
            export = _Export(name, source, value, at, host)
            by_name[name] = export
            layer = name.split(".")[2] if name.startswith("model.layers.") else None
            last = float("inf") if name != "model.embed_tokens.weight" else -1.0
            plan.append((float(layer) if layer is not None else last, export))
    for name, original in copies(config).items():
        if name.startswith("model.layers."):  # a tied head is not written twice
            of = by_name[original]
            plan.append((float(name.split(".")[2]), _Export(name, of.source, of.value, of.at, host)))
    return [export for _, export in sorted(plan, key=lambda item: item[0])]


def save(
    path: str | os.PathLike,
    model: Decoder,
    config: ModelConfig,
    *,
    assets: str | os.PathLike | None = None,
    token_ids: Mapping[str, object] | None = None,
    quantise_fp8: bool = False,
    max_shard_size: int = 5_000_000_000,
    show_progress: bool = False,
) -> None:
    """Writes a model as the hub has it: safetensors with an index, and config.json.

    Args:
      path: a folder that holds no checkpoint yet. Nothing is in it until all has been written.
      assets: a checkpoint folder whose tokenizer, chat template and generation_config.json come along.
      token_ids: "bos_token_id" and so on for config.json, and for generation_config.json where `assets` has none.
      quantise_fp8: projections of attention and MLPs as e4m3 with a scale for each 128 x 128 block, as DeepSeek
        publishes them; whatever they are not is in the parameters' own dtype.
      max_shard_size: bytes in a file.

    Raises:
      ConfigError: a decoder that no published architecture computes.
      CheckpointError: a folder that already holds one.
    """
    folder = Path(path)
    description = config_to_hf(config.replace(param_dtype=_dtype_of(model)), quantise_fp8)
    if assets is not None:
        source = read_json(Path(assets) / "config.json") if (Path(assets) / "config.json").exists() else {}
        description |= {name: source[name] for name in _IDS if name in source}
    description |= token_ids or {}
    if (folder / "config.json").exists() or any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} already holds a checkpoint: choose another folder, or remove it first")
    exports = _plan(model, config)
    console = Console(quiet=not show_progress)
    partial = folder.absolute().with_name(f"{folder.absolute().name}.partial")
    writer = jax.process_index() == 0
    if writer:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    quantised = {e.name for e in exports if quantise_fp8 and _is_projection(e)}

    def planned() -> Iterator[Planned]:
        for e in exports:
            if e.name in quantised:
                yield Planned(e.name, fp8.DTYPE, e.shape)
                yield Planned(e.name + fp8.SUFFIX, np.dtype(np.float32), fp8.scale_shape(e.shape, fp8.BLOCK))
            else:
                yield Planned(e.name, e.dtype, e.shape)

    def arrays() -> Iterator[np.ndarray]:
        with stage(f"writing {folder.name}", len(exports), console=console) as progress:
            for e in exports:
                progress.advance()  # here, because nobody asks for more after the last
                if e.name in quantised:
                    yield from fp8.quantise(e.read())
                else:
                    yield e.read()

    if not writer:  # takes part in gathering each tensor, and drops it
        for _ in arrays():
            pass
        return
    try:
        write_tensors(partial, planned(), arrays(), max_shard_size, {"format": "pt"})
        if assets is not None:
            copy_assets(assets, partial)
        if token_ids and not (partial / "generation_config.json").exists():
            (partial / "generation_config.json").write_text(json.dumps(dict(token_ids), indent=2) + "\n")
        (partial / "config.json").write_text(json.dumps(description, indent=2) + "\n")
        folder.mkdir(parents=True, exist_ok=True)
        # config.json, by which a folder is known as a checkpoint, comes last.
        for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_assets(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies a checkpoint's tokenizer, chat templates and generation settings."""
    for name in ASSETS:
        if (Path(source) / name).is_file():
            shutil.copyfile(Path(source) / name, Path(target) / name)
    templates = Path(source) / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, Path(target) / templates.name, dirs_exist_ok=True)


def _is_projection(export: _Export) -> bool:
    """Whether DeepSeek's FP8 checkpoints quantise this tensor: not routers, head, embedding or the MTP's projection."""
    name = export.name.removesuffix("_with_mqa.weight").removesuffix(".weight")
    return export.source.inputs > 0 and name.endswith("_proj") and not name.endswith("eh_proj")


def _dtype_of(model: Decoder) -> str:
    return jnp.dtype(model.embed.weight[...].dtype).name
