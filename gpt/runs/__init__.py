"""What a run leaves, and how it is found again.

`folder`: a run's own; `checkpoint`: saving, finding and loading; `saved_model`: any model on disk,
whoever saved it; `history`: what a run did, from what it logged; `manifest`: its checkpoints and
their hashes, without torch.
"""

__all__ = ["checkpoint", "folder", "history", "manifest", "saved_model"]
