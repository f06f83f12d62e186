"""How good a model is: figures with intervals, and how two models differ."""

from gpt.evaluation import questions
from gpt.evaluation.core import Bundle, Core, core_score
from gpt.evaluation.intervals import Interval, Units, interval
from gpt.evaluation.material import Material
from gpt.evaluation.measured import (
    BATCH_TOKENS,
    Difference,
    Measurement,
    Subject,
    difference,
    measure,
    window_length,
)
from gpt.evaluation.scored import Scored, dealt, score_tokens
from gpt.evaluation.told import (
    Result,
    as_json,
    core_result,
    difference_line,
    in_format,
    lines,
)

__all__ = ["BATCH_TOKENS", "Bundle", "Core", "Difference", "Interval", "Material", "Measurement",
           "Result", "Scored", "Subject", "Units", "as_json", "core_result", "core_score", "dealt",
           "difference", "difference_line", "harness", "in_format", "interval", "lines", "measure",
           "questions", "score_tokens", "window_length"]
