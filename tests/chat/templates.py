"""Chat templates with the traits that those of published models have, and folders that hold them.

PUBLISHED lie in `shared/data/chat_templates` beside the project. WRITTEN are for these tests, a
trait each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gpt.tokenizer import Tokenizer, build_tokenizer
from tests.tiny import SHARED
from tests.tokenizer.hub_tokenizers import KINDS, added, write_folder

CHATML = ("<|im_start|>", "<|im_end|>")
TURNS = "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
ASKS = ("{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}")

# By name: the template, and the control tokens that its model has besides the end of text.
WRITTEN: dict[str, tuple[str, tuple[str, ...]]] = {
    "default system": (
        "{%- if messages[0].role != 'system' %}"
        "{{ '<|im_start|>system\nYou are small.<|im_end|>\n' }}{%- endif %}" + TURNS + ASKS,
        CHATML),
    "trimmed, with bos_token and eos_token in the text": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}{% elif m['role'] == 'system' %}"
        "{{ '<<SYS>>\n' + m['content'] | trim + '\n<</SYS>>\n\n' }}{% else %}"
        "{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}", ()),
    "thoughts of earlier answers dropped": (
        "{%- for m in messages %}{%- set content = m.content %}"
        "{%- if m.role == 'assistant' and not loop.last %}"
        "{%- set content = content.split('</think>')[-1] | trim %}{%- endif %}"
        "{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}" + ASKS, CHATML),
    "a generation prompt that opens a thought": (
        "{{ bos_token }}{%- for m in messages %}{%- if m.role == 'assistant' %}"
        "{{ '<|assistant|>' + m.content.split('</think>')[-1] + eos_token }}{%- else %}"
        "{{ '<|' + m.role + '|>' + m.content }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{%- endif %}",
        ("<|user|>", "<|assistant|>", "<|system|>")),
    "tools in a macro": (
        "{%- macro shown(tool) -%}{{ tool.function.name ~ ': ' ~ tool | tojson(indent=2) }}"
        "{%- endmacro %}{%- if tools %}{{ '<|im_start|>system\n' }}"
        "{%- for tool in tools %}{{ shown(tool) + '\n' }}{%- endfor %}{{ '<|im_end|>\n' }}"
        "{%- endif %}{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
        "{%- for call in m.tool_calls or [] %}"
        "{{ '<call>' + (call.id or 'nameless') + call.function.name + ' ' }}"
        "{%- if call.function.arguments is mapping %}{{ call.function.arguments | tojson }}"
        "{%- else %}{{ call.function.arguments }}{%- endif %}{{ '</call>' }}{%- endfor %}"
        "{%- if m.tool_call_id %}{{ ' [' + m.tool_call_id + ']' }}{%- endif %}"
        "{{ '<|im_end|>\n' }}" + ASKS, CHATML),
    "namespaces and exceptions": (
        "{%- set ns = namespace(system='', users=0) %}{%- for m in messages %}"
        "{%- if m.role == 'system' %}{%- set ns.system = m.content %}"
        "{%- elif m.role == 'tool' %}{{ raise_exception('no tools here: ' + m.role) }}"
        "{%- elif m.role == 'user' %}{%- set ns.users = ns.users + 1 %}"
        "{{ '<|user|>' ~ ns.users ~ ': ' }}"
        "{{ (ns.system + '\n' if ns.users == 1 and ns.system else '') ~ m.content }}"
        "{%- else %}{{ '<|assistant|>' + m.content + '<|end|>' }}{%- endif %}"
        "{%- endfor %}{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- endif %}",
        ("<|user|>", "<|assistant|>", "<|end|>")),
    "the date": (
        "{{ '<|im_start|>system\nToday is ' + strftime_now('%d %B %Y') + '.<|im_end|>\n' }}"
        + TURNS + ASKS, CHATML),
    "control tokens that take blanks away": (
        "{%- for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{%- endif %}",
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")),
    "no control tokens": (
        "{%- for m in messages %}{%- if m.role == 'system' %}{{ m.content + '\n\n' }}"
        "{%- elif m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n\n' }}"
        "{%- else %}{{ '### Response:\n' + m.content + '\n\n' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ '### Response:\n' }}{%- endif %}", ()),
    "reasoning, and whether to think": (
        "{%- set thinks = enable_thinking if enable_thinking is defined else true %}"
        "{{ '<|im_start|>system\nReasoning: ' ~ ('on' if thinks else 'off') ~ '<|im_end|>\n' }}"
        "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{%- if m.role == 'assistant' %}{{ '<think>' ~ (m.reasoning_content or '') ~ '</think>' }}"
        "{%- endif %}{{ m.content + '<|im_end|>\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' ~ ('' if thinks else "
        "'<think></think>') }}{%- endif %}", CHATML),
    "loop controls and generation tags": (
        "{%- for m in messages %}{%- if m.role == 'system' %}{%- continue %}{%- endif %}"
        "{{ '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' %}{% generation %}"
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{%- else %}"
        "{{ m.content + '<|im_end|>\n' }}{%- endif %}" + ASKS, CHATML)}
BLANKS_TAKEN = "control tokens that take blanks away"
_PUBLISHED_CONTROLS: dict[str, tuple[str, ...]] = {
    "deepseek_v3": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>",
                    "<｜Assistant｜>", *(f"<｜tool▁{name}｜>" for name in (
                        "calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep",
                        "outputs▁begin", "outputs▁end", "output▁begin", "output▁end"))),
    "gemma3": ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    "llama3_1": ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                 "<|end_header_id|>", "<|eot_id|>"),
    "qwen3": ("<|endoftext|>", *CHATML)}
# What the published ones call bos_token and eos_token.
BOUNDARIES: dict[str, tuple[str | None, str]] = {
    "deepseek_v3": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "gemma3": ("<bos>", "<eos>"),
    "llama3_1": ("<|begin_of_text|>", "<|end_of_text|>"), "qwen3": (None, "<|endoftext|>")}
PUBLISHED = {path.stem: (path.read_text(encoding="utf-8"), _PUBLISHED_CONTROLS[path.stem])
             for path in sorted((SHARED / "chat_templates").glob("*.jinja"))
             if path.stem in _PUBLISHED_CONTROLS}
TEMPLATES = {**WRITTEN, **PUBLISHED}
KINDS_TRIED = ("gpt2", "llama3", "qwen", "llama2", "mistral", "gemma", "unigram")


def folder_of(folder: Path, name: str, kind: str = "gpt2", **settings: Any) -> Path:
    """A tokenizer of a kind with a template, and with the control tokens of its model."""
    if name in BOUNDARIES and name not in TEMPLATES:
        pytest.skip("the published templates are not here")
    text, controls = TEMPLATES[name]
    make, end = KINDS[kind]
    definition = make()
    ids = max([*_ids(definition), *(token["id"] for token in definition["added_tokens"])]) + 1
    known = {token["content"] for token in definition["added_tokens"]}
    fresh = [added(ids + i, control) for i, control in
             enumerate(control for control in controls if control not in known)]
    if name == BLANKS_TAKEN:
        fresh = [{**token, "rstrip": True} for token in fresh]
    definition = {**definition, "added_tokens": [*definition["added_tokens"], *fresh]}
    roles = {"bos_token": "<s>"} if kind in ("llama2", "mistral", "gemma") else {}
    begin, end = BOUNDARIES.get(name, (roles.get("bos_token"), end))
    return write_folder(folder, definition, end, chat_template=text,
                        **({"bos_token": begin} if begin else {}), **settings)


def _ids(definition: dict[str, Any]) -> list[int]:
    vocab = definition["model"]["vocab"]
    return list(vocab.values()) if isinstance(vocab, dict) else [len(vocab) - 1]


def both(folder: Path) -> tuple[Tokenizer, PreTrainedTokenizerBase]:
    """(ours, transformers') of a folder"""
    return build_tokenizer(str(folder)), AutoTokenizer.from_pretrained(str(folder))
