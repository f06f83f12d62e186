"""What a run leaves, and how it is found again.

`folder`: a run's own; `checkpoint`: saving, finding and loading; `saved_model`: any model on disk,
whoever saved it.
"""

__all__ = ["checkpoint", "folder", "saved_model"]
