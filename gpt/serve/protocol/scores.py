"""POST /v1/score: what the model thinks of a text that is given."""

from __future__ import annotations

import asyncio
from typing import Any

from gpt.generation import Worker
from gpt.serve.models import Served
from gpt.serve.protocol.answers import finite
from gpt.serve.protocol.fields import Score, config_of
from gpt.serve.protocol.texts import Prompt, Texts


async def score(body: Score, served: Served, worker: Worker) -> dict[str, Any]:
    """Log-probabilities as lm.score gives them, in float32."""
    lm, begin = served.lm, body.begin is not False
    tokens = await asyncio.to_thread(lm.prompt_tokens, body.text, begin)
    texts = Texts(worker, served, [Prompt(tokens)], config_of({}, 0), scored=True)
    try:
        await texts.start()
        known = (await texts.finished())[0].before
    finally:
        texts.close()
    told = [(new.token, finite(new.logprob)) for new in known]
    before = [] if begin else [(token, None) for token in tokens[:len(tokens) - len(known)]]
    return {
        "object": "score", "model": body.model or served.name,
        "tokens": [token for token, _ in [*before, *told]],
        "texts": [lm.tokenizer.token_text(token) for token, _ in [*before, *told]],
        "logprobs": [logprob for _, logprob in [*before, *told]],
        "total": sum(logprob for _, logprob in told)}
