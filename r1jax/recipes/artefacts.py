"""The hash of what a stage made, by which a later stage knows whether it is still the same."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from r1jax.files import file_hash

_MODEL = "model.json"  # r1jax.checkpoints.model.DESCRIPTION; that module needs JAX, most artefacts do not


def sha256_of(path: Path) -> str:
    """64 hex digits: of a file the SHA-256 of its bytes, of a folder that of its files' names and hashes.

    A model's folder (`r1jax.checkpoints.model.save_model`) is known by the fingerprint of its weights and by every
    other file in it: the files that hold the weights are not the same bytes in every process.

    Raises:
      FileNotFoundError: nothing lies there.
      CheckpointError: a model's folder lacks a file of its weights.
    """
    if not path.is_dir():
        return file_hash(path)
    names = sorted(os.path.relpath(os.path.join(root, n), path) for root, _, files in os.walk(path) for n in files)
    known = {}
    if _MODEL in names:
        from r1jax.checkpoints.model import FINGERPRINT, saved_fingerprint

        known = {"weights": saved_fingerprint(path)}
        names = [name for name in names if name != FINGERPRINT and not name.startswith(f"weights{os.sep}")]
    told = json.dumps([known, [(Path(name).as_posix(), sha256_of(path / name)) for name in names]])
    return hashlib.sha256(told.encode()).hexdigest()
