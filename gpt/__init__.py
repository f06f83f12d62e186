"""A decoder-only GPT toolkit: pretrain on raw text, fine-tune on a task, sample.

    import gpt
    lm = gpt.load("runs/quickstart")
    print(lm.generate("def main(", max_new_tokens=64, temperature=0.8, seed=1))
"""

from gpt.errors import UserError
from gpt.language_model import LanguageModel, load
from gpt.model import GPT

__all__ = ["GPT", "LanguageModel", "UserError", "load"]
__version__ = "0.1.0"
