"""Proof that an export is the model it was made from: logits and ids compared, on real text."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from gpt.configuration import ModelConfig
from gpt.errors import WorkFailed
from gpt.interop.architectures import differences
from gpt.machine.hardware import package_version
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

TOLERANCE = 1e-4  # of the largest value where that is above 1: float32 sums in another order
_TOKENS = 256
_LETTERS, _DIGITS, _MARKS = "aß", "12", ".*"
_AWKWARD = """The price rose from 3.14 to 1,234.50 € — didn't it? Ünïcödé, naïve café (e\u0301).
北京的天气很好。 日本語のテキスト。 Привет, мир! \u200bשלום\u200f. 👩\u200d👩\u200d👧 🇪🇺 👍🏽
مَرْحَبًا بِكُمْ. ภาษาไทยไม่มีช่องว่าง नमस्ते दुनिया தமிழ் மொழி İstanbul ŞIŞLI ǅ
\tif x<=10:\r\n        return {"a": [1, 2], 'b': None}  # it's 'fine'
a\u0000b\u001fc\u0085d\u00a0e      f\n\n\n   g<|endoftext|><s></s><|im_start|>I'LL we'Ve
"""


def sample_text(tokenizer: Tokenizer) -> str:
    """Prose, code, whatever tokenizers stumble over, and every token, so that merges count."""
    return tokenizer.writable(_AWKWARD + inspect.getsource(textwrap)[:4000] + " \n "
                              + _every_token(tokenizer))


def _every_token(tokenizer: Tokenizer) -> str:
    """The tokens that are whole characters, a line each, with something behind: a piece that is one
    token by itself may be looked up rather than merged. That is the token again or, where other
    merges then come first, a letter, a digit or a mark. Then the names of control tokens, which
    stay text."""
    tokens = {}
    for i in sorted(tokenizer.text_ids):
        with contextlib.suppress(UnicodeDecodeError):
            tokens[i] = tokenizer.decode_bytes([i]).decode()
    lines = {i: token + token.strip() for i, token in tokens.items()}
    hidden = [*tokens]
    for attempt in range(1 + len(_MARKS)):
        if attempt:
            lines |= {i: tokens[i] + _alike(tokens[i])[attempt - 1] for i in hidden}
        found = tokenizer.encode_arrays([lines[i] for i in hidden])
        hidden = [i for i, ids in zip(hidden, found, strict=True) if i not in ids]
    return "\n".join([*lines.values(), *tokenizer.specials])


def _alike(token: str) -> str:
    """Characters that stay in one piece with the end of a token."""
    last = token[-1:]
    return _LETTERS if last.isalpha() else _DIGITS if last.isdecimal() else _MARKS


def sample_tokens(tokenizer: Tokenizer, block_size: int, vocab_size: int) -> Tensor:
    """Two rows to compare logits on, one of real text and one of random ids: (2, T) int64."""
    text = tokenizer.encode(sample_text(tokenizer))[:min(block_size, _TOKENS)]
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.tensor(text),
                        torch.randint(vocab_size, (len(text),), generator=generator)])


@torch.inference_mode()
def layer_states(model: GPT, tokens: Tensor) -> dict[str, Tensor]:
    """What leaves each layer, (B, T, C), and the logits, (B, T, V)."""
    states: dict[str, Tensor] = {}
    parts: list[tuple[str, nn.Module]] = [("embedding", model.embedding)]
    parts += [(f"block {i}", block) for i, block in enumerate(model.blocks)]
    handles = [part.register_forward_hook(
        lambda module, given, out, name=name: states.update({name: out}))
        for name, part in [*parts, ("final norm", model.final_norm)]]
    states["logits"] = model(tokens)
    for handle in handles:
        handle.remove()
    states["final norm"] = states["final norm"] / model.config.logit_scale  # others do it later
    return states


def compare_options(expected: ModelConfig, found: ModelConfig) -> None:
    """Raise WorkFailed naming the first option that is read back with another value."""
    for name, (wanted, there) in differences(expected, found).items():
        raise WorkFailed(f"the export is wrong and was deleted: read back, model.{name} is "
                         f"{there}, not {wanted}; please report this with the model's "
                         "configuration")


def compare_states(expected: dict[str, Tensor], found: dict[str, Tensor], what: str) -> float:
    """The largest difference of the logits. Raises WorkFailed naming the first layer that differs.

    Layers that only one side knows are passed over.
    """
    for name in [*(name for name in expected if name != "logits"), "logits"]:
        if name in found:
            difference = float((found[name].float() - expected[name]).abs().max())
            limit = TOLERANCE * max(1.0, float(expected[name].abs().max()))
            if not difference <= limit:  # a NaN is no match either
                raise WorkFailed(f"the export is wrong and was deleted: read back by {what}, "
                                 f"{name} differs by {difference:.3g} (at most {limit:.3g} would "
                                 "be rounding); please report this with the model's configuration")
    return difference


def compare_ids(expected: Sequence[int], found: Sequence[int], what: str) -> None:
    """Raise WorkFailed naming the first place where the ids of the sample text differ."""
    if list(expected) != list(found):
        pairs = zip(expected, found, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b),
                     min(len(expected), len(found)))
        raise WorkFailed(f"the export is wrong and was deleted: {what} encodes the sample text "
                         f"differently from token {place} on; please report this with the "
                         "tokenizer's specification")


def transformers_states(folder: Path, tokens: Tensor) -> dict[str, Tensor]:
    """What leaves each layer when transformers reads a folder, without remote code."""
    from transformers import AutoModelForCausalLM

    with _quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True).eval()
    with torch.inference_mode():
        out = model(tokens, output_hidden_states=True, use_cache=False)
    names = ["embedding", *(f"block {i}" for i in range(len(out.hidden_states) - 2)), "final norm"]
    return dict(zip(names, out.hidden_states, strict=True)) | {"logits": out.logits}


def transformers_ids(folder: Path, text: str) -> list[int]:
    """Ids of a text when transformers reads a folder's tokenizer; control tokens in it are text."""
    from transformers import AutoTokenizer

    with _quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        found = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    ids: list[int] = found.input_ids
    return ids


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars, and no warning that the sample text is longer than the context.

    Raises WorkFailed for whatever transformers raises.
    """
    from transformers.utils import logging

    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:
        raise WorkFailed("the export is wrong and was deleted: transformers "
                         f"{package_version('transformers')} cannot open it "
                         f"({type(error).__name__}: {error}); please report this with the model's "
                         "configuration") from error
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()


def has_transformers() -> bool:
    """Whether there is a second opinion to be had."""
    return importlib.util.find_spec("transformers") is not None
