"""What is kept of it: documents, cleaned (`corpus`), held out for validation or not (`split`), and
how many passages of those training has as well (`overlap`).
"""

__all__ = ["corpus", "overlap", "split"]
