"""Files that are there whole or not at all, locks, and tensors on disk."""
