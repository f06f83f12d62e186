"""Which of several processes this is, as the launcher that started them says it.

torchrun and Kubernetes' PyTorchJob, Slurm's srun, and mpirun each have names of their own for the
same numbers. What is said here of a failure is said once, however many processes meet it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

PORT = 29500  # torchrun's own default


@dataclass(frozen=True)
class Place:
    """This process among those that work together.

    rank: of world_size processes; local_rank: of the local_size on this host.
    master: host and port at which they meet; None: nobody says.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: str = ""
    master: tuple[str, int] | None = None


ALONE = Place()

# Launcher: the variables of rank, world size, rank on the host, processes on the host.
_NAMES = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
               "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "mpiexec": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")}


class BadLauncher(ValueError):
    """The environment contradicts itself. Its text is one line."""


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """This process's place; ALONE without a launcher. Raises BadLauncher for numbers that do not
    fit."""
    for launcher, names in _NAMES.items():
        if names[0] in environment and names[1] in environment:
            return _place(launcher, names, environment)
    return ALONE


def _place(launcher: str, names: tuple[str, ...], environment: Mapping[str, str]) -> Place:
    given = [environment.get(name) for name in names]
    if launcher == "srun":  # "4(x2),3": the first host's is as good a guess as any
        given[3] = re.match(r"\d*", given[3] or "")[0] or None  # type: ignore[index]
    defaults = (0, 1, 0, 1)
    numbers = [default if value is None else int(value) if re.fullmatch(r"[0-9]{1,9}", value)
               else -1 for value, default in zip(given, defaults, strict=True)]
    rank, world_size, local_rank, local_size = numbers
    if not 0 <= rank < world_size or local_rank < 0 or local_size < 1:
        said = " and ".join(f"{name}={value}" for name, value in zip(names, given, strict=True)
                            if value is not None)
        raise BadLauncher(f"{said} in the environment do not name a process: ranks count from 0 to "
                          "one below the world size; start with python, torchrun, srun or mpirun")
    if world_size == 1:
        return ALONE
    return Place(rank, world_size, local_rank, max(local_size, local_rank + 1), launcher,
                 _master(launcher, world_size == local_size, environment))


def _master(launcher: str, on_one_host: bool, environment: Mapping[str, str]
            ) -> tuple[str, int] | None:
    """Where all meet: as MASTER_ADDR and MASTER_PORT say, or as can be told without them."""
    port = environment.get("MASTER_PORT", "")
    job = environment.get("SLURM_JOB_ID", "")
    number = (int(port) if port.isdecimal() else
              20_000 + int(job) % 20_000 if launcher == "srun" and job.isdecimal() else PORT)
    if host := environment.get("MASTER_ADDR"):
        return host, number
    if launcher == "srun" and (hosts := environment.get("SLURM_STEP_NODELIST")):
        return first_host(hosts), number
    return ("127.0.0.1", number) if on_one_host else None


def first_host(hosts: str) -> str:
    """Of Slurm's list: node[07-09,12],other -> node07."""
    prefix, bracket, rest = hosts.partition("[")
    if not bracket or "," in prefix:
        return hosts.partition(",")[0]
    return prefix + re.split(r"[-,\]]", rest)[0] + rest.partition("]")[2].partition(",")[0]


def keeps_store(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun itself keeps the store at which its processes meet, for one attempt after
    the other; else rank 0 does, and each attempt has its own."""
    return environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def unused_processes(environment: Mapping[str, str] = os.environ) -> int:
    """How many tasks a Slurm job has beside this process, which srun did not start."""
    tasks = environment.get("SLURM_NTASKS", "1")
    if place(environment) != ALONE or "SLURM_STEP_NUM_TASKS" in environment:
        return 0
    return max(0, int(tasks) - 1) if tasks.isdecimal() and "SLURM_PROCID" in environment else 0


# Whether this process is the one that tells of a failure that others may meet, too: asked when one
# is told of. Once the processes know each other (gpt/machine/ranks.py), the first to ask tells.
_tells: list[Callable[[], bool]] = []


def let_tell(decide: Callable[[], bool]) -> None:
    """From now on, this decides whether this process tells of failures."""
    _tells[:] = [decide]


def settle() -> None:
    """Decide now whether this process tells, while it can still ask the others."""
    if _tells:
        decided = _tells[0]()
        let_tell(lambda: decided)


def words_of_failure(line: str) -> str | None:
    """What this process says of its failure: nothing if another one says it."""
    try:
        here = place()
    except BadLauncher:
        return line
    if here == ALONE:
        return line
    if not (_tells[0]() if _tells else here.local_rank == 0):
        return None
    return line if here.rank == 0 else f"rank {here.rank}: {line}"


def is_alone() -> bool:
    """Whether no other process works with this one, as far as is known."""
    try:
        return place() == ALONE
    except BadLauncher:
        return True


def quieten() -> None:
    """Before torch is imported: of a rank that is lost its libraries would tell by stack traces on
    all others."""
    if not is_alone():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def is_silent() -> bool:
    """Whether another process says what this one would say, while all goes well.

    Not where nobody says how they meet: ranks that were numbered by hand each speak for themselves.
    """
    try:
        return place().rank != 0 and place().master is not None
    except BadLauncher:
        return False
