"""From documents to shards: processes that encode, and where to continue."""
