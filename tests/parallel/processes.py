"""Several processes that train together, for tests.

Each is forked from one that has imported all that takes seconds, and begins anew: torch keeps what
it has learned of process groups longer than these live.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import socket
import subprocess
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.tiny import command_line, script_environment

TIMEOUT = 240.0  # seconds that a function may take


def run_ranks(ranks: int, work: Callable[..., Any], *arguments: Any, join: bool = True
              ) -> list[Any]:
    """What `work(*arguments)` returns on each of so many ranks, joined by gloo, in their order.

    work: a function of a module; it asks torch.distributed which rank it is. join: false: it finds
    the environment that torchrun sets, and joins the others itself. Raises AssertionError with
    every failing rank's traceback.
    """
    context, port = _context(), free_port()
    started = []
    for rank in range(ranks):
        ours, theirs = context.Pipe()
        process = context.Process(  # type: ignore[attr-defined]
            target=_serve, args=(theirs, rank, ranks, port, pickle.dumps((work, arguments)), join),
            daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    answers = [_answer(ours) for _, ours in started]
    for process, ours in started:
        ours.close()
        process.join(5)
        process.kill()
    if failed := [f"rank {rank}: {answer}" for rank, (fine, answer) in enumerate(answers)
                  if not fine]:
        raise AssertionError("\n".join(failed))
    return [answer for _, answer in answers]


def launch(ranks: int, script: str, *arguments: object, cwd: Path, stdin: str = ""
           ) -> list[subprocess.CompletedProcess[str]]:
    """Run one of the root scripts on so many processes as a launcher would, but one that lets each
    end as it ends. stdin: of rank 0, as mpirun and srun have it."""
    port, started = str(free_port()), []
    for rank in range(ranks):
        environment = script_environment(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE=str(ranks),
            LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks))
        started.append(subprocess.Popen(
            command_line(script, *arguments), cwd=cwd, env=environment, text=True,
            stdin=subprocess.PIPE if rank == 0 else subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE))
    answers = [process.communicate(stdin if rank == 0 else None, timeout=TIMEOUT)
               for rank, process in enumerate(started)]
    return [subprocess.CompletedProcess(process.args, process.returncode, *answer)
            for process, answer in zip(started, answers, strict=True)]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@functools.cache
def _context() -> BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.parallel.warm"])
    return context


def _answer(ours: Connection) -> tuple[bool, Any]:
    try:
        return (pickle.loads(ours.recv_bytes()) if ours.poll(TIMEOUT)
                else (False, "no answer in time"))
    except EOFError:
        return False, "it died"


def _serve(answers: Connection, rank: int, ranks: int, port: int, asked: bytes, join: bool) -> None:
    # Pickled here: multiprocessing would share tensors' memory, which goes with this process.
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank),
                      WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks))
    try:
        if join:
            dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT / 2))
        work, arguments = pickle.loads(asked)
        answer = True, work(*arguments)
    except BaseException:
        answer = False, traceback.format_exc()
    answers.send_bytes(pickle.dumps(answer))
    with suppress(EOFError):  # until all have answered: rank 0 holds the store that they meet at
        answers.recv_bytes()
    if dist.is_initialized():
        dist.destroy_process_group()
