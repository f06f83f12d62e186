"""What ranks would import one after the other: imported once, before they are forked."""

from __future__ import annotations

import torch.distributed.fsdp
import torch.distributed.pipelining
import torch.distributed.tensor.parallel  # noqa: F401

import finetune  # noqa: F401
import train  # noqa: F401
from gpt.finetuning import run  # noqa: F401
from gpt.parallel import context, gradients, muon, parts, pipeline_schedule, tensor  # noqa: F401
from gpt.training import pretraining, task  # noqa: F401
