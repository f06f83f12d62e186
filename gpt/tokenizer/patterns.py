r"""The patterns that cut text into pieces before merging, and how `tokenizers` writes each of them.

tiktoken's regular expressions (Rust) know possessive quantifiers, `(?s:.)`, and `$` as the end of
the text. Oniguruma, which runs those of `tokenizers`, reads `{1,3}+` as a repetition, ends a line
at `$`, and has no `(?s:.)`. What stands in HUGGING_FACE cuts the same pieces without them.
"""

from __future__ import annotations

# Contractions, words with the character before them, up to three digits, punctuation, white space.
# Written so that tiktoken and `tokenizers` read it alike.
BPE_PATTERN = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
               r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT2_PATTERN = (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++"
                r"|\s++$|\s+(?!\S)|\s")
CL100K_PATTERN = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
                  r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s")
O200K_PATTERN = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
QWEN2_PATTERN = BPE_PATTERN.replace("{1,3}", "")  # digits one by one
ONE_CHARACTER = r"(?s:.)"
DIGIT = r"\p{N}"
# DeepSeek's, which cut one after the other.
DEEPSEEK_PATTERNS = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+")

# Llama 3's, which is BPE_PATTERN spelled out; programs that know it know it in this form.
_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
           r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

# By pattern of ours. GPT-2's has no entry: `tokenizers` has it built in.
HUGGING_FACE = {
    BPE_PATTERN: _LLAMA3,
    QWEN2_PATTERN: _LLAMA3.replace("{1,3}", ""),
    O200K_PATTERN: O200K_PATTERN,
    CL100K_PATTERN: (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
                     r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]|\s+(?!\S)|\s"),
    ONE_CHARACTER: r"[\s\S]",
}
ALONE = {GPT2_PATTERN, *HUGGING_FACE}  # that cut a whole text, as tiktoken needs it
FROM_HUGGING_FACE = {theirs: ours for ours, theirs in HUGGING_FACE.items()} | {
    BPE_PATTERN: BPE_PATTERN, QWEN2_PATTERN: QWEN2_PATTERN}
