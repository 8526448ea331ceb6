"""The paper's benchmarks by name: what is asked, how it is sampled, and how completions are judged.

Importing them is quick: neither JAX nor a data set is touched before `load`.
"""

from r1jax.evaluation.benchmarks.alpaca_eval import ALPACA_EVAL
from r1jax.evaluation.benchmarks.base import Benchmark, Problem, Protocol
from r1jax.evaluation.benchmarks.codeforces import CODEFORCES
from r1jax.evaluation.benchmarks.ifeval import IFEVAL
from r1jax.evaluation.benchmarks.livecodebench import LIVECODEBENCH
from r1jax.evaluation.benchmarks.mathematics import MATHEMATICS
from r1jax.evaluation.benchmarks.multiple_choice import MULTIPLE_CHOICE
from r1jax.evaluation.benchmarks.programs import PROGRAMS
from r1jax.evaluation.benchmarks.swe_bench import SWE_BENCH

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        *MATHEMATICS,
        *MULTIPLE_CHOICE,
        *PROGRAMS,
        LIVECODEBENCH,
        CODEFORCES,
        IFEVAL,
        ALPACA_EVAL,
        SWE_BENCH,
    )
}

__all__ = ["BENCHMARKS", "Benchmark", "Problem", "Protocol"]
