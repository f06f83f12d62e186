"""What a run leaves: its folder, its checkpoints, and how they are found again."""
