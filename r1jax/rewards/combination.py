"""How the scores of several reward functions become one reward. NumPy only."""

import numpy as np


def combine(rewards: np.ndarray, weights: np.ndarray, gate: int | None = None) -> np.ndarray:
    """float32 [B] from `rewards` float32 [B, F], nan where a function has no score, and `weights` float32 [F].

    Without a gate, the weighted sum: R1's addition (arXiv 2501.12948, equations 4 and 8) where the weights are 1. A
    function of weight 0 is only observed. nan where a function of another weight has no score.

    With a gate, the number of a function, a row passes where that function scores at least 1. In a row that does not,
    the other functions only take away: what they would add is left out, what they subtract stays, or failing the gate
    would be a way around penalties. A row whose gate has no score is nan, whatever the gate's own weight.
    """
    used = weights != 0
    if gate is None:
        return (rewards[:, used] @ weights[used]).astype(np.float32)
    others = used & (np.arange(len(weights)) != gate)
    terms = rewards[:, others] * weights[others]
    passed = rewards[:, gate] >= 1
    total = np.where(passed[:, None], terms, np.minimum(terms, 0)).sum(axis=1) + rewards[:, gate] * weights[gate]
    return total.astype(np.float32)
