"""A run as typed, validated sections: from defaults, a YAML file and the command line.

Hands out every section, the settings of sampling, and what turns a command line into them.
"""

from gpt.configuration.adapter import AdapterConfig, LoraConfig
from gpt.configuration.command_line import (
    find_places,
    help_text,
    nested,
    parse_command_line,
    refuse_another_commands,
    split_arguments,
    validate,
)
from gpt.configuration.finetune import FinetuneSection, PreferenceConfig
from gpt.configuration.model import BIASES, GATED, USUAL_BIASES, ModelConfig
from gpt.configuration.parallel import WAYS, ParallelConfig
from gpt.configuration.presets import MAX_DEPTH, TOKENS_PER_PARAMETER
from gpt.configuration.sampling import SamplingConfig, sampling_config
from gpt.configuration.section import Section, fields
from gpt.configuration.sections import (
    BUDGETS,
    PLACES,
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    FinetuneConfig,
    LogConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    RunSections,
    TrainConfig,
    json_schema,
)

__all__ = ["BIASES", "BUDGETS", "GATED", "MAX_DEPTH", "PLACES", "TOKENS_PER_PARAMETER",
           "USUAL_BIASES", "WAYS", "AdapterConfig", "CheckpointConfig", "DataConfig", "EvalConfig",
           "FinetuneConfig", "FinetuneSection", "LogConfig", "LoraConfig", "ModelConfig",
           "OptimConfig", "ParallelConfig", "PreferenceConfig", "PretrainConfig", "RunConfig",
           "RunSections", "SamplingConfig", "Section", "TrainConfig", "fields", "find_places",
           "help_text", "json_schema", "nested", "parse_command_line",
           "refuse_another_commands", "sampling_config", "split_arguments", "strict_yaml",
           "validate"]
