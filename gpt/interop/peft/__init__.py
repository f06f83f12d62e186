"""Adapters in PEFT's layout."""
