"""What a run computes on: device, number formats, seeds, memory, signals."""
