"""A decoder-only GPT toolkit: pretrain on raw text, fine-tune on a task, sample.

    import gpt
    lm = gpt.load("runs/quickstart")
    print(lm.generate("def main(", max_new_tokens=64, temperature=0.8, seed=1))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpt.errors import UserError

if TYPE_CHECKING:
    from gpt.language_model import LanguageModel, load
    from gpt.model import GPT
    from gpt.reports import report

__all__ = ["GPT", "LanguageModel", "UserError", "load", "report"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for: preparing data does without it."""
    if name == "GPT":
        from gpt.model import GPT
        return GPT
    if name in ("LanguageModel", "load"):
        from gpt import language_model
        return getattr(language_model, name)
    if name == "report":
        from gpt.reports import report
        return report
    raise AttributeError(f"module 'gpt' has no attribute '{name}'")
