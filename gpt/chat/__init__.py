"""Conversations as text and token ids, in a format that is data."""
