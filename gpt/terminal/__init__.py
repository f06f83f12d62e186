"""What sample.py shows and reads: its options, texts as they grow, conversations."""

__all__ = ["chat", "options", "show"]
