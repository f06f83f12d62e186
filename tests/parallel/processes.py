"""Several processes that train together, for tests: kept, since starting them takes seconds."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = 120.0  # seconds that a function may take


def run_ranks(ranks: int, work: Callable[..., Any], *arguments: Any, join: bool = True
              ) -> list[Any]:
    """What `work(*arguments)` returns on each of so many ranks, joined by gloo, in their order.

    work: a function of a module; it asks torch.distributed which rank it is. join: false: it finds
    the environment that torchrun sets, and joins the others itself. Raises AssertionError with
    every failing rank's traceback.
    """
    processes = [_process(number) for number in range(ranks)]
    port = free_port()
    for rank, process in enumerate(processes):
        process.send((rank, ranks, port, work, arguments, join))
    answers = [process.recv() if process.poll(TIMEOUT) else (False, "no answer in time")
               for process in processes]
    if failed := [f"rank {rank}: {answer}" for rank, (fine, answer) in enumerate(answers)
                  if not fine]:
        _forget_processes()  # they may still wait for each other
        raise AssertionError("\n".join(failed))
    return [answer for _, answer in answers]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


_started: list[Any] = []


@functools.cache
def _process(number: int) -> Connection:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), name=f"rank {number}", daemon=True)
    process.start()
    _started.append(process)
    return ours


@atexit.register
def _forget_processes() -> None:
    for process in _started:
        process.kill()
    _started.clear()
    _process.cache_clear()


def _serve(requests: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        rank, ranks, port, work, arguments, join = requests.recv()
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank),
                          WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks))
        try:
            if join:
                dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT / 2))
            answer = True, work(*arguments)
        except BaseException:
            answer = False, traceback.format_exc()
        if dist.is_initialized():
            dist.destroy_process_group()
        requests.send(answer)
