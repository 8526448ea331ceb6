"""The benchmarks: what is registered, the paper's protocol, mathematics and multiple choice."""

import collections
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.errors import DataError
from r1jax.evaluation.benchmarks import BENCHMARKS
from r1jax.evaluation.benchmarks.base import Problem
from r1jax.evaluation.benchmarks.multiple_choice import MMLU_CATEGORIES, choice, choice_accuracy
from r1jax.evaluation.benchmarks.rows import accuracy_by, final_response

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not here")

PUBLISHED = {
    "aime2024": ("aime", 30),
    "math500": ("math500/test.jsonl", 500),
    "amc23": ("amc23", 40),
    "gsm8k": ("gsm8k", 1319),
    "mgsm_en": ("mgsm", 250),
    "mgsm_fr": ("mgsm", 250),
    "mgsm_ja": ("mgsm/mgsm_ja.tsv", 250),
    "mgsm_zh": ("mgsm", 250),
    "mmlu": ("mmlu/mmlu.zip", 14042),
    "humaneval": ("humaneval/HumanEval.jsonl.gz", 164),
    "mbpp": ("mbpp", 206),
    "code_contests": ("code_contests/test.json", 60),
    "ifeval": ("ifeval", 541),
}
# What `r1jax score` takes for a row's own fields rather than a judge's columns.
RESERVED = {"id", "problem", "prompt", "messages", "prompt_tokens", "completions", "tokens", "finish_reasons", "logps"}
RESERVED |= {"scores", "unasked", "prompts"}


