"""Chat templates: the prompts that published checkpoints were trained on, character for character."""

import datetime

import pytest
from hf_folders import ASSISTANT, BOS, EOS, USER, deepseek_folder, llama3_folder, qwen_folder, write_files

from r1jax.data import ChatTemplate, load_tokenizer
from r1jax.errors import ConfigError, DataError

# In the shape of R1's: system text bare after bos, an answer without its thoughts, and the thoughts of the next begun.
R1_OPEN = """
{%- set ns = namespace(system='') -%}
{%- for message in messages if message['role'] == 'system' -%}
    {%- set ns.system = ns.system + message['content'] -%}
{%- endfor -%}
{{ bos_token }}{{ ns.system }}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {{ '<｜User｜>' + message['content'] }}
    {%- elif message['role'] == 'assistant' and 'content' in message -%}
        {{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + eos_token }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<｜Assistant｜>' }}{%- endif -%}
"""
R1_FORCED = R1_OPEN.replace("{{ '<｜Assistant｜>' }}", "{{ '<｜Assistant｜><think>\\n' }}")

# In the shape of Llama 3.1's: the day in the system message, texts trimmed, tools as JSON, two systems refused.
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- raise_exception("Only the first message may be the system's") }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# In the shape of Qwen2.5's: ChatML, with a system message of its own where none is given.
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools' }}
    {%- for tool in tools %}
        {{- "\\n" + (tool | tojson) }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- elif messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# What only Jinja's settings decide: the newline after a tag, the blanks before it, break, and what `set` reaches.
SETTINGS = """
{% set last = 'outer' %}
{% for message in messages %}
    {% if loop.index > 2 %}
        {% break %}
    {% endif %}
  {{ message.role }}:
    {% generation %}
{{ message.content }}
    {% endgeneration %}
{% endfor %}
{% generation %}
    {% set last = 'inner' %}
{% endgeneration %}
{{ last }}, {{ pad_token }}, {{ flavour | default('plain') }}, {{ no_such_token }}
"""

CHAT = [
    {"role": "system", "content": " Be <brief>. "},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "<think>\nEasy.\n</think>2"},
    {"role": "user", "content": "And 'é' & \"日本\"?\n"},
]
USER_ONLY = [{"role": "user", "content": "1 + 1?"}]
TOOLS = [{"name": "add", "description": "a & <b> é"}]
DATE = {"date_string": "26 Jul 2024"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    return {
        name: write_files(make(root / name), {"chat_template.jinja": template})
        for name, make, template in (
            ("r1", deepseek_folder, R1_OPEN),
            ("r1_forced", deepseek_folder, R1_FORCED),
            ("llama3", llama3_folder, LLAMA3),
            ("qwen", qwen_folder, QWEN),
            ("settings", qwen_folder, SETTINGS),
        )
    }


def test_r1(folders):
    template = ChatTemplate.from_folder(folders["r1"])
    history = (
        f"{BOS} Be <brief>. {USER}1 + 1?{ASSISTANT}2{EOS}{USER}And 'é' & \"日本\"?\n"  # the first thoughts are gone
    )
    assert template.render(CHAT) == history + ASSISTANT
    assert template.render(CHAT, add_generation_prompt=False) == history
    assert ChatTemplate.from_folder(folders["r1_forced"]).render(CHAT) == history + ASSISTANT + "<think>\n"


@pytest.mark.parametrize("prompt", ["", "<think>\\n", "<think>", "<think>\\n\\n", "<think> "])
def test_think_opens_the_answer_exactly_once(folders, prompt):
    template = ChatTemplate(
        R1_OPEN.replace("<｜Assistant｜>' }}", f"<｜Assistant｜>{prompt}' }}}}"), {"bos_token": BOS}
    )
    assert template.render(USER_ONLY, think=True) == f"{BOS}{USER}1 + 1?{ASSISTANT}<think>\n"
    with pytest.raises(ConfigError, match="think=True: it needs add_generation_prompt=True"):
        template.render(USER_ONLY, add_generation_prompt=False, think=True)


def test_llama3(folders):
    template = ChatTemplate.from_folder(folders["llama3"])
    tools = '{\n    "name": "add",\n    "description": "a & <b> é"\n}\n\n'
    expected = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"
        "{}Be <brief>.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n1 + 1?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n<think>\nEasy.\n</think>2<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd 'é' & \"日本\"?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert template.render(CHAT, **DATE) == expected.replace("{}", "")
    assert template.render(CHAT, tools=TOOLS, **DATE) == expected.replace("{}", tools)
    before, rendered, after = datetime.date.today(), template.render(USER_ONLY), datetime.date.today()
    assert any(f"\n\nToday Date: {day:%d %b %Y}\n\n" in rendered for day in (before, after))


def test_qwen(folders):
    template = ChatTemplate.from_folder(folders["qwen"])
    assert template.render(USER_ONLY) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert template.render(CHAT, add_generation_prompt=False) == (
        "<|im_start|>system\n Be <brief>. <|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nEasy.\n</think>2<|im_end|>\n"
        "<|im_start|>user\nAnd 'é' & \"日本\"?\n<|im_end|>\n"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add", "arguments": {"b": "é", "a": 1}}]}
    assert template.render([*USER_ONLY, call], tools=TOOLS) == (
        '<|im_start|>system\n# Tools\n{"name": "add", "description": "a & <b> é"}<|im_end|>\n'
        "<|im_start|>user\n1 + 1?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {"b": "é", "a": 1}}\n</tool_call><|im_end|>\n'
        "<|im_start|>assistant\n"
    )


def test_settings_and_variables(folders):
    template = ChatTemplate.from_folder(folders["settings"])
    told = "\n  system:\n Be <brief>. \n  user:\n1 + 1?\n"
    assert template.render(CHAT) == told + "outer, <|endoftext|>, plain, "
    assert template.render(CHAT, flavour="x", pad_token="y") == told + "outer, y, x, "


def test_sources_in_order_of_preference(tmp_path):
    def rendered(**kwargs):
        return ChatTemplate.from_folder(tmp_path).render(USER_ONLY, **kwargs)

    with pytest.raises(DataError, match=rf"{tmp_path}' has no chat template"):
        ChatTemplate.from_folder(tmp_path)
    write_files(tmp_path, {"tokenizer_config.json": {"chat_template": "config{{ bos_token }}", "bos_token": "<s>"}})
    assert rendered() == "config<s>"
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools }}"}]
    write_files(tmp_path, {"tokenizer_config.json": {"chat_template": named}})
    assert (rendered(), rendered(tools=[]), rendered(chat_template="tool_use")) == ("plain", "[]", "None")
    with pytest.raises(DataError, match=r"no chat template 'rag': choose one of \['default', 'tool_use'\]"):
        rendered(chat_template="rag")
    write_files(tmp_path, {"chat_template.json": {"chat_template": "json"}})
    assert rendered() == "json"
    write_files(tmp_path, {"additional_chat_templates/rag.jinja": "{{ documents[0].text }}"})
    with pytest.raises(DataError, match=r"no chat template 'default': choose one of \['rag'\]"):
        rendered()
    write_files(tmp_path, {"chat_template.jinja": "jinja\n"})
    assert rendered() == rendered(tools=[]) == "jinja"
    assert rendered(chat_template="rag", documents=[{"text": "found"}]) == "found"


