"""Fine-tuning: records → tokens with a loss mask → batches."""

from gpt.finetuning.records import Record, read_records
from gpt.finetuning.rows import Row, Rows, encode_records, first_rows, hold_out, padded_batches
from gpt.finetuning.template import plain_template

__all__ = ["Record", "Row", "Rows", "encode_records", "first_rows", "hold_out", "padded_batches",
           "plain_template", "read_records"]
