"""Fine-tuning: examples → conversations in a chat format → tokens and what is learned → batches."""

from gpt.finetuning.asked import task_result
from gpt.finetuning.bad_text import written
from gpt.finetuning.examples import Example, Preference
from gpt.finetuning.formats import read_task
from gpt.finetuning.measures import answer_figures, label_accuracy
from gpt.finetuning.method import choose_what_learns
from gpt.finetuning.preview import preview
from gpt.finetuning.rows import Row, Rows, encode_examples, padded_batches, refuse_useless
from gpt.finetuning.splits import labels_of
from gpt.finetuning.task_rows import TaskRows, chat_for
from gpt.finetuning.tool_texts import spoken

__all__ = ["Example", "Preference", "Row", "Rows", "TaskRows", "answer_figures",
           "chat_for", "choose_what_learns", "encode_examples", "label_accuracy", "labels_of",
           "padded_batches", "preferences", "preview", "read_task", "refuse_useless", "run",
           "spoken", "task_result", "written"]
