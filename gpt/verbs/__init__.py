"""The verbs of `python -m gpt`: each module has its arguments and what it does with them."""
