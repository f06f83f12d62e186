"""What sample.py shows and reads: its options, texts as they grow, conversations."""