def test_bad_templates(tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path}: line 2 of its chat template is wrong .*endif"):
        ChatTemplate.from_folder(write_files(tmp_path, {"chat_template.jinja": "a\n{% if x %}"}))
    with pytest.raises(DataError, match=r"line 1 of its chat template is wrong .*no_such_filter"):
        ChatTemplate("{{ messages | no_such_filter }}")
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(DataError, match=rf"a chat template in '{tmp_path}' cannot be read"):
        ChatTemplate.from_folder(tmp_path)
    files = {"chat_template.jinja": None, "chat_template.json": "{"}
    with pytest.raises(DataError, match=r"chat_template\.json' cannot be read"):
        ChatTemplate.from_folder(write_files(tmp_path, files))
    for reaching_out in ("{{ ''.__class__.__mro__[1] }}", "{{ messages.append(1) }}"):
        with pytest.raises(DataError, match="refuses these messages"):
            ChatTemplate(reaching_out).render(USER_ONLY)


def test_bad_messages(folders):
    template = ChatTemplate.from_folder(folders["llama3"])
    with pytest.raises(DataError, match=r"llama3: .*refuses these messages \(Only the first message may be"):
        template.render([CHAT[0], CHAT[0]])
    with pytest.raises(DataError, match=r"refuses these messages \(can only concatenate"):
        ChatTemplate("{{ '' + messages[0].content }}").render([{"role": "user", "content": 1}])
    with pytest.raises(DataError, match="give at least one message"):
        template.render([])
    for bad in ({"role": "user"}, {"content": "hi"}, {"role": "user", "content": None}, "hi"):
        with pytest.raises(DataError, match=r"message 1 is .*: make it a dict with a 'role' and a 'content'"):
            template.render([CHAT[1], bad])


@pytest.mark.parametrize("name", ["r1", "r1_forced", "llama3", "qwen", "settings"])
def test_rendering_parity(folders, name):
    transformers = pytest.importorskip("transformers")
    theirs, tokenizer = transformers.AutoTokenizer.from_pretrained(folders[name]), load_tokenizer(folders[name])
    template = ChatTemplate.from_folder(folders[name])
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add", "arguments": {"b": "é"}}]}
    for messages in (CHAT, USER_ONLY, *([[*CHAT, call]] if name == "qwen" else [])):
        for options in ({"add_generation_prompt": True}, {"add_generation_prompt": False}, {"tools": TOOLS}):
            options = {"add_generation_prompt": False} | options | DATE
            text = template.render(messages, **options)
            assert text == theirs.apply_chat_template(messages, tokenize=False, **options)
            assert tokenizer.encode(text) == theirs.apply_chat_template(messages, return_dict=False, **options)
