"""A run as typed, validated sections: from defaults, a YAML file and the command line.

Hands out every section, the settings of sampling, and what turns a command line into them.
"""

from gpt.configuration.adapter import AdapterConfig, LoraConfig
from gpt.configuration.command_line import help_text, parse_command_line, split_arguments, validate
from gpt.configuration.model import ModelConfig
from gpt.configuration.presets import TOKENS_PER_PARAMETER
from gpt.configuration.sampling import SamplingConfig, sampling_config
from gpt.configuration.section import Section
from gpt.configuration.sections import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    FinetuneConfig,
    FinetuneSection,
    LogConfig,
    OptimConfig,
    PreferenceConfig,
    PretrainConfig,
    RunConfig,
    RunSections,
    TrainConfig,
    json_schema,
)

__all__ = ["TOKENS_PER_PARAMETER", "AdapterConfig", "CheckpointConfig", "DataConfig", "EvalConfig",
           "FinetuneConfig", "FinetuneSection", "LogConfig", "LoraConfig", "ModelConfig",
           "OptimConfig", "PreferenceConfig", "PretrainConfig", "RunConfig", "RunSections",
           "SamplingConfig", "Section", "TrainConfig", "help_text", "json_schema",
           "parse_command_line", "sampling_config", "split_arguments", "strict_yaml", "validate"]
