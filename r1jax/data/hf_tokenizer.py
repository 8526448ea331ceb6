"""The tokenizer of a published checkpoint folder: `tokenizer.json`, or else a SentencePiece model."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from r1jax.data.tokenizer import SentencePieceTokenizer, Tokenizer
from r1jax.errors import DataError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, empty where there is no such file. Raises `DataError` naming a damaged one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{os.fspath(path)!r} cannot be read ({error}): copy it again") from None
    if not isinstance(value, dict):
        raise DataError(f"{os.fspath(path)!r} holds a {type(value).__name__}, not a JSON object: copy it again")
    return value


def special_tokens(folder: str | os.PathLike) -> dict[str, str]:
    """The named special tokens of a checkpoint folder, as in {"bos_token": "<s>"}; empty where no file names any."""
    folder = Path(folder)
    named = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in named:  # of an older transformers, whose special_tokens_map.json goes first
        named |= read_json(folder / "special_tokens_map.json")
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in named.items()}
    return {name: text for name, text in texts.items() if name.endswith("_token") and text and isinstance(text, str)}


class HFTokenizer:
    """`tokenizer.json` of a checkpoint folder as a `Tokenizer`, with the ids that the files around it name.

    `encode` adds no special tokens and recognises those written in a text; `decode` leaves them out (R1's `<think>` is
    not one). `eos_ids` are the tokenizer's eos and all that generation_config.json names. `bos_id` is None where there
    is none; `pad_id` falls back on eos. Raises `DataError` for what is missing, damaged or of another tokenizer.
    """

    def __init__(self, folder: str | os.PathLike):
        folder = Path(folder)
        path = os.fspath(folder / "tokenizer.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(path)
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"tokenizer {path!r} cannot be read ({error}): copy it again") from None
        # A file keeps how its author last cut and padded texts.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        ids = set(vocabulary.values())
        named, config = special_tokens(folder), read_json(folder / "config.json")
        for name in ("bos_token", "eos_token"):
            if name in named and named[name] not in vocabulary:
                raise DataError(
                    f"tokenizer {path!r} has no token {named[name]!r}, which its folder names as {name}: "
                    "copy all files from one checkpoint"
                )

        def id_of(name: str) -> int | None:
            # A tokenizer that names other tokens but not this one has none, whatever config.json says: Qwen has no bos.
            i = vocabulary.get(named.get(f"{name}_token")) if named else config.get(f"{name}_token_id")
            return i if i in ids else None

        stops = [vocabulary.get(named.get("eos_token")), *_stop_ids(folder)]
        self.eos_ids = tuple(dict.fromkeys(i for i in stops if i in ids))
        if not self.eos_ids:
            raise DataError(
                f"tokenizer {path!r} has no eos: name its eos_token in tokenizer_config.json, "
                "or its eos_token_id in generation_config.json"
            )
        pad = id_of("pad")
        self.pad_id, self.bos_id = self.eos_ids[0] if pad is None else pad, id_of("bos")
        self._ids = np.array(sorted(ids))
        self.vocab_size = max(ids) + 1
        # Whatever is named is special, and so is all that ends a completion, even where tokenizer.json does not say so.
        special = {*named.values(), *(self._tokenizer.id_to_token(i) for i in self.eos_ids)}
        self._tokenizer.add_special_tokens(sorted(special & vocabulary.keys()))

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; special tokens and ids without a piece decode to nothing."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def valid_ids(self, size: int) -> np.ndarray:
        """bool [size]: ids that have a piece. A published embedding has rows, and a vocabulary holes, without one."""
        return np.isin(np.arange(size), self._ids)


def load_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """The tokenizer of a checkpoint folder: tokenizer.json, else tokenizer.model, else the only *.model.

    A SentencePiece model also stops at the eos ids of generation_config.json. Raises `DataError` where the folder has
    none of them, or one is damaged.
    """
    folder = Path(folder)
    if (folder / "tokenizer.json").exists():
        return HFTokenizer(folder)
    models = [path for path in [folder / "tokenizer.model"] if path.exists()] or sorted(folder.glob("*.model"))
    if len(models) != 1:
        found = ", ".join(path.name for path in models) or "neither"
        raise DataError(
            f"folder {os.fspath(folder)!r} needs a tokenizer.json or a tokenizer.model and has {found}: "
            "copy the tokenizer that was published with the model"
        )
    tokenizer = SentencePieceTokenizer(models[0])
    stops = [i for i in _stop_ids(folder) if i < tokenizer.vocab_size]
    tokenizer.eos_ids = tuple(dict.fromkeys([*tokenizer.eos_ids, *stops]))
    return tokenizer


def _stop_ids(folder: Path) -> list[int]:
    """`eos_token_id` of generation_config.json, else of config.json: one id, or a list (Llama 3.1 has three)."""
    for name in ("generation_config.json", "config.json"):
        ids = read_json(folder / name).get("eos_token_id")
        if ids is not None:
            return ids if isinstance(ids, list) else [ids]
    return []
