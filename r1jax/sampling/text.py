"""From sampled token ids to the text that rewards and people read. Never back: ids stay the truth for learning."""

from r1jax.data.tokenizer import Tokenizer
from r1jax.sampling.sampler import Rollout


def decode_completions(tokenizer: Tokenizer, rollout: Rollout) -> list[list[str]]:
    """Text of each completion of a rollout on the host, [P][G], without its stop token."""
    return [
        [tokenizer.decode(row[:length]) for row, length in zip(rows, lengths, strict=True)]
        for rows, lengths in zip(rollout.completions, rollout.lengths, strict=True)
    ]
