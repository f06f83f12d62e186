"""What a run will give before it is paid for: sizes, short runs, a law, a configuration."""

from gpt.planning.costs import Goal
from gpt.planning.devices import GIB, OnDataSheet, ThisMachine
from gpt.planning.plan import planned
from gpt.planning.written import as_json, as_yaml, told, train_command

__all__ = ["GIB", "Goal", "OnDataSheet", "ThisMachine", "as_json", "as_yaml", "planned", "told",
           "train_command"]
