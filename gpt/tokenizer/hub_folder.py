"""The small JSON files of a Hugging Face folder, which may be missing, malformed or hostile."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from gpt.errors import UserError
from gpt.files import read_json
from gpt.tokenizer.base import CHAT_TEMPLATE

_NAMED = ("eos_token", "bos_token", "unk_token", "sep_token", "pad_token", "cls_token",
          "mask_token")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LISTED = ("additional_special_tokens", "extra_special_tokens")


class HubFolder:
    """A folder, and what its files say about the tokenizer. All errors are UserErrors."""

    def __init__(self, path: Path):
        self.path = path

    def file(self, name: str) -> Path | None:
        """The path of a file; None if it is missing.

        A link may lead to the `blobs` beside the `snapshots` of a Hub cache, but to no other place.
        """
        path, root = self.path / name, self.path.resolve()
        if not path.is_file():
            return None
        target = path.resolve()
        cache = root.parent.parent / "blobs"
        if not target.is_relative_to(root) and not target.is_relative_to(cache):
            raise UserError(f"{path} is a link that leads out of its folder, to {target}; put the "
                            "file itself there")
        return path

    def json(self, name: str) -> dict[str, Any]:
        """A file's object; an empty one if the file is missing."""
        if (path := self.file(name)) is None:
            return {}
        if not isinstance(value := read_json(path), dict):
            raise UserError(f"{path} holds no JSON object; it is no file of a tokenizer")
        return value

    def text(self, name: str) -> str | None:
        """A file's text; None if it is missing."""
        if (path := self.file(name)) is None:
            return None
        try:
            return path.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}") from error

    @cached_property
    def settings(self) -> dict[str, Any]:
        """tokenizer_config.json, with what special_tokens_map.json adds to it."""
        return self.json("special_tokens_map.json") | self.json("tokenizer_config.json")

    def roles(self) -> dict[str, str]:
        """The names of tokens by what they are there for, such as bos_token."""
        found = {key: self.name_of(key) for key in _NAMED}
        return {key: name for key, name in found.items() if name is not None}

    def named_tokens(self) -> set[str]:
        """All tokens that the settings give a role of their own: most are control tokens."""
        settings = self.settings
        found = [settings.get(key) for key in _NAMED]
        for key in _LISTED:
            value = settings.get(key) or []
            found += value.values() if isinstance(value, dict) else value
        return {name for value in found if (name := self._name_in(value)) is not None}

    def name_of(self, key: str) -> str | None:
        """The name of the token that has this role; None if none has."""
        return self._name_in(self.settings.get(key))

    def _name_in(self, value: Any) -> str | None:
        """A token's name, given as such or in an object that describes it; None for null."""
        if isinstance(value, dict):
            value = value.get("content")
        if value is not None and not isinstance(value, str):
            raise UserError(f"{self.path}: a token's name must be text, not {value!r} (in "
                            "tokenizer_config.json or special_tokens_map.json)")
        return value

    def chat_template(self) -> tuple[str | None, str]:
        """The Jinja text of chat_template.jinja, or else of the settings, and where it stands.

        Of several by name, in a list or an object, the one that is called default.
        """
        if (text := self.text(CHAT_TEMPLATE)) is not None:
            return text, str(self.path / CHAT_TEMPLATE)
        value = self.settings.get("chat_template")
        if isinstance(value, list):  # [{"name": …, "template": …}, …]
            value = {one.get("name"): one.get("template") for one in value if isinstance(one, dict)
                     and isinstance(one.get("name"), str)}
        if isinstance(value, dict):
            value = value.get("default")
        if isinstance(value, str) and _SURROGATE.search(value):
            raise UserError(f"{self.path}: the chat_template in its tokenizer_config.json is no "
                            "text: it has half of a surrogate pair")
        found = value if isinstance(value, str) else None
        return found, "" if found is None else str(self.path / "tokenizer_config.json")
