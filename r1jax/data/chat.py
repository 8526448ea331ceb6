"""Chat templates of published checkpoints, rendered as transformers renders them."""

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from r1jax.data.hf_tokenizer import read_json, special_tokens
from r1jax.data.templates import THINK_OPEN
from r1jax.errors import DataError, check_field

Message = Mapping[str, Any]


class ChatTemplate:
    """One Jinja template, or several by name; `special_tokens` are variables in each ("bos_token", "eos_token", ...).

    A template may come from anyone, so it runs in Jinja's sandbox. `source` is what errors call it. Raises `DataError`
    for a template that does not parse.
    """

    def __init__(
        self,
        templates: str | Mapping[str, str],
        special_tokens: Mapping[str, str] | None = None,
        source: str | os.PathLike = "chat template",
    ):
        self._source, self._special_tokens = os.fspath(source), dict(special_tokens or {})
        by_name = {"default": templates} if isinstance(templates, str) else templates
        environment = _environment()
        try:
            self._templates = {name: environment.from_string(text) for name, text in by_name.items()}
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"{self._source}: line {error.lineno} of its chat template is wrong ({error})") from None

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> "ChatTemplate":
        """The template of a checkpoint folder. Raises `DataError` where there is none, or its file is damaged."""
        template = cls.find(folder)
        if template is None:
            raise DataError(
                f"folder {os.fspath(folder)!r} has no chat template (chat_template.jinja, or a chat_template in "
                "tokenizer_config.json): it holds a base model; copy the template of one that chats"
            )
        return template

    @classmethod
    def find(cls, folder: str | os.PathLike, file: str | os.PathLike | None = None) -> "ChatTemplate | None":
        """The template of a checkpoint folder, None where there is none. Raises `DataError` for a damaged one.

        `file` is one to be taken in its place. Without it, the first of: chat_template.jinja with
        additional_chat_templates/*.jinja, chat_template.json, tokenizer_config.json.
        """
        folder = Path(folder)
        if file is not None:
            try:
                return cls(Path(file).read_text(encoding="utf-8"), special_tokens(folder), file)
            except (OSError, ValueError) as error:
                raise DataError(
                    f"chat template {os.fspath(file)!r} cannot be read ({error}): give a jinja file"
                ) from None
        files = {path.stem: path for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
        if (folder / "chat_template.jinja").exists():
            files["default"] = folder / "chat_template.jinja"
        try:
            templates = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
        except (OSError, ValueError) as error:
            raise DataError(f"a chat template in {os.fspath(folder)!r} cannot be read ({error})") from None
        for name in ("chat_template.json", "tokenizer_config.json"):
            templates = templates or read_json(folder / name).get("chat_template")
        if not templates:
            return None
        if isinstance(templates, list):
            try:
                templates = {entry["name"]: entry["template"] for entry in templates}
            except (KeyError, TypeError):
                raise DataError(f"{folder / name}: each chat template needs a 'name' and a 'template'") from None
        return cls(templates, special_tokens(folder), folder)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        think: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt for `messages`, each a dict of "role" and "content" (or "tool_calls").

        `think` makes it end with "<think>\\n", once: DeepSeek asks for that of R1, with every instruction in the user's
        message and no system prompt. `chat_template` names one of several; unnamed, it is "tool_use" where there are
        `tools` (JSON schemas) and a template of that name, else "default". `kwargs` are variables of the template and
        override special tokens. Raises `DataError` for messages that are malformed or that the template refuses.
        """
        check_field(add_generation_prompt or not think, "think", think, "it needs add_generation_prompt=True")
        if not messages:
            raise DataError("messages=[]: give at least one message")
        chat = []
        for i, message in enumerate(messages):
            # An API writes content=None beside tool calls; in a template that would become the text "None".
            chat.append({k: v for k, v in message.items() if v is not None} if isinstance(message, Mapping) else {})
            if "role" not in chat[i] or not chat[i].keys() & {"content", "tool_calls"}:
                raise DataError(f"message {i} is {str(message)[:80]}: make it a dict with a 'role' and a 'content'")
        name = chat_template or ("tool_use" if tools is not None and "tool_use" in self._templates else "default")
        if name not in self._templates:
            raise DataError(f"{self._source} has no chat template {name!r}: choose one of {sorted(self._templates)}")
        variables = {"tools": tools, "documents": documents, "add_generation_prompt": add_generation_prompt}
        try:
            text = self._templates[name].render(self._special_tokens | kwargs | variables, messages=chat)
        except Exception as error:  # whatever somebody's template does with these messages
            raise DataError(f"{self._source}: its chat template refuses these messages ({error})") from error
        if think:
            opened = text.rstrip()
            text = (opened if opened.endswith(THINK_OPEN) else text + THINK_OPEN) + "\n"
        return text


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says; it renders as its contents."""

    tags = frozenset({"generation"})

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment.filters["tojson"] = tojson  # Jinja's own escapes HTML
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment
