"""What happens inside a model while it reads: attention, the residual stream, heads, neurons."""

from gpt.inspection.ablation import Ablations, ablations
from gpt.inspection.heads import head_scores
from gpt.inspection.look import Look, Neuron, look_at
from gpt.inspection.positions import Positions, position_encoding

__all__ = ["Ablations", "Look", "Neuron", "Positions", "ablations", "head_scores", "look_at",
           "position_encoding"]
