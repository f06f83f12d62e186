"""A server of tiny models, in this process."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from gpt.chat import FORMATS, Chat, Message
from gpt.configuration import sampling_config
from gpt.language_model import LanguageModel
from gpt.serve import Limits, Place, Served
from gpt.serve.server import listen, server_of
from gpt.tokenizer import build_tokenizer
from tests.tiny import CPU, tiny_gpt

LIMITS = Limits(rows=4, max_queue=8, max_tokens=200)


def model_of(form=None, seed=0, **changes):
    """Whose likeliest bytes are letters, so that texts are readable."""
    tokenizer = build_tokenizer("byte")
    if form is not None:
        tokenizer.chat_format = FORMATS[form].model_dump_json()
    return LanguageModel(tiny_gpt(seed=seed, **{
        "vocab_size": tokenizer.vocab_size, "block_size": 200} | changes), tokenizer, CPU)


def pieces_of(lm, *turns, **settings):
    """(the pieces of a model's answer, how many tokens it has read), without a server."""
    prompt = Chat(FORMATS["turns"], lm.tokenizer).prompt([Message(*turn) for turn in turns])
    asked = lm.request(prompt, sampling_config(**settings))
    return [piece for _, piece in lm.write([asked])], len(prompt)


def answer_of(lm, *turns, **settings):
    """The same, as text."""
    pieces, length = pieces_of(lm, *turns, **settings)
    return "".join(piece.text for piece in pieces), length


class Running:
    """A server that listens, and the models that it serves.

    models: by name, of some runs or made here. watched: how newer checkpoints are opened.
    """

    def __init__(self, models, place, watched=None):
        self.models = {name: one if isinstance(one, Served) else Served(name, one, LIMITS)
                       for name, one in models.items()}
        self._socket = listen(place)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = server_of(self.models, place, watched)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        while not self.server.started:
            time.sleep(0.01)

    async def _serve(self):
        self.loop = asyncio.get_running_loop()
        await self.server.serve(sockets=[self._socket])

    def lm(self, name):
        return self.models[name].lm

    def close(self):
        self.server.should_exit = True
        self._thread.join()
        assert not self.server.cut_off


@pytest.fixture(scope="session")
def running():
    server = Running({"base": model_of(seed=1), "chat": model_of("turns")}, Place(port=0))
    yield server
    server.close()
