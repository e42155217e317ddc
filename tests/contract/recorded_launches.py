"""What a CUDA graph keeps of our kernels, without a GPU: their launches, to be run again.

A graph replays launches with the arguments of the capture: the same addresses, grids and
constants, whatever Python knows by then. For processes with TRITON_INTERPRET=1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from hexgen_kernels.shared_prefix_decode import triton_kernels

KERNELS = ("prefix_kernel", "suffix_kernel", "merge_kernel")


@dataclass(frozen=True)
class Launch:
    """One launch; holds its tensors as a graph holds their addresses."""

    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]

    def run(self) -> None:
        self.kernel[self.grid](*self.arguments, **self.constants)

    def fixed(self) -> tuple[Any, ...]:
        """All that a graph would fix, with tensors as their addresses and layouts."""
        arguments = [
            (one.data_ptr(), one.dtype, tuple(one.stride())) if torch.is_tensor(one) else one
            for one in self.arguments
        ]
        return (self.name, self.grid, *arguments, *sorted(self.constants.items()))


class _Recorder:
    """Stands in for a kernel: notes each launch and runs it."""

    def __init__(self, name: str, kernel: Any, launches: list[Launch]) -> None:
        self.name, self.kernel, self.launches = name, kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **constants: Any) -> None:
            one = Launch(self.name, self.kernel, grid, arguments, constants)
            self.launches.append(one)
            one.run()

        return launch


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Note every launch of our kernels in the block."""
    launches: list[Launch] = []
    kernels = {name: getattr(triton_kernels, name) for name in KERNELS}
    for name, kernel in kernels.items():
        setattr(triton_kernels, name, _Recorder(name, kernel, launches))
    try:
        yield launches
    finally:
        for name, kernel in kernels.items():
            setattr(triton_kernels, name, kernel)
