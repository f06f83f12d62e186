"""The token-shard format: write, map, verify; what is held out of it."""
