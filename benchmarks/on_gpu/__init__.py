"""What `python benchmarks/gpu.py` runs: a module per part, and what they share.

results: what is known, in files that survive a cut. bench: the device, and how things are timed.
"""
