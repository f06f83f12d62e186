"""From a task to a trained run: one loop for every stage.

`pretraining` is a `task`, which `loop` trains by `step`, making its `objective` small; `evaluate`
scores; `budget`, `choices` and `plan` say how long, in what portions and at what cost; `replay`
takes a step again that went wrong.
"""

__all__ = ["budget", "choices", "evaluate", "objective", "plan", "pretraining", "replay",
           "step", "task"]
