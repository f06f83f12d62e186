"""What a process computes on, and how it is stopped.

`device`: where and in what numbers a run computes; `hardware`: what there is, and how fast it is;
`allocator`: how memory is kept; `neighbours`: other processes on the same cores; `signals`:
requests to stop; `progress`: bars; `ranks`: processes that work together; `seeds`: of random
draws; `unused`: warnings of what they leave idle.
"""

__all__ = ["allocator", "device", "hardware", "neighbours", "progress", "ranks", "seeds",
           "signals", "unused"]
