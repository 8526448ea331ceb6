"""Random numbers by counter: any row of any stream is computed from its index, so a data stream needs no saved state.

SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), vectorised.
"""

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_bits(seed: int, stream: str, index: np.ndarray, draws: int, attempt: int = 0) -> np.ndarray:
    """Uniform uint64 [N, draws]; row n depends on (seed, stream, index[n], attempt) and on nothing else.

    `stream` keeps users of the same seed apart; `attempt` numbers the redraws of a row that was rejected.
    """
    words = [seed % 2**64, int.from_bytes(stream.encode(), "little") % 2**64, attempt]
    state = np.zeros(1, np.uint64)
    for word in [*(np.uint64(word) for word in words), np.asarray(index).astype(np.uint64)]:
        state = _mix((state ^ word) + _GAMMA)
    return _mix(state[:, None] + _GAMMA * np.arange(1, draws + 1, dtype=np.uint64))


def pick(bits: np.ndarray, size: np.ndarray | int) -> np.ndarray:
    """Uniform int64 in [0, size), elementwise. The bias of the remainder is below 2^-50 for the sizes used here."""
    return (bits % np.asarray(size).astype(np.uint64)).astype(np.int64)
