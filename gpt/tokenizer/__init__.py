"""Text to token ids and back, whichever library does it; from and to Hugging Face's files."""

from gpt.tokenizer.base import (
    CHAT_FORMAT,
    CHAT_TEMPLATE,
    END_OF_TEXT,
    Boundaries,
    Tokenizer,
    digest_of,
)
from gpt.tokenizer.building import (
    KNOWN_FILES,
    NAMED,
    SPECIFICATIONS,
    bpe_ranks,
    build_tokenizer,
    needs_corpus,
    train_bpe_with_tokenizers,
)
from gpt.tokenizer.fast_encoding import BLANKS
from gpt.tokenizer.hub_folder import HubFolder
from gpt.tokenizer.huggingface import read_huggingface_tokenizer, tokenizer_of_definition
from gpt.tokenizer.json_tokenizer import JsonTokenizer
from gpt.tokenizer.merges import merges_of
from gpt.tokenizer.patterns import BPE_PATTERN, CL100K_PATTERN, GPT2_PATTERN, O200K_PATTERN
from gpt.tokenizer.rank_file import read_ranks
from gpt.tokenizer.rank_tokenizer import RankTokenizer
from gpt.tokenizer.to_json import padding, tokenizer_config, tokenizer_json

__all__ = ["BLANKS", "BPE_PATTERN", "CHAT_FORMAT", "CHAT_TEMPLATE", "CL100K_PATTERN", "END_OF_TEXT",
           "GPT2_PATTERN", "KNOWN_FILES", "NAMED", "O200K_PATTERN", "SPECIFICATIONS", "Boundaries",
           "HubFolder", "JsonTokenizer", "RankTokenizer", "Tokenizer", "alphabet", "bpe_ranks",
           "build_tokenizer", "cutting", "definition", "digest_of", "hub_folder", "merges",
           "merges_of", "needs_corpus", "padding", "patterns", "read_huggingface_tokenizer",
           "read_ranks", "tokenizer_config", "tokenizer_json", "tokenizer_of_definition",
           "train_bpe_with_tokenizers"]
