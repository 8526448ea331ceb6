"""Checkpoint folders in the shape of published ones, with small tokenizers trained on the spot."""

import json
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXTS = [
    "The cat sat on the mat, and the mat lay under the cat.",
    "Élan, naïve, 日本語のテキスト, 😀🎉",
    "1 + 1 = 2\n\n",
] * 4
BOS, EOS, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"


def write_files(folder: Path, files: dict) -> Path:
    """Writes each name's text, or what JSON makes of anything else. None removes the file."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.unlink()
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def train_byte_level(special: list[str], plain: list[str] = (), bos: str | None = None) -> Tokenizer:
    """Byte-level BPE that takes any text. Left alone it would add `bos`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    if bos is not None:
        ids = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos}:0 $A:0", special_tokens=ids)
    return tokenizer


def deepseek_folder(folder: Path) -> Path:
    """R1's: `<think>`, `<｜User｜>` and `<｜Assistant｜>` are added tokens but not special, and pad is eos.

    As saved, its tokenizer.json cuts texts at 4 ids and pads them to 8.
    """
    tokenizer = train_byte_level([BOS, EOS], [USER, ASSISTANT, "<think>", "</think>"], BOS)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(EOS), pad_token=EOS, length=8)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": BOS, "lstrip": False, "rstrip": False, "normalized": True},
        "eos_token": {"__type": "AddedToken", "content": EOS, "lstrip": False, "rstrip": False, "normalized": True},
        "pad_token": {"__type": "AddedToken", "content": EOS, "lstrip": False, "rstrip": False, "normalized": True},
    }
    ids = {"bos_token_id": tokenizer.token_to_id(BOS), "eos_token_id": tokenizer.token_to_id(EOS)}
    return write_files(
        folder,
        {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": config, "generation_config.json": ids},
    )


LLAMA3_SPECIAL = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
]  # fmt: skip


def llama3_folder(folder: Path) -> Path:
    """Three stop ids, of which tokenizer_config.json names the last; no pad."""
    tokenizer = train_byte_level(LLAMA3_SPECIAL, bos=LLAMA3_SPECIAL[0])
    stops = [tokenizer.token_to_id(token) for token in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
    named = {"bos_token": LLAMA3_SPECIAL[0], "eos_token": "<|eot_id|>"}
    return write_files(
        folder,
        {
            "tokenizer.json": tokenizer.to_str(),
            "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **named},
            "special_tokens_map.json": named,
            "generation_config.json": {"bos_token_id": 0, "eos_token_id": stops},
        },
    )


def qwen_folder(folder: Path) -> Path:
    """No bos, although config.json has a bos_token_id."""
    tokenizer = train_byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    named = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return write_files(
        folder,
        {
            "tokenizer.json": tokenizer.to_str(),
            "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **named},
            "generation_config.json": {"bos_token_id": 0, "eos_token_id": [2, 0]},
            "config.json": {"bos_token_id": 0, "eos_token_id": 2},
        },
    )


def llama2_folder(folder: Path, **changes) -> Path:
    """A SentencePiece model alone: a space before every text, bytes for what has no piece, no pad."""
    options = dict(
        model_type="bpe", vocab_size=400, hard_vocab_limit=False, byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(folder / "tokenizer"), **(options | changes)
    )
    return folder
