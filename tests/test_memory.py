"""What is freed is used again instead of being fetched from the system, and can be given back."""

import platform
import subprocess
import sys

import pytest

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

memory.keep_freed()
before = held()
faults()
print(faults(), held() - before)
memory.give_back()
print(held() - before)
"""


def test_large_blocks_are_fetched_once_and_given_back():
    block, page = 64 * 2**20, 4096
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    faults, kept, left = (int(word) for word in done.stdout.split())
    # Without it each of the blocks is fetched anew: 20 of them.
    assert faults < 0.1 * block / page
    assert block <= kept <= 10 * block
    assert left < 0.5 * block
