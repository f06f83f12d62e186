"""The token-shard format: write, map, verify; and which names are held out for validation.

Hands out `Dataset` (a prepared folder), its manifest's parts, and the writer of one split.
"""

from gpt.shards.counting import sampled_counts
from gpt.shards.holdout import held_out_names, is_held_out
from gpt.shards.reading import (
    MANIFEST,
    SPLITS,
    Amount,
    Dataset,
    Manifest,
    ShardInfo,
    SourceInfo,
    Split,
    SplitInfo,
    TokenizerInfo,
    TokenStream,
    changed_file,
    dataset_folder,
    dtype_for,
    is_dataset,
    map_shards,
    offsets_file,
    read_manifest,
    verify_dataset,
    write_manifest,
)
from gpt.shards.writing import SplitWriter, WriterState

__all__ = ["MANIFEST", "SPLITS", "Amount", "Dataset", "Manifest", "ShardInfo", "SourceInfo",
           "Split", "SplitInfo", "SplitWriter", "TokenStream", "TokenizerInfo", "WriterState",
           "changed_file", "dataset_folder", "dtype_for", "held_out_names", "is_dataset",
           "is_held_out", "map_shards", "offsets_file", "read_manifest", "sampled_counts",
           "verify_dataset", "write_manifest"]
