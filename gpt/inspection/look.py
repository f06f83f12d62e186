"""A text as a model reads it, in numbers: what a page or a notebook can draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpt.errors import UserError
from gpt.inspection.recording import Layer, record
from gpt.model import GPT
from gpt.model.adapted_linear import AdaptedLinear
from gpt.model.int8 import Int8Linear
from gpt.tokenizer import Tokenizer

LIKELIEST = 10  # next tokens that are told
NEURONS, PROMOTED = 24, 5  # neurons that are told, and tokens for each
PIECE = 128  # positions at a time: their scores of the whole vocabulary stand in memory


@dataclass(frozen=True)
class Neuron:
    """A unit of a feed-forward, which adds its column of the last matrix, times its activation.

    Source of the tokens: Geva et al. 2022, arXiv:2203.14680.
    """

    layer: int
    index: int
    activations: np.ndarray  # (T,)
    tokens: np.ndarray  # (5,), whose scores it raises most by itself where it is most active


@dataclass(frozen=True)
class Look:
    """What happened inside a model of L layers and H heads while it read T tokens.

    The lens reads the residual stream before each layer, and after the last, as if the model ended
    there. Ids are int64, all else is float32. 10 is less where the vocabulary is smaller.
    Source of the lens: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """

    tokens: np.ndarray  # (T,)
    texts: list[str]  # what stands for each token; of a part of a character its bytes, as \xe2
    attention: np.ndarray  # (L, H, T, T), what each query takes of each key; a query's sum to 1
    residual_norms: np.ndarray  # (L + 1, T), of the stream before each layer and after the last
    attention_norms: np.ndarray  # (L, T), of what each layer's attention adds to it
    feedforward_norms: np.ndarray  # (L, T), and its feed-forward
    lens_tokens: np.ndarray  # (L + 1, T, 10), the likeliest next tokens, the likeliest first
    lens_probabilities: np.ndarray  # (L + 1, T, 10), theirs
    lens_next: np.ndarray  # (L + 1, T - 1), that of the token that follows
    neurons: list[Neuron]  # the 24 that at some token add the longest vector, the longest first
    logits: np.ndarray  # (V,), scores of what follows the text


@torch.inference_mode()
def look_at(model: GPT, tokenizer: Tokenizer, tokens: Sequence[int],
            both_ways: bool = False) -> Look:
    """Watch a model read a text; both_ways: its tokens read each other in both directions.

    Raises UserError for more tokens than the model reads.
    """
    if len(tokens) > model.config.block_size:
        raise UserError(f"the text has {len(tokens)} tokens, the model reads "
                        f"{model.config.block_size} (model.block_size); shorten the text")
    layers, last = record(model, [tokens], both_ways)
    streams = torch.cat([*(layer.x for layer in layers), last])          # (L + 1, T, C)
    likeliest, probabilities, following = _lens(model, streams, tokens)
    return Look(
        np.array(tokens), [tokenizer.token_text(token) for token in tokens],
        np.concatenate([_numpy(layer.weights()) for layer in layers]), _norms(streams),
        _norms(torch.cat([layer.attended for layer in layers])),
        _norms(torch.cat([layer.fed for layer in layers])),
        likeliest.cpu().numpy(), _numpy(probabilities), _numpy(following),
        _strongest(model, layers), _numpy(model.logits(model.final_norm(last[:, -1]))[0]))


def _numpy(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy()


def _norms(x: Tensor) -> np.ndarray:
    """(…, C) -> (…)"""
    return _numpy(torch.linalg.vector_norm(x.float(), dim=-1))


def _lens(model: GPT, streams: Tensor, tokens: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """What each place of the stream would say next: Look's lens_….  (L + 1, T, C), T ids"""
    following = torch.tensor([*tokens[1:], 0], device=streams.device)  # behind the last: anything
    told = []
    for x, ids in zip(streams.flatten(0, 1).split(PIECE),
                      following.repeat(len(streams)).split(PIECE), strict=True):
        scores = model.logits(model.final_norm(x)).float()
        total = scores.logsumexp(dim=-1, keepdim=True)
        best = scores.topk(min(LIKELIEST, scores.size(-1)))
        told.append((best.indices, (best.values - total).exp(),
                     (scores.gather(1, ids.unsqueeze(1)) - total).exp()[:, 0]))
    likeliest, best_ones, chance = (torch.cat(part).unflatten(0, streams.shape[:2])
                                    for part in zip(*told, strict=True))
    return likeliest, best_ones, chance[:, :-1]


def _strongest(model: GPT, layers: Sequence[Layer]) -> list[Neuron]:
    """As in Look."""
    found: list[tuple[float, int, int, Tensor, Tensor]] = []
    for i, layer in enumerate(layers):
        matrix = _matrix(model.get_submodule(f"blocks.{i}.feedforward.down_proj")).float()
        activations = layer.neurons[0].float()                           # (T, n_inner)
        lengths = activations.abs().amax(dim=0) * torch.linalg.vector_norm(matrix, dim=0)
        for length, at in zip(*lengths.topk(min(NEURONS, len(lengths))), strict=True):
            found.append((float(length), i, int(at), activations[:, at], matrix[:, at]))
    found = sorted(found, key=lambda each: each[0], reverse=True)[:NEURONS]
    pushes = torch.stack([column * values[values.abs().argmax()].sign()
                          for *_, values, column in found])
    pushes = pushes.to(layers[0].x.dtype)
    scores = model.project(pushes) - model.project(torch.zeros_like(pushes[:1]))  # (24, V)
    promoted = scores.topk(min(PROMOTED, scores.size(-1))).indices.cpu().numpy()
    return [Neuron(layer, index, _numpy(values), tokens)
            for (_, layer, index, values, _), tokens in zip(found, promoted, strict=True)]


def _matrix(linear: torch.nn.Module) -> Tensor:
    """What a linear layer multiplies with, whatever it keeps it as.  (O, I)"""
    if isinstance(linear, AdaptedLinear):
        return linear.merged(torch.float32).weight
    if isinstance(linear, Int8Linear):
        return linear.weight * linear.scale.float().unsqueeze(1)
    assert isinstance(linear, torch.nn.Linear)
    return linear.weight
