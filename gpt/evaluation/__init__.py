"""How good a model is: figures with intervals, and how two models differ."""

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
from gpt.evaluation.scored import Scored, score_tokens
from gpt.evaluation.told import as_json, difference_line, lines

__all__ = ["BATCH_TOKENS", "Difference", "Interval", "Material", "Measurement", "Scored", "Subject",
           "Units", "as_json", "difference", "difference_line", "interval", "lines", "measure",
           "score_tokens", "window_length"]
