"""An OpenAI-compatible server: texts of any model here, for every client that speaks its protocol.
"""

from gpt.serve.models import Limits, Opening, Served, serve_models
from gpt.serve.server import Place, run
from gpt.serve.watching import mark_runs

__all__ = ["Limits", "Opening", "Place", "Served", "mark_runs", "run", "serve_models"]
