"""The chat template that other tools read: how messages become the text that a model learned from.

It is Jinja, carried along as data; nothing here executes it.
"""

from __future__ import annotations

from gpt.tokenizer import Tokenizer

_PLAIN = ("{%- for message in messages %}{{ message[\"content\"] }}"
          "{%- if message[\"role\"] == \"assistant\" %}{{ eos_token }}{% endif %}{% endfor %}")


def plain_template(tokenizer: Tokenizer) -> str:
    """Prompt, completion, stop token, with nothing in between, as `encode_records` has it."""
    return _PLAIN if tokenizer.begin_of_text is None else "{{- bos_token }}" + _PLAIN
