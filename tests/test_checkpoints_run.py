"""Checkpoints of a run: exact, sharded, trusted only when whole, and plain about what is wrong otherwise."""

import multiprocessing
import random
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import r1jax.checkpoints.run as run_module
from r1jax.checkpoints.run import RunCheckpoints
from r1jax.errors import CheckpointError


def make_state(step: int = 0) -> dict:
    """Every kind of leaf a run holds; all of it tells `step`, so that a mixture of two steps would show."""
    params = {"embed": jnp.full((64, 32), step, jnp.float32), "head": jnp.full((32,), step, jnp.bfloat16)}
    return {
        "params": params,
        "optimizer": optax.adamw(1e-3).init(params),
        "key_data": jax.random.key_data(jax.random.key(step)),
        "key": jax.random.key(step),
        "step": jnp.int32(step),
    }


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same_bits(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_round_trip_keeps_every_bit_and_the_meta(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = make_state(7)
    state["params"]["embed"] = state["params"]["embed"].at[0, :3].set(jnp.array([jnp.nan, -0.0, 1e-45]))
    meta = {"data_position": {"epoch": 1, "rows": [3, 4]}, "fingerprint": "abc"}
    RunCheckpoints("checkpoints").save(7, state, meta)
    step, restored, restored_meta = RunCheckpoints(tmp_path / "checkpoints").restore(abstract(state))
    assert (step, restored_meta) == (7, meta)
    assert_same_bits(state, restored)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 (simulated) devices")
def test_arrays_return_to_their_shards_and_to_other_shards(tmp_path):
    mesh = jax.make_mesh((2, 2), ("x", "y"), devices=jax.devices()[:4])
    array = jnp.arange(64.0).reshape(8, 8)
    saved = jax.device_put(array, NamedSharding(mesh, PartitionSpec("x", "y")))
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(1, {"w": saved}, {})
    for spec in (PartitionSpec("x", "y"), PartitionSpec(None, ("y", "x")), PartitionSpec()):
        sharding = NamedSharding(mesh, spec)
        _, restored, _ = checkpoints.restore({"w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding)})
        assert restored["w"].sharding == sharding
        np.testing.assert_array_equal(restored["w"], array)


def test_keeps_the_newest_and_restores_a_chosen_one(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=2)
    assert checkpoints.latest_step() is None
    for step in (1, 5, 9):
        checkpoints.save(step, make_state(step), {"step": step})
    assert checkpoints.steps() == [5, 9] and sorted(p.name for p in tmp_path.iterdir()) == ["00000005", "00000009"]
    step, state, meta = checkpoints.restore(abstract(make_state()), step=5)
    assert step == 5 and int(state["step"]) == 5 and meta == {"step": 5}
    with pytest.raises(CheckpointError, match=r"step=1: .* steps \[5, 9\] only"):
        checkpoints.restore(abstract(make_state()), step=1)


def test_never_writes_over_a_newer_checkpoint(tmp_path):
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(5, make_state(5), {})
    for step in (4, 5):
        with pytest.raises(CheckpointError, match=rf"cannot save step {step}: .*00000005.*resume from step 5"):
            checkpoints.save(step, make_state(step), {})
    assert checkpoints.steps() == [5]


def test_nothing_saved_is_said_plainly(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere holds no complete checkpoint: check the path"):
        RunCheckpoints(tmp_path / "nowhere").restore(abstract(make_state()))
    with pytest.raises(CheckpointError, match="keep=0"):
        RunCheckpoints(tmp_path, keep=0)


def flip_one_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "bit flipped": flip_one_bit,
    "removed": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_to_any_file_is_noticed_and_the_way_out_works(tmp_path, damage):
    checkpoints, wanted = RunCheckpoints(tmp_path), abstract(make_state())
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {})
    folder = tmp_path / "00000002"
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 5
    for path in files:
        whole = path.read_bytes()
        damage(path)
        if path.name == "complete.json" and not path.exists():  # without its record a step does not count at all
            assert checkpoints.restore(wanted)[0] == 1
        else:
            with pytest.raises(CheckpointError) as error:
                checkpoints.restore(wanted)
            assert f"{folder} is damaged" in str(error.value)
            assert str(error.value).endswith("delete that folder to continue from step 1")
            assert "\n" not in str(error.value)
        path.write_bytes(whole)
    assert checkpoints.restore(wanted)[0] == 2
    shutil.rmtree(folder)
    assert checkpoints.restore(wanted)[0] == 1


def test_changed_meta_is_noticed(tmp_path):
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(1, make_state(1), {"data_position": 4096})
    record = tmp_path / "00000001" / "complete.json"
    record.write_text(record.read_text().replace("4096", "4097"))
    with pytest.raises(CheckpointError, match=r"00000001 is damaged \(complete.json was changed\): delete that folder"):
        checkpoints.restore(abstract(make_state()))


def test_without_verify_sizes_are_still_checked(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, verify=False)
    checkpoints.save(3, make_state(3), {})
    assert_same_bits(checkpoints.restore(abstract(make_state()))[1], make_state(3))
    largest = max((p for p in tmp_path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    DAMAGE["truncated"](largest)
    with pytest.raises(CheckpointError, match=r"bytes instead of \d+\): delete that folder to start the run again"):
        checkpoints.restore(abstract(make_state()))


def test_another_configuration_is_named_by_its_first_leaf(tmp_path):
    checkpoints, state = RunCheckpoints(tmp_path), make_state()
    checkpoints.save(1, state, {})

    def refuse(change: dict, message: str):
        wanted = abstract(state)
        wanted["params"] |= {
            name: jax.ShapeDtypeStruct(*leaf, sharding=state["step"].sharding) if leaf else None
            for name, leaf in change.items()
        }
        with pytest.raises(CheckpointError, match="is from another configuration: at leaf " + message):
            checkpoints.restore(wanted)

    refuse({"embed": ((64, 16), jnp.float32)}, r"params/embed it has \(64, 32\) float32 .* needs \(64, 16\) float32;")
    refuse({"embed": ((64, 32), jnp.bfloat16)}, r"params/embed it has \(64, 32\) float32 .* needs \(64, 32\) bfloat16;")
    refuse({"bias": ((3,), jnp.float32)}, r"params/bias it has nothing where this run needs \(3,\) float32;")
    refuse({"head": None}, r"params/head it has \(32,\) bfloat16 where this run needs nothing;")


def test_a_full_disk_leaves_the_older_checkpoint_and_no_rubbish(tmp_path):
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(1, make_state(1), {})
    noise = {"w": jax.random.normal(jax.random.key(0), (200, 200))}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))  # the kernel refuses larger files as a full disk would
    try:
        with pytest.raises(CheckpointError) as error:
            checkpoints.save(2, noise, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "00000002 could not be written (File too large" in str(error.value)
    assert str(error.value).endswith("step 1 is still there")
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]
    checkpoints.save(2, noise, {})
    assert checkpoints.latest_step() == 2


def test_a_disk_that_fills_at_the_last_write_is_no_commit(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    checkpoints = RunCheckpoints(tmp_path)
    monkeypatch.setattr(run_module, "_write_record", no_space)
    with pytest.raises(CheckpointError, match=r"No space left on device\): free .* there is no older checkpoint"):
        checkpoints.save(2, make_state(2), {})
    assert list(tmp_path.iterdir()) == []


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the code under test may run."""


@pytest.mark.parametrize(
    "moment", ["writing the record", "moving it into place", "hashing", "deleting the older checkpoint"]
)
def test_killed_at_a_chosen_moment(tmp_path, monkeypatch, moment):
    checkpoints = RunCheckpoints(tmp_path, keep=1)
    checkpoints.save(1, make_state(1), {})
    owner, function = {
        "writing the record": (run_module, "_write_record"),
        "moving it into place": (type(checkpoints.directory), "replace"),
        "hashing": (run_module, "_describe_files"),
        "deleting the older checkpoint": (type(checkpoints.directory), "rmtree"),
    }[moment]

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, function, kill)
        checkpoints.save(2, make_state(2), {})
    survivor = 2 if function == "rmtree" else 1
    reopened = RunCheckpoints(tmp_path, keep=1)
    assert reopened.steps() == [survivor]
    assert_same_bits(reopened.restore(abstract(make_state()))[1], make_state(survivor))
    reopened.save(3, make_state(3), {})
    assert [p.name for p in tmp_path.iterdir()] == ["00000003"]


def save_for_ever(directory: str, started) -> None:
    checkpoints = RunCheckpoints(directory)
    step = (checkpoints.latest_step() or 0) + 1
    while True:
        checkpoints.save(step, make_state(step), {"step": step})
        started.set()
        step += 1


def test_sigkill_at_random_moments(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["r1jax.checkpoints.run", "optax"])  # imported once: children start in no time
    moments, checkpoints, newest = random.Random(0), RunCheckpoints(tmp_path), 0
    for _ in range(5):
        started = context.Event()
        child = context.Process(target=save_for_ever, args=(str(tmp_path), started), daemon=True)
        child.start()
        assert started.wait(60)
        time.sleep(moments.uniform(0.0, 0.2))
        child.kill()
        child.join()
        step, state, meta = checkpoints.restore(abstract(make_state()))
        assert step > newest and meta == {"step": step}
        assert_same_bits(state, make_state(step))
        newest = step
    checkpoints.save(newest + 1, make_state(newest + 1), {})
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == checkpoints.steps()
