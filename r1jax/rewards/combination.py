"""How the scores of several reward functions become one reward. NumPy only."""

import numpy as np


def combine(
    rewards: np.ndarray, weights: np.ndarray, gate: int | None = None, applies: np.ndarray | None = None
) -> np.ndarray:
    """float32 [B] from `rewards` float32 [B, F], nan where a function has no score, and `weights` float32 [F].

    Without a gate, the weighted sum: R1's addition (arXiv 2501.12948, equations 4 and 8) where the weights are 1. A
    function of weight 0 is only observed. nan where a function of another weight has no score.

    With a gate, the number of a function, a row passes where that function scores at least 1. In a row that does not,
    the other functions only take away: what they would add is left out, what they subtract stays, or failing the gate
    would be a way around penalties. A row whose gate has no score is nan, whatever the gate's own weight.

    `applies`, bool [B, F], tells which functions a row is meant for (None: all). One that is not meant for a row is
    absent there: it has no weight, its missing score does no harm, and as the gate it lets the row pass. A row that no
    function of any weight is meant for has no reward: nan.
    """
    used = weights != 0
    applies = np.ones(rewards.shape, bool) if applies is None else applies
    rewards = np.where(applies, rewards, 0)
    if gate is None:
        total = rewards[:, used] @ weights[used]
    else:
        others = used & (np.arange(len(weights)) != gate)
        terms = rewards[:, others] * weights[others]
        passed = (rewards[:, gate] >= 1) | ~applies[:, gate]
        total = np.where(passed[:, None], terms, np.minimum(terms, 0)).sum(axis=1) + rewards[:, gate] * weights[gate]
    meant = applies[:, used].any(axis=1) | (not used.any())
    return np.where(meant, total, np.nan).astype(np.float32)
