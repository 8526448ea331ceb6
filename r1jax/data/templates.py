"""Prompt templates, and the symbols a small tokenizer should keep whole."""

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
