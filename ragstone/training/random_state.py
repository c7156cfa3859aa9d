"""The states of a process's random number generators, as text that a checkpoint holds."""

from __future__ import annotations

import torch


def random_states() -> list[str]:
    """The state of torch's generator for the CPU and, with a GPU, that of the one for this process's GPU, in hex."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return [state.numpy().tobytes().hex() for state in states]


def set_random_states(states: list[str]) -> None:
    """Go back to states that random_states gave; one of a GPU is passed over where there is none."""
    tensors = [torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8) for state in states]
    torch.set_rng_state(tensors[0])
    if len(tensors) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[1])
