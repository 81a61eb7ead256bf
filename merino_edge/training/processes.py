"""Several processes of one training, as `torchrun` and `accelerate launch` start them.

One process is the main one: it alone writes, reports and reads the clock, and the others do what it
has decided, so that all take the same steps. With one process everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def count() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes and reports."""
    return int(os.environ.get("RANK", "0")) == 0


def connect() -> None:
    """Join the other processes; each takes the GPU of its number on this machine."""
    if count() == 1 or dist.is_initialized():
        return
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available())


def disconnect() -> None:
    """Leave the other processes, once all have come this far."""
    if count() > 1 and dist.is_initialized():
        from accelerate.state import AcceleratorState

        dist.barrier()
        dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def wait_for_all() -> None:
    """Return when every process has come here."""
    if count() > 1:
        dist.barrier()


def agree(value: T) -> T:
    """Return the main process's value in every process."""
    if count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process do it before the others, which then find it done."""
    if not is_main():
        wait_for_all()
    yield
    if is_main():
        wait_for_all()
