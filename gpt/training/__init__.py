"""From a task to a trained run: one loop for every stage."""
