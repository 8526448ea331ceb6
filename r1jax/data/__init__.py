"""Data: problems, tokenizers, prompt and chat templates, the pretraining corpus, packing, batches addressed by step."""

from r1jax.data.chat import ChatTemplate
from r1jax.data.corpus import CorpusConfig, Document, corpus_tokenizer, documents
from r1jax.data.hf_tokenizer import HFTokenizer, load_tokenizer
from r1jax.data.iterators import PretrainBatches, PromptBatch, PromptBatches, encode_documents, encode_prompts, prefetch
from r1jax.data.packing import fill_ratio, pack
from r1jax.data.problem_source import ProblemSource, load_problems
from r1jax.data.problems import Problem, generate, split_of
from r1jax.data.templates import R1_ZERO_SYMBOLS, R1_ZERO_TEMPLATE, render_completion, render_r1_zero
from r1jax.data.tokenizer import SentencePieceTokenizer, Tokenizer, check_fits, decode_stream, train_sentencepiece

__all__ = [
    "R1_ZERO_SYMBOLS",
    "R1_ZERO_TEMPLATE",
    "ChatTemplate",
    "CorpusConfig",
    "Document",
    "HFTokenizer",
    "PretrainBatches",
    "Problem",
    "ProblemSource",
    "PromptBatch",
    "PromptBatches",
    "SentencePieceTokenizer",
    "Tokenizer",
    "check_fits",
    "corpus_tokenizer",
    "decode_stream",
    "documents",
    "encode_documents",
    "encode_prompts",
    "fill_ratio",
    "generate",
    "load_problems",
    "load_tokenizer",
    "pack",
    "prefetch",
    "render_completion",
    "render_r1_zero",
    "split_of",
    "train_sentencepiece",
]
