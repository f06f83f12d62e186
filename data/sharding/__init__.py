"""From documents to shards: `making` encodes in processes, writes in order, and remembers in its
`journal` where to continue; `parts` are for many machines; `finishing` makes a dataset of it.
"""

__all__ = ["finishing", "journal", "making", "parts"]
