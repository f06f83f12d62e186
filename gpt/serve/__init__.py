"""An OpenAI-compatible server: texts of any model here, for every client that speaks its protocol.
"""

from gpt.serve.models import Limits, Served, serve_models
from gpt.serve.server import Place, run

__all__ = ["Limits", "Place", "Served", "run", "serve_models"]
