"""Prompt templates, and the symbols a small tokenizer should keep whole."""

import re

# DeepSeek-R1, arXiv 2501.12948, Table 1: "prompt will be replaced with the specific reasoning question".
R1_ZERO_TEMPLATE = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
    "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>. User: {prompt}. Assistant:"
)

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

_HEAD, _TAIL = R1_ZERO_TEMPLATE.split(" {prompt}")

# A learner of a million parameters cannot spend 70 tokens a prompt on fixed text: the paper's preamble and its tail are
# one token each.
R1_ZERO_SYMBOLS = (_HEAD, _TAIL, THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)


# The same for `r1jax chat`: each question stands alone, as in training.
R1_ZERO_CHAT_TEMPLATE = f"{_HEAD} {{{{ messages[-1]['content'] }}}}{_TAIL}"


def render_r1_zero(question: str) -> str:
    """The paper's prompt for a question; the completion follows directly, opening with `<think>`."""
    return f"{_HEAD} {question}{_TAIL}"


def render_completion(think: str, answer: str) -> str:
    """A completion in the format that the template asks for, with no space around its tags."""
    return f"{THINK_OPEN}{think}{THINK_CLOSE}{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"


# DeepSeek-R1's own layout after the cold start: a user's message, the thinking, a summary. Thinking of earlier turns is
# left out. Each tag is one token of a small tokenizer.
USER_TAG, ASSISTANT_TAG = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"
R1_SYMBOLS = (*R1_ZERO_SYMBOLS, USER_TAG, ASSISTANT_TAG, "\\boxed{")
R1_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    f"{ASSISTANT_TAG}{{{{ message['content'].split('{THINK_CLOSE}')[-1] }}}}"
    f"{{% else %}}{USER_TAG}{{{{ message['content'] }}}}{{% endif %}}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{ASSISTANT_TAG}{{% endif %}}"
)


def render_r1(question: str) -> str:
    """The prompt of R1_CHAT_TEMPLATE for one question; the completion opens with `<think>`."""
    return f"{USER_TAG}{question}{ASSISTANT_TAG}"


def render_r1_completion(think: str, summary: str) -> str:
    """Thinking and summary, as R1 writes them (arXiv 2501.12948, section 2.3)."""
    return f"{THINK_OPEN}{think}{THINK_CLOSE}{summary}"


# What a summary says of an answer, by language; of a program it is the program.
SUMMARIES = {"en": r"The answer is \boxed{{answer}}.", "zh": r"答案是\boxed{{answer}}。"}
PROGRAM_SUMMARY = "```python\n{answer}\n```"


def fill(template: str, **values: object) -> str:
    """`template` with each {name} replaced by its value; other braces, and those within values, stay."""
    return re.sub(r"\{(\w+)\}", lambda name: str(values.get(name[1], name[0])), template)
