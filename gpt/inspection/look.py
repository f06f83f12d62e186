"""A text as a model reads it, in numbers: what a page or a notebook can draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.errors import UserError
from gpt.inspection.recording import Layer, record
from gpt.model import GPT
from gpt.model.adapted_linear import AdaptedLinear
from gpt.model.int8 import Int8Linear
from gpt.tokenizer import Tokenizer

LIKELIEST = 10  # next tokens that are told
NEURONS, PROMOTED = 24, 5  # neurons that are told, and tokens for each
PIECE = 64  # positions at a time: their scores of the whole vocabulary stand in memory


@dataclass(frozen=True)
class Neuron:
    """A unit of a feed-forward: a column of its last matrix, added as strongly as it is active.

    activations: (T,). tokens: (5,) ids whose scores its column raises most through the output
    layer, in the direction of its strongest activation: Geva et al. 2022, arXiv:2203.14680.
    """

    layer: int
    index: int
    activations: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True)
class Look:
    """What happened inside a model of L layers and H heads while it read T tokens.

    tokens: (T,). texts: what stands for each; a part of a character as \\xe2.
    attention: (L, H, T, T), how much each query takes of each key; the keys of a query sum to one.
    residual_norms: (L + 1, T), of the residual stream before each layer and after the last.
    attention_norms, feedforward_norms: (L, T), of what each layer's two parts add to it.
    lens_tokens, lens_probabilities: (L + 1, T, 10), what each of those L + 1 places would say next
    if it were the last one, the likeliest first; fewer than 10 where the vocabulary is smaller.
    lens_next: (L + 1, T - 1), how likely the token that follows is to each of them.
    neurons: of all layers the 24 that at some token add the longest vector, the longest first.
    logits: (V,), scores of what follows the text.

    Ids are int64, all else float32.  Source of the lens: nostalgebraist 2020, "interpreting GPT".
    """

    tokens: np.ndarray
    texts: list[str]
    attention: np.ndarray
    residual_norms: np.ndarray
    attention_norms: np.ndarray
    feedforward_norms: np.ndarray
    lens_tokens: np.ndarray
    lens_probabilities: np.ndarray
    lens_next: np.ndarray
    neurons: list[Neuron]
    logits: np.ndarray


@torch.inference_mode()
def look_at(model: GPT, tokenizer: Tokenizer, tokens: Sequence[int],
            both_ways: bool = False) -> Look:
    """Watch a model read a text; both_ways: its tokens read each other in both directions.

    Raises UserError for more tokens than the model reads.
    """
    if len(tokens) > model.config.block_size:
        raise UserError(f"the text has {len(tokens)} tokens, the model reads "
                        f"{model.config.block_size} (model.block_size); shorten the text")
    read = torch.tensor([tokens], device=model.embedding.token_embedding.weight.device)
    recording = record(model, read, both_ways)
    layers, streams = recording.layers, torch.cat(recording.streams)     # (L + 1, T, C)
    likeliest, probabilities, following = _lens(model, streams, read[0])
    return Look(
        np.array(tokens), [tokenizer.token_text(token) for token in tokens],
        np.concatenate([_numpy(layer.weights()) for layer in layers]),
        _norms(streams), _norms(torch.cat([layer.attended for layer in layers])),
        _norms(torch.cat([layer.fed for layer in layers])),
        likeliest.cpu().numpy(), _numpy(probabilities), _numpy(following),
        _strongest(model, layers), _numpy(model.logits(model.final_norm(streams[-1, -1]))))


def _numpy(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy()


def _norms(x: Tensor) -> np.ndarray:
    """(…, C) -> (…)"""
    return _numpy(torch.linalg.vector_norm(x.float(), dim=-1))


def _lens(model: GPT, streams: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What each place of the stream would say next: Look's lens_….  (L + 1, T, C), (T,)"""
    following = F.pad(tokens[1:], (0, 1)).repeat(len(streams))  # nothing follows the last one
    pieces = zip(streams.flatten(0, 1).split(PIECE), following.split(PIECE), strict=True)
    told = [_said(model, x, ids) for x, ids in pieces]
    likeliest, chances, chance = (torch.cat(part).unflatten(0, streams.shape[:2])
                                  for part in zip(*told, strict=True))
    return likeliest, chances, chance[:, :-1]


def _said(model: GPT, x: Tensor, following: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Likeliest ids and their probabilities, and `following`'s.  (n, C), (n,) -> (n, k) twice, (n,)
    """
    probabilities = model.logits(model.final_norm(x)).float().softmax(dim=-1)
    best = probabilities.topk(min(LIKELIEST, probabilities.size(-1)))
    return best.indices, best.values, probabilities.gather(1, following.unsqueeze(1)).squeeze(1)


def _strongest(model: GPT, layers: Sequence[Layer]) -> list[Neuron]:
    """As in Look."""
    found = sorted(_candidates(model, layers), key=lambda each: each[0], reverse=True)[:NEURONS]
    pushes = torch.stack([column * values[values.abs().argmax()].sign()
                          for *_, values, column in found])
    raised = model.project(pushes.to(model.output_weight.dtype))         # (24, V)
    promoted = raised.topk(min(PROMOTED, raised.size(-1))).indices.cpu().numpy()
    return [Neuron(layer, index, _numpy(values), tokens)
            for (_, layer, index, values, _), tokens in zip(found, promoted, strict=True)]


def _candidates(model: GPT, layers: Sequence[Layer]
                ) -> Iterator[tuple[float, int, int, Tensor, Tensor]]:
    """Of each layer the strongest: (longest vector, layer, index, activations (T,), column (C,))"""
    for i, layer in enumerate(layers):
        matrix = _matrix(model.get_submodule(f"blocks.{i}.feedforward.down_proj")).float()
        activations = layer.neurons[0].float()                           # (T, n_inner)
        lengths = activations.abs().amax(dim=0) * torch.linalg.vector_norm(matrix, dim=0)
        best = lengths.topk(min(NEURONS, len(lengths)))
        for length, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            yield length, i, index, activations[:, index], matrix[:, index]


def _matrix(linear: torch.nn.Module) -> Tensor:
    """What a linear layer multiplies with, whatever it keeps it as.  (O, I)"""
    if isinstance(linear, AdaptedLinear):
        return linear.merged(torch.float32).weight
    if isinstance(linear, Int8Linear):
        return linear.weight * linear.scale.unsqueeze(1)
    assert isinstance(linear, torch.nn.Linear)
    return linear.weight
