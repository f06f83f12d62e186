"""Threads spin for each other only while no other process wants their cores."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gpt.machine import neighbours
from gpt.machine.device import choose_machine
from tests.tiny import ROOT

# Seconds are not for tests; counted is how often the second thread goes to sleep.
PROGRAM = """
import ctypes, os, sys, threading, time
sys.path.insert(0, sys.argv[1])
import torch
from gpt.machine import neighbours
from gpt.machine.device import choose_machine
start = ctypes.CDLL(None).GOMP_parallel
torch.set_num_threads(2)
numbers = torch.ones(1 << 22)

def sleeps():
    '''Of the second thread, while the first pauses between two pieces of work.'''
    numbers.sum()
    before = voluntary()
    for _ in range(80):
        numbers[:1 << 17].sum()
        end = time.perf_counter() + 0.0005
        while time.perf_counter() < end:
            pass
    return voluntary() - before

def voluntary():
    '''How often threads other than this one have gone to sleep.'''
    found = 0
    for task in os.listdir('/proc/self/task'):
        if int(task) != threading.get_native_id():
            told = open(f'/proc/self/task/{task}/status').read()
            found += int(told.split('\\nvoluntary_ctxt_switches:')[1].split()[0])
    return found

spinning = sleeps()
leave = threading.Event()
team = threading.Thread(target=neighbours.park, args=(start, leave))
team.start()
time.sleep(0.5)
parked = sleeps()
leave.set()
team.join()
time.sleep(0.5)
print(spinning, parked, sleeps())
"""


@pytest.mark.skipif(neighbours.cores() < 2, reason="one core: there is nobody to wait for")
def test_threads_that_wait_sleep_while_a_team_is_parked_and_spin_again_afterwards():
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(ROOT)], text=True, check=True,
                          capture_output=True, env={"GOMP_SPINCOUNT": "3000000"})
    spinning, parked, again = map(int, done.stdout.split())
    assert parked > 60 > 20 > max(spinning, again), done.stdout


def test_others_are_noticed_at_once_and_believed_to_be_gone_after_a_second():
    looks, waited, told = neighbours.Looks(0.0, 5.0), 5.0, []
    shares = [0.01, 0.1, 0.6, 0.6, 0.01, 0.01, 0.3, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01]
    for number, share in enumerate(shares, 1):
        waited += share * neighbours.SECONDS
        told.append(looks.crowded(number * neighbours.SECONDS, waited))
    assert told == [False] * 2 + [True] * 9 + [False] * 2


def test_a_thread_that_has_no_core_is_seen_to_wait():
    """Three busy threads of C on this machine's cores, then none."""
    program = ("import os, sys, threading, time, zlib; sys.path.insert(0, sys.argv[1])\n"
               "from gpt.machine.neighbours import waited_seconds\n"
               "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
               "data, end = os.urandom(1 << 22), time.monotonic() + 1\n"
               "def work():\n"
               "    while time.monotonic() < end: zlib.compress(data)\n"
               "threads = [threading.Thread(target=work) for _ in range(3)]\n"
               "[thread.start() for thread in threads]; before = waited_seconds()\n"
               "time.sleep(0.8); print(waited_seconds() - before)")
    done = subprocess.run([sys.executable, "-c", program, str(ROOT)], text=True, check=True,
                          capture_output=True)
    assert float(done.stdout) > 0.5  # two of three wait at any time


def test_whatever_computes_on_a_processor_heeds_others(monkeypatch):
    called = []
    monkeypatch.setattr("gpt.machine.device.heed_other_processes", lambda: called.append(1))
    choose_machine("cpu", "float32")
    assert called == [1]
