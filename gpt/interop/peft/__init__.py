"""Adapters in PEFT's layout, in and out."""
