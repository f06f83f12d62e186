"""Fine-tuning: examples → conversations in a chat format → tokens and what is learned → batches."""

from gpt.finetuning.examples import Example, Preference
from gpt.finetuning.measures import figures
from gpt.finetuning.method import choose_what_learns, learning_rate
from gpt.finetuning.preview import preview
from gpt.finetuning.rows import Row, Rows, encode_examples, padded_batches
from gpt.finetuning.task import TaskRows

__all__ = ["Example", "Preference", "Row", "Rows", "TaskRows",
           "choose_what_learns", "encode_examples", "figures", "learning_rate",
           "padded_batches", "preview"]
