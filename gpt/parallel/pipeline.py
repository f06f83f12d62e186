"""A model's layers in stretches over ranks, each of which computes its own and hands on the result.

A rank keeps the weights of its stretch; the others stay where they are in the model, under their
names, without memory (on torch's meta device), and compute nothing. Tied embeddings live on the
first and on the last rank.

Traffic between neighbours: in a training step B · T · C numbers of a micro-batch forward and as
many back, whatever the number of weights; V · C more between the ends if embeddings are tied.
Otherwise B · T · C to the next rank and then to all, and V · C to all once per `whole_head`.
Source: Huang et al. 2019 (GPipe, arXiv:1811.06965); Narayanan et al. 2021 (arXiv:2104.04473),
section 2.2. Shape letters: B rows, T tokens, C n_embd, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from gpt.errors import UserError
from gpt.model import GPT, KVCache
from gpt.parallel.parts import extent

TABLE = "embedding.token_embedding.weight"  # which may be the output layer's too


def lay_out_pipeline(model: GPT, mesh: DeviceMesh) -> Pipeline:
    """Leave of a model, in place, what this rank of a 1-D mesh computes.

    `model.hidden` then takes all ranks, and gives each of them what one process gives. Raises
    UserError if there are more stages than layers.
    """
    pipeline = Pipeline(model, mesh)
    tokens = model.embedding.token_embedding
    table, learns = tokens.weight.detach(), tokens.weight.requires_grad
    for part, stage in pipeline.parts.items():
        if stage != pipeline.stage:
            module = model.get_submodule(part).to("meta")
            if part != "lm_head":  # which nothing calls but in `whole_head`
                module.forward = _hand_on
    if not pipeline.is_first:
        model.embedding.forward = pipeline.take_received  # type: ignore[method-assign]
        if pipeline.holds(TABLE):
            tokens.weight = nn.Parameter(table, learns)
    model.hidden = pipeline.hidden  # type: ignore[method-assign]
    return pipeline


def _hand_on(x: Tensor, *others: object) -> Tensor:
    return x


def layers_of_stages(model: GPT, stages: int) -> list[int]:
    """How many layers each stage has, so that the slowest is as fast as can be.

    A layer costs a token as much arithmetic as it has weights, the output layer V · C; to look up
    an embedding costs none. Of layouts that are equally fast, that which burdens early stages less:
    they keep the activations of more micro-batches. Raises UserError if a stage would have none.
    """
    n_layer = model.config.n_layer
    if stages > n_layer:
        raise UserError(f"parallel.pipeline={stages}: the model has {n_layer} layers, and each "
                        f"stage needs one; parallel.pipeline can be {n_layer} at most")
    layer = sum(weight.numel() for weight in model.blocks[0].parameters())

    def slowest(last: int) -> int:
        return max(-(-(n_layer - last) // (stages - 1)) * layer,
                   last * layer + model.output_weight.numel())

    last = min(range(n_layer - stages + 1, 0, -1), key=slowest)
    fewest, more = divmod(n_layer - last, stages - 1)
    return [fewest + (stage >= stages - 1 - more) for stage in range(stages - 1)] + [last]


class Pipeline:
    """What a rank knows of the pipeline that its model is laid out over.

    stage: of this rank, from 0. parts: the stage of each part of the model, by its name.
    """

    def __init__(self, model: GPT, mesh: DeviceMesh):
        self.model, self.group = model, mesh.get_group()
        self.stages, self.stage = mesh.size(), mesh.get_local_rank()
        layers = layers_of_stages(model, self.stages)
        stage_of_layer = [stage for stage, count in enumerate(layers) for _ in range(count)]
        self.parts = {"embedding": 0, **{f"blocks.{i}": s for i, s in enumerate(stage_of_layer)},
                      "final_norm": self.stages - 1}
        if not model.config.tie_embeddings:
            self.parts["lm_head"] = self.stages - 1
        self._received: Tensor | None = None
        self._in_step = False

    @property
    def is_first(self) -> bool:
        """Whether this rank reads tokens."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether this rank knows the loss."""
        return self.stage == self.stages - 1

    @property
    def device(self) -> torch.device:
        """Of this rank's weights."""
        return next(weight.device for weight in self.model.parameters() if not weight.is_meta)

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual stream, which is what stages hand on."""
        return self.model.embedding.token_embedding.weight.dtype

    # ----- Which weights are whose

    def owner(self, name: str) -> int:
        """The stage that answers for a weight, by its name: it saves it and counts its norm."""
        return self.parts[".".join(name.split(".")[:2 if name.startswith("blocks.") else 1])]

    def owns(self, name: str) -> bool:
        """Whether this rank answers for a weight: of each, one stage does."""
        return self.owner(name) == self.stage

    def holds(self, name: str) -> bool:
        """Whether this rank has a weight: it owns it, or the last stage a tied embedding."""
        return self.owns(name) or (self.is_last and self.model.config.tie_embeddings
                                   and name == TABLE)

    def learns_before(self, stage: int) -> bool:
        """Whether a stage's input depends on weights that learn, so that its gradient is needed."""
        return any(weight.requires_grad for name, weight in self.model.named_parameters()
                   if self.owner(name) < stage)

    def everywhere(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the stages have of their own weights, by their names, in the order of the stages;
        what other stages have, without memory."""
        own = {name: tensor for name, tensor in tensors.items() if self.owns(name)}
        kinds: list[dict[str, tuple[torch.Size, torch.dtype]]] = [{}] * self.stages
        dist.all_gather_object(kinds, {name: (tensor.shape, tensor.dtype)
                                       for name, tensor in own.items()}, group=self.group)
        return {name: own[name] if name in own else torch.empty(shape, dtype=dtype, device="meta")
                for kind in kinds for name, (shape, dtype) in kind.items()}

    def told(self, name: str, tensor: Tensor, whole: Callable[[], Tensor]) -> Tensor:
        """A tensor of `everywhere` as its owner makes it whole, on all ranks."""
        if self.owns(name):
            made = whole().detach().to(self.device).contiguous()
        else:
            made = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
        dist.broadcast(made, group=self.group, group_src=self.owner(name))
        return made

    # ----- Computing

    def take_received(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What the stage before made of these tokens, in place of their embedding; (B, T, C)"""
        assert self._received is not None
        return self._received

    @contextlib.contextmanager
    def in_step(self, received: Tensor | None) -> Iterator[None]:
        """Have `model.hidden` compute this rank's stretch alone, of what it has received already.
        """
        self._received, self._in_step = received, True
        try:
            yield
        finally:
            self._received, self._in_step = None, False

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, segments: Tensor | None = None,
               prompts: Tensor | None = None) -> Tensor:
        """As GPT.hidden, with all ranks one after the other; each has the result.

        They have no gradient: training steps go by pipeline_schedule.py.  (B, T) -> (B, T, C)
        """
        def stretch() -> Tensor:
            return GPT.hidden(self.model, tokens, cache, segments, prompts)

        if self._in_step:
            return stretch()
        assert not torch.is_grad_enabled(), "gradients go by pipeline_schedule.py"
        self.model.refuse_too_long(tokens.size(1), cache)  # all ranks, before any waits for another
        x = torch.empty(*tokens.shape, self.model.config.n_embd, dtype=self.dtype,
                        device=tokens.device)
        if not self.is_first:
            dist.recv(x, group=self.group, group_src=self.stage - 1)
        with self.in_step(x):
            made = stretch().to(x.dtype)  # a norm's float32 is rounded by the output layer anyway
        if self.is_last:
            x = made.contiguous()
        else:
            dist.send(made.contiguous(), group=self.group, group_dst=self.stage + 1)
        dist.broadcast(x, group=self.group, group_src=self.stages - 1)
        return x

    @contextlib.contextmanager
    def whole_head(self) -> Iterator[None]:
        """Meanwhile every rank has the output layer, and so scores what `hidden` gives as one
        process does: for evaluation and generation, in which it would only wait. Costs V · C."""
        head = (self.model.embedding.token_embedding if self.model.config.tie_embeddings
                else self.model.lm_head)
        own = dict(head.named_parameters())
        for name, weight in own.items():
            if self.is_last:
                whole = _plain(weight).detach().contiguous()
            else:
                whole = torch.empty(weight.shape, dtype=weight.dtype, device=self.device)
            dist.broadcast(whole, group=self.group, group_src=self.stages - 1)
            if weight.is_meta:
                setattr(head, name, nn.Parameter(_as(weight, whole), requires_grad=False))
        try:
            yield
        finally:
            for name, weight in own.items():
                setattr(head, name, weight)

    # ----- Gradients

    @torch.no_grad()
    def sum_tied_gradients(self) -> None:
        """Give both ends the sum of their gradients of a tied embedding, equal to the bit.

        After gradients are summed over data ranks, before they are clipped.
        """
        weight = self.model.embedding.token_embedding.weight
        if not (self.model.config.tie_embeddings and weight.requires_grad
                and (self.is_first or self.is_last)):
            return
        assert weight.grad is not None
        own = weight.grad.to_local() if isinstance(weight.grad, DTensor) else weight.grad
        others, end = torch.empty_like(own), 0 if self.is_last else self.stages - 1
        for work in dist.batch_isend_irecv([
                dist.P2POp(dist.isend, own.contiguous(), group=self.group, group_peer=end),
                dist.P2POp(dist.irecv, others, group=self.group, group_peer=end)]):
            work.wait()
        own += others  # a + b is b + a to the bit

    def from_last(self, figures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Numbers () that the last stage has, such as the loss, on every rank."""
        told = [{name: number.item() for name, number in figures.items()}]
        dist.broadcast_object_list(told, group=self.group, group_src=self.stages - 1)
        return {name: torch.tensor(number, device=self.device)
                for name, number in told[0].items()}


def _as(like: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor, or where tensor parallelism cuts another one this rank's part of it."""
    if not isinstance(like, DTensor):
        return whole
    return DTensor.from_local(whole[extent(like)].contiguous(), like.device_mesh, like.placements,
                              run_check=False, shape=whole.shape, stride=whole.stride())


def _plain(tensor: Tensor) -> Tensor:
    """A tensor that may lie in shards, whole."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
