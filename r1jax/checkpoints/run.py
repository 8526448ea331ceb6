"""Checkpoints of a whole run: Orbax writes the arrays, a hashed record written last says that they can be trusted.

    <directory>/00000120/state/          the arrays (Orbax, OCDBT)
    <directory>/00000120/complete.json   meta, every leaf's shape and dtype, every file's size and SHA-256

A step counts only once `complete.json` is there. It is moved into place after everything else is on disk and removed
before anything else is deleted, so being killed at any instant never leaves a half checkpoint that looks whole. The
hashes are ours because Orbax has none for array data: a flipped bit restores as a wrong weight, silently.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from r1jax.errors import CheckpointError

PyTree = Any


class RunCheckpoints:
    """The checkpoints of one run, one folder a step. In a run of several processes, all of them make every call.

    Args:
        directory: where the step folders live, created by the first save. Opening it changes nothing on disk, so a
            reader may look at a run that is still writing.
        keep: how many of the newest complete checkpoints to keep, at least 1.
        verify: hash every file when saving and check the hashes when restoring, the files shared out over the
            processes. With terabytes a process that takes minutes; without it only missing and truncated files show.
    """

    def __init__(self, directory: epath.PathLike, keep: int = 2, verify: bool = True):
        if keep < 1:
            raise CheckpointError(f"keep={keep}: at least 1 checkpoint has to be kept")
        self.directory = epath.Path(directory).resolve()  # Orbax takes absolute paths only
        self.keep = keep
        self.verify = verify
        self._orbax = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True))

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, ascending."""
        return sorted(int(folder.name) for folder in self._folders() if _record(folder).exists())

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step; None before the first save."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: PyTree, meta: dict) -> None:
        """Writes `state` (a pytree of jax arrays, sharded or not) and `meta` (JSON-able); returns when both are safe.

        Only then are checkpoints beyond `keep` deleted. Raises `CheckpointError` if `step` does not lie after the
        newest checkpoint, or if writing fails (a full disk): the half-written folder is removed, older ones stay.
        """
        newest, folder = self.latest_step(), self._folder(step)
        if newest is not None and step <= newest:
            raise CheckpointError(
                f"cannot save step {step}: {self._folder(newest)} is not older; "
                f"resume from step {newest}, delete that folder, or use another run folder"
            )
        leaves = _named_leaves(state)
        record = {"step": step, "meta": meta, "leaves": _signature(leaves)}
        json.dumps(record)  # a meta that is not JSON fails here, before any file is written
        try:
            if jax.process_index() == 0:
                self._remove_incomplete()
                folder.mkdir(parents=True, exist_ok=True)
            self._orbax.save(folder / "state", args=ocp.args.PyTreeSave(leaves))
            record["files"] = _describe_files(folder / "state", self.verify)
            if jax.process_index() == 0:
                _write_record(folder, record)
        except (OSError, ValueError) as error:  # tensorstore reports an I/O error as a ValueError
            with contextlib.suppress(OSError):
                _delete(folder)
            kept = "there is no older checkpoint" if newest is None else f"step {newest} is still there"
            reason = " ".join(str(error).split()).rpartition(": ")[2]
            raise CheckpointError(
                f"{folder} could not be written ({reason}): "
                f"free some disk space or mend the permissions and run again; {kept}"
            ) from error
        multihost_utils.sync_global_devices(f"r1jax checkpoint {step}")
        if jax.process_index() == 0:
            for old in self.steps()[: -self.keep]:
                _delete(self._folder(old))

    def restore(
        self, abstract_state: PyTree, step: int | None = None, partial: bool = False
    ) -> tuple[int, PyTree, dict]:
        """Reads the checkpoint of `step` (default: the newest) straight into its shards.

        `abstract_state` is a pytree of `jax.ShapeDtypeStruct` with shardings, which may differ from those of the run
        that saved; with `partial` it may lack leaves that were saved, which are not read. Returns (step, state, meta).
        Raises `CheckpointError` if there is no such checkpoint, if a file was removed or changed, or if a leaf has
        another shape or dtype.
        """
        complete = self.steps()
        if not complete:
            raise CheckpointError(f"{self.directory} holds no complete checkpoint: check the path, or start a new run")
        step = complete[-1] if step is None else step
        if step not in complete:
            raise CheckpointError(f"step={step}: {self.directory} holds complete checkpoints of steps {complete} only")
        folder = self._folder(step)
        leaves = _named_leaves(abstract_state)
        with _damage_named(folder, older=max((s for s in complete if s < step), default=None)):
            record = _read_record(folder)
            saved = {n: s for n, s in record["leaves"].items() if n in leaves} if partial else record["leaves"]
            _check_signature(folder, saved=saved, wanted=_signature(leaves))
            _check_files(folder / "state", record["files"], self.verify)
            restore_args = ocp.checkpoint_utils.construct_restore_args(leaves)
            arrays = self._orbax.restore(
                folder / "state",
                args=ocp.args.PyTreeRestore(item=leaves, restore_args=restore_args, partial_restore=partial),
            )
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), [arrays[name] for name in leaves])
        return step, state, record["meta"]

    def check(self) -> None:
        """Raises `CheckpointError` unless the newest checkpoint is there, with every file in its size.

        What the files hold is verified when they are restored.
        """
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"{self.directory} holds no complete checkpoint: check the path, or start a new run")
        with _damage_named(self._folder(step), older=None):
            _check_files(self._folder(step) / "state", _read_record(self._folder(step))["files"], verify=False)

    def _folder(self, step: int) -> epath.Path:
        return self.directory / f"{step:08d}"

    def _folders(self) -> list[epath.Path]:
        if not self.directory.exists():
            return []
        return [entry for entry in self.directory.iterdir() if entry.name.isdecimal() and len(entry.name) >= 8]

    def _remove_incomplete(self) -> None:
        """Removes what a killed save or a killed deletion left. Called when saving: only the writer may do this."""
        for folder in self._folders():
            if not _record(folder).exists():
                folder.rmtree()


