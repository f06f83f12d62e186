"""The GPT: embedding, a stack of blocks, a last norm, and one score per token of the vocabulary."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from gpt.configuration import AdapterConfig, ModelConfig
from gpt.model.block import Block
from gpt.model.cache import KVCache
from gpt.model.embedding import Embedding
from gpt.model.norm import RMSNorm1p, make_last_norm
from gpt.model.rope import RotationTable
from gpt.model.visibility import Visible, positions_within, visible_keys, visible_within

EMBEDDING_STD = 0.02  # Source: Radford et al. 2018 (GPT), section 4.1


class GPT(nn.Module):
    """A decoder-only Transformer.

    The default configuration is Qwen3's architecture (RoPE, RMSNorm, QK-norm, SwiGLU, grouped
    key/value heads, no biases); others are GPT-2's and Vaswani et al.'s. Weights are drawn from
    torch's global generator on construction: see `initialise`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        assert config.vocab_size is not None, "the vocabulary's size comes from the tokenizer"
        self.config = config
        self.adapter: AdapterConfig | None = None  # lora.py
        self._compiled: Callable[..., Tensor] | None = None
        self.rotations = RotationTable(config)
        self.recompute = False  # layers in the backward pass, to keep less: arXiv:1604.06174
        self.embedding = Embedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = make_last_norm(config)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size,
                                     bias="lm_head" in config.biases)
        if not self.output_weight.is_meta:  # whose weights come from a file
            self.initialise()

    def forward(self, tokens: Tensor, cache: KVCache | None = None,
                segments: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        """Scores of every possible next token, at every position.  (B, T) int64 -> (B, T, V)

        cache: what was read before `tokens`; it grows by T.
        segments: (B, T) int64, the number of each token's document in its row, never falling; each
        document is then read as if it stood alone. None: a row is one text.
        prompts: (B, T) bool, tokens that read each other in both directions: PrefixLM, Raffel et
        al. 2020 (arXiv:1910.10683), section 3.2.1. None: each reads what came before it.
        Raises ValueError if the sequence outgrows block_size or the cache, if segments are given
        with a cache, or prompts with one that holds tokens already.
        """
        return self.logits(self.hidden(tokens, cache, segments, prompts))

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, segments: Tensor | None = None,
               prompts: Tensor | None = None) -> Tensor:
        """The residual stream after the last norm.  (B, T) int64 -> (B, T, C)"""
        self.rotations.cover(self._length(tokens, cache), tokens.device)
        read = self._compiled if self.training and self._compiled is not None else self._hidden
        return read(tokens, cache, segments, prompts)

    def _hidden(self, tokens: Tensor, cache: KVCache | None, segments: Tensor | None,
                prompts: Tensor | None, blockwise: bool = False) -> Tensor:
        T, windows, kinds = tokens.size(1), self.config.windows, self.config.rotations
        positions, visible = self._places(tokens, cache, segments, prompts, blockwise)
        rotations = self.rotations.at(positions)
        x = self.embedding(tokens, positions)
        layer_caches = [None] * len(self.blocks) if cache is None else cache.layers(T)
        for i, (block, layer_cache) in enumerate(zip(self.blocks, layer_caches, strict=True)):
            if self.recompute and self.training and layer_cache is None:
                x = recomputed(block, x, rotations[kinds[i]], None, visible[windows[i]],
                               use_reentrant=False)
            else:
                x = block(x, rotations[kinds[i]], layer_cache, visible[windows[i]])
        if cache is not None:
            cache.advance(T)
        return self.final_norm(x)

    def _length(self, tokens: Tensor, cache: KVCache | None) -> int:
        """How many positions there may be."""
        return tokens.size(1) if cache is None else cache.max_tokens

    def _places(self, tokens: Tensor, cache: KVCache | None, segments: Tensor | None,
                prompts: Tensor | None, blockwise: bool
                ) -> tuple[Tensor, dict[int | None, Visible]]:
        """Where tokens stand, (T,) or (B, T), and what they may read.

        This, `_length` and `Attention._attend` alone know that tokens are whole rows.
        """
        T, device = tokens.size(1), tokens.device
        self.refuse_too_long(T, cache)
        if segments is not None or prompts is not None:
            if cache is not None and (segments is not None or cache.lengths.any()):
                raise ValueError("a cache continues one text: it cannot be used with segments, nor "
                                 "with prompts that come later")
            segments = torch.zeros_like(tokens) if segments is None else segments
            positions = positions_within(segments)
        elif cache is not None:
            positions = cache.positions(T)
        else:
            positions = torch.arange(T, device=device)
        return positions, self._visible(T, device, cache, segments, prompts, blockwise)

    def _visible(self, T: int, device: torch.device, cache: KVCache | None,
                 segments: Tensor | None, prompts: Tensor | None, blockwise: bool
                 ) -> dict[int | None, Visible]:
        """What layers may read, by their window."""
        windows = set(self.config.windows)
        if blockwise:
            from gpt.model.blockwise import visible_blocks  # imports torch's compiler
            return {w: visible_blocks(T, w, device, segments, prompts) for w in windows}
        if segments is not None:
            return {w: visible_within(segments, w, prompts) for w in windows}
        if cache is not None:
            return {w: cache.visible(T, w) for w in windows}
        return {w: visible_keys(T, T, w, device) for w in windows}

    def new_cache(self, batch_size: int, max_tokens: int, device: torch.device,
                  dtype: torch.dtype) -> KVCache:
        """An empty cache for the key/value heads that this model's layers have here."""
        heads = cast(Block, self.blocks[0]).attention.qkv_widths[1] // self.config.head_dim
        return KVCache(self.config, batch_size, max_tokens, device, dtype, heads)

    def refuse_too_long(self, T: int, cache: KVCache | None) -> None:
        """Raise ValueError if T more tokens outgrow block_size or the cache."""
        length = T if cache is None else T + cache.longest
        if length > self.config.block_size:
            raise ValueError(f"a sequence of {length} tokens is longer than block_size "
                             f"({self.config.block_size})")
        if cache is not None and length > cache.max_tokens:
            raise ValueError(f"a sequence of {length} tokens does not fit into a cache of "
                             f"{cache.max_tokens}")

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile in place all but the output layer, whose loss is computed in chunks.

        Training steps alone run compiled: evaluation and generation come in many lengths, and each
        would have to be compiled anew.
        """
        from gpt.model.blockwise import reads_blockwise  # imports torch's compiler
        blockwise = reads_blockwise(self.config, self.output_weight.device)
        self._compiled = torch.compile(functools.partial(self._hidden, blockwise=blockwise),
                                       *args, **kwargs)

    def compile_blocks(self) -> None:
        """Compile the blocks one by one: where something is done between them, as FSDP does."""
        for block in self.blocks:
            block.compile()

    @property
    def is_compiled(self) -> bool:
        """Whether training steps run compiled."""
        return self._compiled is not None

    def logits(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, V)"""
        return self.bend(self.project(x))

    def bend(self, scores: Tensor) -> Tensor:
        """Keep scores within logit_softcap.  Source: Gemma 2, arXiv:2408.00118, section 2."""
        limit = self.config.logit_softcap
        return scores if limit is None else limit * torch.tanh(scores / limit)

    def project(self, x: Tensor) -> Tensor:
        """The output layer alone.  (B, T, C) -> (B, T, V)"""
        if hasattr(self, "lm_head"):
            scores: Tensor = self.lm_head(x)
            return scores
        return F.linear(x, self.embedding.token_embedding.weight)

    @property
    def vocab_size(self) -> int:
        """Token ids that it scores; some may be padding, and no token of its tokenizer."""
        return self.embedding.token_embedding.num_embeddings

    @property
    def output_weight(self) -> Tensor:
        """The (V, C) matrix that turns the residual stream into scores."""
        if self.config.tie_embeddings:
            return self.embedding.token_embedding.weight
        return self.lm_head.weight

    @property
    def output_bias(self) -> Tensor | None:
        """What is added to scores, (V,), as in GPT-J and Phi-2."""
        return None if self.config.tie_embeddings else self.lm_head.bias

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw the weights, as `drawn_weights` says."""
        weights = dict(self.named_parameters())
        for name, drawn in self.drawn_weights():
            weights[name].copy_(drawn)

    def drawn_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight's name and first value, one after the other, on the CPU.

        Embeddings: normal, std 0.02. Matrices: normal, std 1/√(fan-in), which keeps the scale of
        what flows through them at any width. The two matrices that write into the residual stream:
        zero, so that every block begins as the identity (arXiv:1901.09321; GPT-2 shrinks them
        instead), unless norms follow them. Biases: zero. Norms: one, or what stands for it.
        """
        writers = ("out_proj", "down_proj") if self.config.norm_placement == "before" else ()
        for path, module in self.named_modules():
            for name, weight in module.named_parameters(path, recurse=False):
                first = torch.zeros(weight.shape, device="cpu")
                if isinstance(module, nn.Embedding):
                    first.normal_(std=EMBEDDING_STD)
                elif not isinstance(module, nn.Linear):
                    zero = name.endswith("bias") or isinstance(module, RMSNorm1p)
                    first.fill_(0.0 if zero else 1.0)
                elif weight.dim() == 2 and not path.endswith(writers):
                    first.normal_(std=module.in_features ** -0.5)
                yield name, first
