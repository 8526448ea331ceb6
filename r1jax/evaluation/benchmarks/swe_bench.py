"""SWE-bench Verified: patches for real issues, written as its own harness takes them; the harness runs the tests."""

from __future__ import annotations

import re
from collections.abc import Sequence

from r1jax.evaluation.benchmarks.base import Benchmark, Problem, Protocol
from r1jax.evaluation.benchmarks.rows import Row, final_response, read_problems

_BLOCK = re.compile(
    r"^[ \t]*```(?:diff|patch)[ \t]*\n(.*?)^[ \t]*```[ \t]*$|<patch>[ \t]*\n?(.*?)</patch>", re.M | re.S
)
_DIFF = re.compile(r"^(?:diff --git .+|--- \S.*\n\+\+\+ \S)", re.M)


def extract_patch(completion: str) -> str:
    """The patch in a completion's response, "" where there is none.

    Its last ```diff or ```patch block or `<patch>` that holds a diff; else all from the first "diff --git" or "---"
    line on, without a fence that closes after it. It ends in a line break, which `git apply` needs.
    """
    response = final_response(completion)
    blocks = [block or tagged for block, tagged in _BLOCK.findall(response)]
    blocks = [block for block in blocks if _DIFF.search(block)]
    if blocks:
        patch = blocks[-1]
    else:
        start = _DIFF.search(response)
        if not start:
            return ""
        patch = re.split(r"^[ \t]*```", response[start.start() :], maxsplit=1, flags=re.M)[0]
    return patch.strip("\r\n") + "\n"


def load(source: str, seed: int) -> list[Problem]:
    """SWE-bench's issues (arXiv 2310.06770). Columns: `instance_id`, `repo` and `base_commit`.

    A row with a `text`, as the retrieval variants of the data set have it (the files that matter, and what to answer),
    is asked as it is. Without one the model sees the issue alone. The paper's figures come from the Agentless framework
    (D.1), which finds the files itself; that is not part of this.
    """
    del seed

    def build(row: Row) -> Problem:
        identity, repo, commit = row.text("instance_id"), row.text("repo"), row.text("base_commit")
        return Problem(
            id=f"swe_bench/{identity}",
            prompt=row.find("text") or _prompt(repo, commit, row.text("problem_statement")),
            columns={"instance_id": identity, "repo": repo, "base_commit": commit},
        )

    return read_problems(source, build)


def _prompt(repo: str, commit: str, issue: str) -> str:
    return (
        f"Solve this issue of the repository {repo} at commit {commit}.\n\n<issue>\n{issue}\n</issue>\n\n"
        "Give your change as one patch in unified format, with paths from the root of the repository, that `git apply` "
        "takes, in one ```diff block."
    )


def export(problems: Sequence[Problem], completions: Sequence[Sequence[str]], model: str) -> list[dict[str, str]]:
    """Predictions for swebench.harness.run_evaluation: one for each issue, from its first completion."""
    return [
        {
            "instance_id": problem.columns["instance_id"],
            "model_name_or_path": model,
            "model_patch": extract_patch(texts[0]),
        }
        for problem, texts in zip(problems, completions, strict=True)
    ]


SWE_BENCH = Benchmark(
    name="swe_bench",
    title="SWE-bench Verified",
    source="hf:princeton-nlp/SWE-bench_Verified:test",
    load=load,
    score=None,
    protocol=Protocol(k=1),  # its harness takes one patch an issue
    export=export,
)