@contextlib.contextmanager
def _damage_named(folder: epath.Path, older: int | None) -> Iterator[None]:
    """Turns whatever reading a damaged checkpoint raises into one sentence with the way out."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError) as error:
        way_out = "start the run again" if older is None else f"continue from step {older}"
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder} is damaged ({reason}): delete that folder to {way_out}") from error


def _record(folder: epath.Path) -> epath.Path:
    return folder / "complete.json"


def _delete(folder: epath.Path) -> None:
    _record(folder).unlink(missing_ok=True)  # first: from here on the folder is not trusted
    folder.rmtree(missing_ok=True)


def _write_record(folder: epath.Path, record: dict) -> None:
    body = json.dumps(record)
    partial = folder / "complete.json.partial"
    partial.write_text(json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "record": body}))
    partial.replace(_record(folder))


def _read_record(folder: epath.Path) -> dict:
    outer = json.loads(_record(folder).read_text())
    if hashlib.sha256(outer["record"].encode()).hexdigest() != outer["sha256"]:
        raise ValueError("complete.json was changed")
    return json.loads(outer["record"])


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by path, {"params/embed": ...}: the same tree on disk whatever containers hold it in memory."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}
    if len(leaves) != len(flat):
        raise CheckpointError("state: two leaves have the same path; rename one")
    return leaves


def _signature(leaves: dict[str, Any]) -> dict[str, list]:
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in leaves.items()}


def _check_signature(folder: epath.Path, saved: dict[str, list], wanted: dict[str, list]) -> None:
    for name in wanted | saved:
        if wanted.get(name) != saved.get(name):
            has, needs = (
                f"{tuple(leaf[0])} {leaf[1]}" if leaf else "nothing" for leaf in (saved.get(name), wanted.get(name))
            )
            raise CheckpointError(
                f"{folder} is from another configuration: at leaf {name} it has {has} where this run needs {needs}; "
                f"run with the configuration that wrote it, or use another run folder"
            )


def _files(folder: epath.Path) -> list[str]:
    return sorted(str((root / name).relative_to(folder)) for root, _, names in folder.walk() for name in names)


def _hashes(folder: epath.Path, names: Iterable[str]) -> list[bytes]:
    hashes = []
    for name in names:
        with (folder / name).open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").digest())
    return hashes


def _describe_files(folder: epath.Path, verify: bool) -> dict[str, list]:
    """{file: [bytes, SHA-256 or None]}; each process hashes every n-th file and gets the others' hashes."""
    names = _files(folder)
    sizes = [(folder / name).stat().length for name in names]
    if not verify:
        return {name: [size, None] for name, size in zip(names, sizes, strict=True)}
    mine = slice(jax.process_index(), None, jax.process_count())
    hashes = np.zeros((len(names), 32), np.uint8)
    for row, digest in zip(hashes[mine], _hashes(folder, names[mine]), strict=True):
        row[:] = np.frombuffer(digest, np.uint8)
    if jax.process_count() > 1:
        hashes = np.asarray(multihost_utils.process_allgather(hashes)).max(axis=0)
    return {name: [size, row.tobytes().hex()] for name, size, row in zip(names, sizes, hashes, strict=True)}


def _check_files(folder: epath.Path, files: dict[str, list], verify: bool) -> None:
    """Raises `ValueError` naming the first file that is missing, truncated or changed."""
    for name, (size, _) in files.items():
        path = folder / name
        if not path.exists():
            raise ValueError(f"{name} is missing")
        if path.stat().length != size:
            raise ValueError(f"{name} has {path.stat().length} bytes instead of {size}")
    names = [name for name, (_, digest) in files.items() if verify and digest]
    mine = names[jax.process_index() :: jax.process_count()]
    for name, digest in zip(mine, _hashes(folder, mine), strict=True):
        if digest.hex() != files[name][1]:
            raise ValueError(f"{name} was changed")
