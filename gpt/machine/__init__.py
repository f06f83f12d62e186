"""What a process computes on, and how it is stopped.

`device`: where and in what numbers a run computes; `hardware`: what there is, and how fast it is;
`allocator`: how memory is kept; `signals`: requests to stop; `progress`: bars. The last two need
no torch.
"""

__all__ = ["allocator", "device", "hardware", "progress", "signals"]
