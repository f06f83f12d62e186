"""What terminals show and read: sample.py's options, texts as they grow, conversations; runs."""

__all__ = ["chat", "options", "runs", "show"]
