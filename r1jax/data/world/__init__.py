"""The miniature world of the whole R1 recipe: four kinds of problems, two languages, requests that need no reasoning.

It stands where the web, the problem sets and the users of the paper stand; everything is computed from a seed.
"""

from r1jax.data.world.corpus import WorldConfig, world_documents, world_tokenizer
from r1jax.data.world.preferences import preference_pairs, safety_labels
from r1jax.data.world.problems import reasoning_problems
from r1jax.data.world.requests import general_requests

__all__ = [
    "WorldConfig",
    "general_requests",
    "preference_pairs",
    "reasoning_problems",
    "safety_labels",
    "world_documents",
    "world_tokenizer",
]
