"""What is freed is used again instead of being fetched from the system, and can be given back."""

import os
import platform
import subprocess
import sys

import pytest

from raybal import memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")

PROGRAM = """
import resource
import torch
from raybal import memory

def held():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def main():
    memory.keep_freed()
    before = held()
    faults()
    print(faults(), held() - before)
    memory.give_back()
    print(held() - before)
"""
ALONE, IN_A_THREAD = "\nmain()", "\nimport threading\nthreading.Thread(target=main).start()"


BLOCK, PAGE = 64 * 2**20, 4096


def run(where=ALONE, **environment):
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROGRAM + where]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=own | environment)
    return [int(word) for word in done.stdout.split()]


def test_large_blocks_are_fetched_once_and_given_back():
    faults, kept, left = run()
    assert faults < 0.1 * BLOCK / PAGE
    # One block was in use at a time. Where glibc leaves gaps varies, so how many it keeps does: no more than there were
    # in the first pass, since the second fetched nothing.
    assert kept >= BLOCK
    assert left < 0.5 * BLOCK


def test_a_process_that_starts_with_the_environment_keeps_blocks_in_every_thread(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    faults, kept, left = run(IN_A_THREAD, **memory.environment())
    assert faults < 0.1 * BLOCK / PAGE
    assert kept >= BLOCK
    assert left < 0.5 * BLOCK
    # Without it a thread fetches every block anew.
    assert run(IN_A_THREAD)[0] >= 10
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert memory.environment() == {}


def test_the_users_own_settings_of_malloc_stand():
    faults, kept, _ = run(MALLOC_MMAP_MAX_="65536")
    # Each of the 20 blocks is fetched anew, or half of it where the system gives larger pages.
    assert kept < 0.5 * BLOCK
    assert faults >= 10