def put(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def score(name, problem, *completions):
    """The scores of completions of one problem, as the command asks for them."""
    columns = {column: [value] * len(completions) for column, value in problem.columns.items()}
    return BENCHMARKS[name].score([problem.prompt] * len(completions), list(completions), **columns)


def test_the_paper_protocol():
    for name, benchmark in BENCHMARKS.items():
        protocol = benchmark.protocol
        assert benchmark.name == name and benchmark.title and benchmark.source.startswith("hf:")
        assert (protocol.max_tokens, protocol.temperature, protocol.top_p) == (32768, 0.6, 0.95)
    k = {name: benchmark.protocol.k for name, benchmark in BENCHMARKS.items()}
    assert (k["aime2024"], k["gpqa_diamond"], k["math500"], k["codeforces"], k["livecodebench"]) == (64, 64, 16, 16, 8)


def test_judges_can_be_sent_to_workers():
    for benchmark in BENCHMARKS.values():
        judge = (benchmark.score, benchmark.answer, benchmark.equivalent)
        assert pickle.loads(pickle.dumps(judge)) == judge


def test_importing_them_touches_neither_jax_nor_algebra_nor_data():
    code = (
        "import sys; import r1jax.evaluation.benchmarks; "
        "print({'jax', 'sympy', 'grain', 'py3langid', 'tensorflow_datasets', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@needs_data
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_data_is_read(name):
    source, count = PUBLISHED[name]
    problems = BENCHMARKS[name].load(str(DATA / source), 0)
    assert len(problems) == len({problem.id for problem in problems}) == count
    names = problems[0].columns.keys()
    assert not RESERVED & set(names)
    for problem in problems:
        assert problem.prompt.strip() and problem.id.startswith(("HumanEval/", name + "/"))
        assert problem.columns.keys() == names
        assert json.loads(json.dumps(dict(problem.columns))) == problem.columns
    assert problems == BENCHMARKS[name].load(str(DATA / source), 0)


def test_every_language_has_a_request_of_its_own(tmp_path):
    path = tmp_path / "mgsm.tsv"
    path.write_text("Combien ?\t114,200\n", encoding="utf-8")
    prompts = set()
    for name in filter(lambda name: name.startswith("mgsm_"), BENCHMARKS):
        (problem,) = BENCHMARKS[name].load(str(path), 0)
        question, request = problem.prompt.split("\n")
        assert question == "Combien ?" and r"\boxed{}" in request and problem.columns == {"answer": "114200"}
        prompts.add(request)
    assert len(prompts) == 11


@pytest.mark.parametrize(
    ("name", "row", "answer"),
    [
        ("aime2024", {"id": 60, "problem": "p", "answer": "025"}, "25"),
        ("aime2024", {"ID": "2024-I-1", "Problem": "p", "Answer": 0}, "0"),
        ("amc23", {"question": "p", "answer": 27.0}, "27"),
        ("gsm8k", {"question": "p", "answer": "1 + 1 = 2\n#### 3\n#### 1,450,000"}, "1450000"),
        ("math500", {"problem": "p", "answer": r"\frac{1}{2} ", "level": 2, "subject": "Algebra"}, r"\frac{1}{2}"),
        ("mgsm_en", {"question": "p", "answer": None, "answer_number": 18}, "18"),
    ],
)
def test_gold_answers(tmp_path, name, row, answer):
    (problem,) = BENCHMARKS[name].load(put(tmp_path / "a.jsonl", [row]), 0)
    assert problem.columns["answer"] == answer
    assert problem.prompt.startswith("p\n") and "boxed{}" in problem.prompt


@pytest.mark.parametrize(
    ("name", "row", "told"),
    [
        ("aime2024", {"problem": "p", "answer": "12.5"}, "a.jsonl, row 2: answer='12.5': give an integer"),
        ("amc23", {"problem": "p", "answer": None}, "row 2: field 'answer' is missing or null (of answer, problem)"),
        ("gsm8k", {"question": "p", "answer": "42"}, "row 2: answer='42': give the solution with its '#### answer'"),
        ("math500", {"problem": " ", "answer": "1"}, "row 2: problem=' ': give a string that is not blank"),
        ("gpqa_diamond", {"Question": "p", "Correct Answer": "a"}, "row 2: field 'Incorrect Answer 1' is missing"),
        ("mmlu", {"question": "p", "choices": ["a", "b"], "answer": 0, "subject": "virology"}, "'A' of 2 options"),
        ("mmlu", {"question": "p", "choices": list("abcd"), "answer": 4, "subject": "virology"}, "answer='4'"),
        ("mmlu", {"question": "p", "choices": list("abcd"), "answer": 1, "subject": "magic"}, "subject='magic'"),
        ("humaneval", {"prompt": "def f(:", "entry_point": "f", "task_id": "x", "test": "t"}, "does not compile"),
        ("mbpp", {"task_id": "Mbpp/11", "prompt": "p", "test_list": ["assert f()"]}, "task_id='Mbpp/11'"),
        ("code_contests", {"problem": "p", "tests": "[1"}, "they cannot be read"),
        ("code_contests", {"problem": "p", "tests": {"inputs": ["1"], "outputs": []}}, "as many outputs as inputs"),
        ("swe_bench", {"instance_id": "a", "repo": "r"}, "field 'base_commit' is missing"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, name, row, told):
    good = {
        "gpqa_diamond": {"Question": "q", "Correct Answer": "a"} | {f"Incorrect Answer {n}": str(n) for n in (1, 2, 3)},
        "gsm8k": {"question": "q", "answer": "#### 1"},
        "mmlu": {"question": "q", "choices": list("abcd"), "answer": 0, "subject": "virology"},
        "humaneval": {"prompt": "def f():\n    'x'\n", "entry_point": "f", "task_id": "y", "test": "def check(f): f()"},
        "mbpp": {"task_id": 11, "prompt": "q", "test_list": ["assert f()"]},
        "code_contests": {"problem": "q", "tests": [{"input": "1", "output": "1"}]},
        "swe_bench": {"instance_id": "b", "repo": "r", "base_commit": "c", "problem_statement": "s"},
    }.get(name, {"problem": "q", "answer": "1", "level": 1, "subject": "s"})
    with pytest.raises(DataError) as error:
        BENCHMARKS[name].load(put(tmp_path / "a.jsonl", [good, row]), 0)
    assert told in str(error.value) and "row 2" in str(error.value)


def test_sources_without_problems_and_ids_given_twice(tmp_path):
    row = {"problem": "p", "answer": 1, "id": 7}
    with pytest.raises(DataError, match="id='aime2024/7': another problem has it"):
        BENCHMARKS["aime2024"].load(put(tmp_path / "a.jsonl", [row, row]), 0)
    with pytest.raises(DataError, match="no problem of this benchmark is in it"):
        BENCHMARKS["aime2024"].load(put(tmp_path / "b.jsonl", []), 0)


def test_mathematics_is_judged_by_meaning(tmp_path):
    row = {"problem": "What is half?", "answer": r"\frac{1}{2}", "level": 2, "subject": "Algebra"}
    (problem,) = BENCHMARKS["math500"].load(put(tmp_path / "a.jsonl", [row]), 0)
    completions = (
        r"<think>\boxed{3}</think>So \boxed{0.5}",
        r"\boxed{1/2}",
        r"\boxed{2}",
        "<think>cut off",
        r"\boxed{",
    )
    assert score("math500", problem, *completions) == [1.0, 1.0, 0.0, 0.0, 0.0]
    summary = BENCHMARKS["math500"].summarise([problem], [list(completions)], [[1.0, 1.0, 0.0, 0.0, None]])
    assert summary == {"level_2/pass@1": 0.4, "subject_Algebra/pass@1": 0.4}
    answer, same = BENCHMARKS["math500"].answer, BENCHMARKS["math500"].equivalent
    assert answer(completions[0]) == "0.5" and same("1/2", "0.5") is True and same("7", "7.5") is False


@given(st.text(max_size=12), st.text(max_size=12))
def test_final_response(thinking, text):
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        thinking, text = thinking.replace(tag, ""), text.replace(tag, "")
    assert final_response(f"<think>{thinking}</think>{text}") == text.strip()
    assert final_response(f"{thinking}</think>{text}") == text.strip()  # R1's prompt opens the thinking
    assert final_response(f"<think>{thinking}</think> <answer>{text}</answer>") == text.strip()
    assert final_response(f"<think>a</think>b<think>{thinking}") == final_response(f"<think>{thinking}") == ""
    assert final_response(text) == text.strip()


def test_accuracy_by_leaves_out_problems_without_the_column():
    problems = [
        Problem(str(i), "p", columns) for i, columns in enumerate([{"level": 1}, {"level": 2}, {}, {"level": 1}])
    ]
    assert accuracy_by(problems, [[1.0, 0.0], [None, 1.0], [1.0, 1.0], [1.0, 1.0]], "level") == {
        "level_1/pass@1": 0.75,
        "level_2/pass@1": 0.5,
    }


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("Answer: B", "B"),
        ("I looked at A and C.\n\nAnswer: B", "B"),
        ("**Answer:** C", "C"),
        ("answer: **B**", "B"),
        ("Answer: $B$", "B"),
        (r"Answer: $\mathbf{B}$", "B"),
        ("Answer: (D).", "D"),
        ("Answer: [D]", "D"),
        ("Answer: b", "B"),
        ("Answer:\nB", "B"),
        ("The answer is (C).", "C"),
        ("Final answer is: C", "C"),
        ("Answer: B) a large one", "B"),
        ("Answer: B because A is wrong", "B"),
        ("Answer: A", "A"),
        ("Answer: A.", "A"),
        ("答案\nAnswer：D", "D"),
        (r"\boxed{C}", "C"),
        (r"so \boxed{\text{D}}.", "D"),
        (r"\boxed{(A)}", "A"),
        ("B", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("<think>Answer: A</think>Answer: D", "D"),
        ("<think>hm</think><answer> C </answer>", "C"),
        ("Answer: A\n\nNo, I was wrong.\n\nAnswer: B", "B"),
        # Two letters are no answer.
        ("Answer: A or B", None),
        ("Answer: A, B", None),
        ("Answer: A/B", None),
        ("Answer: A and B", None),
        ("Answer: (A) or (B)", None),
        ("Answer: A B C D", None),
        ("Answer: AB", None),
        ("Answer: A\nAnswer: B", None),
        (r"\boxed{A} or \boxed{B}", None),
        (r"\boxed{A, B}", None),
        # A letter that is not stated as the answer.
        ("<think>Answer: A", None),
        ("<think>Answer: A</think>", None),
        ("<think>\\boxed{A}</think>I am not sure.", None),
        ("I think B", None),
        ("Answer: A large thing", None),
        ("Answer: Because of D", None),
        ("Answer: $LETTER", None),
        ("The answer is not B", None),
        ("Answer: A's dog", None),
        ("", None),
    ],
)
def test_choice(completion, letter):
    assert choice(completion) == letter


def test_choice_accuracy():
    texts = ["Answer: B", "Answer: C", "Answer: A or B", "no", "Answer: B"]
    assert choice_accuracy([""] * 5, texts, answer=["B", "B", "B", "B", "second"]) == [1.0, 0.0, 0.0, 0.0, None]


def test_choice_takes_time_in_proportion_to_the_text():
    start = time.perf_counter()
    for text in ("Answer: A, ", "answer ", r"\boxed{", "Answer: ", "answer is" + " " * 50, "(" * 20, "A or B "):
        choice(text * 20_000)
    choice("answer" + " " * 200_000)
    choice("Answer: A" + " or B" * 50_000)
    assert time.perf_counter() - start < 10


def gpqa(tmp_path, count):
    rows = [
        {
            "Question": f"Question {i}?\n",
            "Correct Answer": f"right {i} ",
            "Incorrect Answer 1": f"wrong {i} x",
            "Incorrect Answer 2": f"wrong {i} y\n",
            "Incorrect Answer 3": f"wrong {i} z",
            "High-level domain": ("Physics", "Biology")[i % 2],
            "Record ID": f"rec{i}",
        }
        for i in range(count)
    ]
    return put(tmp_path / "gpqa_diamond.jsonl", rows), rows


def test_gpqa_options_are_shuffled_by_the_seed_and_the_key_follows(tmp_path):
    path, rows = gpqa(tmp_path, 400)
    benchmark = BENCHMARKS["gpqa_diamond"]
    problems = benchmark.load(path, 0)
    # lighteval shuffled without a seed, and once everything was "A".
    letters = collections.Counter(problem.columns["answer"] for problem in problems)
    assert set(letters) == set("ABCD") and max(letters.values()) < 140
    positions = collections.Counter(
        problem.columns["options"].index(f"wrong {i} x") for i, problem in enumerate(problems)
    )
    assert set(positions) == {0, 1, 2, 3} and max(positions.values()) < 140
    assert problems == benchmark.load(path, 0) and problems != benchmark.load(path, 1)
    for i, problem in enumerate(problems):
        letter = problem.columns["answer"]
        assert f"\n{letter}) right {i}\n" in problem.prompt + "\n"
        assert sorted(problem.columns["options"]) == sorted(
            rows[i][name].strip() for name in rows[i] if "Answer" in name
        )
    assert score("gpqa_diamond", problems[0], f"Answer: {problems[0].columns['answer']}") == [1.0]
    assert problems[3].id == "gpqa_diamond/rec3"


def test_gpqa_order_does_not_depend_on_the_other_problems(tmp_path):
    path, rows = gpqa(tmp_path, 20)
    whole = {problem.id: problem for problem in BENCHMARKS["gpqa_diamond"].load(path, 5)}
    part = BENCHMARKS["gpqa_diamond"].load(put(tmp_path / "part.jsonl", rows[::-3]), 5)
    assert all(whole[problem.id] == problem for problem in part) and len(part) == 7


def test_gpqa_order_is_the_same_on_every_machine(tmp_path):
    path, _ = gpqa(tmp_path, 12)
    assert "".join(p.columns["answer"] for p in BENCHMARKS["gpqa_diamond"].load(path, 0)) == "ABADDADAABCD"


def test_gpqa_summary(tmp_path):
    path, _ = gpqa(tmp_path, 2)
    problems = BENCHMARKS["gpqa_diamond"].load(path, 0)
    summary = BENCHMARKS["gpqa_diamond"].summarise(problems, [["", ""]] * 2, [[1.0, 0.0], [0.0, 0.0]])
    assert summary == {"domain_Biology/pass@1": 0.0, "domain_Physics/pass@1": 0.5}


def test_mmlu_in_each_of_its_formats(tmp_path):
    folder = tmp_path / "csv" / "data" / "test"
    folder.mkdir(parents=True)
    (folder / "virology_test.csv").write_text('"What, then?",a,b,c,d,C\n')
    (folder.parent / "dev").mkdir()
    (folder.parent / "dev" / "virology_dev.csv").write_text("dev?,a,b,c,d,A\n")
    headed = tmp_path / "mmlu.csv"
    headed.write_text(',Question,A,B,C,D,Answer,Subject\n0,"What, then?",a,b,c,d,C,virology\n')
    hub = {"question": "What, then?", "choices": list("abcd"), "answer": 2, "subject": "virology"}
    sources = (str(tmp_path / "csv"), str(headed), put(tmp_path / "hub.jsonl", [hub]))
    problems = [BENCHMARKS["mmlu"].load(source, 0) for source in sources]
    assert problems[0] == problems[1] == problems[2] and len(problems[0]) == 1
    assert problems[0][0].columns == {"answer": "C", "subject": "virology", "category": "other"}
    assert problems[0][0].prompt.endswith("What, then?\n\nA) a\nB) b\nC) c\nD) d")
    assert problems[0][0].prompt.startswith("Answer the following multiple choice question. The last line")


def test_mmlu_summary(tmp_path):
    assert [len(subjects) for subjects in MMLU_CATEGORIES.values()] == [18, 13, 12, 14]
    rows = [
        {"question": "q", "choices": list("abcd"), "answer": i % 4, "subject": subject}
        for i, subject in enumerate(["virology", "virology", "virology", "astronomy"])
    ]
    problems = BENCHMARKS["mmlu"].load(put(tmp_path / "a.jsonl", rows), 0)
    summary = BENCHMARKS["mmlu"].summarise(problems, [[""]] * 4, [[1.0], [0.0], [0.0], [1.0]])
    assert summary == {
        "category_other/pass@1": pytest.approx(1 / 3),
        "category_stem/pass@1": 1.0,
        "macro/pass@1": pytest.approx(2 / 3),
        "subject_astronomy/pass@1": 1.0,
        "subject_virology/pass@1": pytest.approx(1 / 3),
    }
