"""Which of several processes this is, from what launchers set in the environment."""

from __future__ import annotations

import pytest

from gpt.launcher import (
    ALONE,
    BadLauncher,
    Place,
    first_host,
    is_silent,
    let_tell,
    place,
    unused_processes,
    words_of_failure,
)
from tests.tiny import ROOT, run_script

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "gpu-1", "MASTER_PORT": "29400"}
PYTORCHJOB = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "wide-master-0",
              "MASTER_PORT": "23456", "PET_NNODES": "2"}
SRUN = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_STEP_NODELIST": "node[07-08]",
        "SLURM_JOB_ID": "51003", "SLURM_NTASKS": "8"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2",
          "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
MPIEXEC = {"PMI_RANK": "2", "PMI_SIZE": "3", "MPI_LOCALRANKID": "2", "MPI_LOCALNRANKS": "3"}
BY_HAND = {"RANK": "1", "WORLD_SIZE": "2"}
ALL_VARIABLES = {*TORCHRUN, *SRUN, *MPIRUN, *MPIEXEC}


@pytest.fixture(autouse=True)
def _nobody_launched_the_tests(monkeypatch):
    for name in ALL_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("gpt.launcher._tells", [])


@pytest.mark.parametrize(("environment", "expected"), [
    ({}, ALONE),
    (TORCHRUN, Place(3, 4, 1, 2, "torchrun", ("gpu-1", 29400))),
    (PYTORCHJOB, Place(1, 2, 0, 1, "torchrun", ("wide-master-0", 23456))),
    (SRUN, Place(5, 8, 1, 4, "srun", ("node07", 31003))),
    (SRUN | {"MASTER_ADDR": "head", "MASTER_PORT": "5"}, Place(5, 8, 1, 4, "srun", ("head", 5))),
    (MPIRUN, Place(1, 2, 1, 2, "mpirun", ("127.0.0.1", 29500))),
    (MPIRUN | {"OMPI_COMM_WORLD_SIZE": "4"}, Place(1, 4, 1, 2, "mpirun", None)),
    (MPIEXEC, Place(2, 3, 2, 3, "mpiexec", ("127.0.0.1", 29500))),
    (BY_HAND, Place(1, 2, 0, 1, "torchrun", None)),
], ids=["alone", "torchrun", "pytorchjob", "srun", "srun with a master", "mpirun",
        "mpirun on two hosts", "mpiexec", "by hand"])
def test_each_launcher_says_which_process_this_is_and_where_all_meet(environment, expected):
    assert place(environment) == expected


def test_torchrun_inside_a_slurm_task_is_the_launcher():
    assert place(SRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"} | TORCHRUN
                 ).launcher == "torchrun"


@pytest.mark.parametrize("environment", [
    {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "gpu-1"},
    {"RANK": "1"}, {"WORLD_SIZE": "2"},
    {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"},  # a batch script, in which srun started nothing
    {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}])
def test_one_process_is_alone_whatever_started_it(environment):
    assert place(environment) == ALONE


@pytest.mark.parametrize(("environment", "said"), [
    (TORCHRUN | {"RANK": "4"}, "RANK=4 and WORLD_SIZE=4"),
    (TORCHRUN | {"RANK": "-1"}, "RANK=-1 and WORLD_SIZE=4"),
    (TORCHRUN | {"WORLD_SIZE": "two"}, "RANK=3 and WORLD_SIZE=two"),
    (TORCHRUN | {"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0"),
    (TORCHRUN | {"LOCAL_RANK": "x"}, "LOCAL_RANK=x"),
    (BY_HAND | {"WORLD_SIZE": "0"}, "RANK=1 and WORLD_SIZE=0"),
    (SRUN | {"SLURM_PROCID": "8"}, "SLURM_PROCID=8 and SLURM_STEP_NUM_TASKS=8"),
    (MPIRUN | {"OMPI_COMM_WORLD_RANK": ""}, "OMPI_COMM_WORLD_RANK= and OMPI_COMM_WORLD_SIZE=2")])
def test_numbers_that_contradict_each_other_are_refused(environment, said):
    with pytest.raises(BadLauncher) as caught:
        place(environment)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert "do not name a process" in str(caught.value)


@pytest.mark.parametrize("script", ["train.py", "data/prepare.py"])
def test_a_contradiction_is_one_line_of_any_command(script, tmp_path):
    (tmp_path / "a.txt").write_text("some text\n" * 20)
    arguments = {"train.py": [ROOT / "configs/quickstart.yaml"],
                 "data/prepare.py": ["a.txt", "tokenizer=byte"]}[script]
    done = run_script(script, *arguments, cwd=tmp_path, RANK="2", WORLD_SIZE="2")
    assert done.returncode == 2
    assert done.stderr.startswith("error: RANK=2 and WORLD_SIZE=2") and done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(("hosts", "first"), [
    ("node07", "node07"), ("node07,node08", "node07"), ("node[07-09,12]", "node07"),
    ("node[07,09]", "node07"), ("node[07-09,12],other", "node07"), ("a,node[1-2]", "a"),
    ("gpu[3-4]-ib", "gpu3-ib"), ("gpu[3-4]-ib,cpu[1-2]", "gpu3-ib"), ("r1n[01-02]", "r1n01")])
def test_the_first_host_of_slurms_list(hosts, first):
    assert first_host(hosts) == first


def test_ranks_that_launchers_numbered_are_silent_but_for_the_first(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert is_silent()
    monkeypatch.setenv("RANK", "0")
    assert not is_silent()


def test_ranks_that_were_numbered_by_hand_each_speak(monkeypatch):
    for name, value in BY_HAND.items():
        monkeypatch.setenv(name, value)
    assert not is_silent()
    monkeypatch.setenv("RANK", "7")  # of two: said as an error
    assert not is_silent()


def test_one_process_of_each_host_tells_of_a_failure_until_they_know_each_other(monkeypatch):
    assert words_of_failure("it broke") == "it broke"
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert words_of_failure("it broke") is None
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert words_of_failure("it broke") == "rank 3: it broke"
    let_tell(lambda: False)
    assert words_of_failure("it broke") is None
    let_tell(lambda: True)
    monkeypatch.setenv("RANK", "0")
    assert words_of_failure("it broke") == "it broke"


@pytest.mark.parametrize(("environment", "unused"), [
    ({}, 0),
    ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, 7),
    ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, 0),
    ({"SLURM_NTASKS": "8"}, 0),  # a shell of salloc, on a host without tasks
    (SRUN, 0),
    ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, 0),
    (TORCHRUN | {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, 0)])
def test_tasks_that_srun_did_not_start_are_counted(environment, unused):
    assert unused_processes(environment) == unused
