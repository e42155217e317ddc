"""Simulated runs on all cores: what to simulate goes to the processes once, then jobs.

Owns the worker processes. They are spawned, so they share nothing with the caller, and a job
gives the same figure in whichever process it runs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Generic, TypeVar

from hexgen_sglang.core.errors import ConfigError, ProcessError

T = TypeVar("T")  # a job
R = TypeVar("R")  # its result
Progress = Callable[[int, int], None]

_run_one: Callable[[Any], Any] | None = None


class Runs(Generic[T, R]):
    """Runs a picklable function over batches of jobs; a context manager.

    Args:
        function: takes a job, gives a result; deterministic. It is sent to every process
            once, with whatever it holds.
        num_processes: at least 1; with 1 everything runs in this process.
        progress: told (ended, total) of a batch as jobs end.
    """

    def __init__(
        self,
        function: Callable[[T], R],
        num_processes: int,
        progress: Progress = lambda _done, _total: None,
    ) -> None:
        if num_processes < 1:
            raise ConfigError(f"jobs={num_processes}: must be at least 1")
        self._function = function
        self._progress = progress
        self._pool: ProcessPoolExecutor | None = None
        if num_processes > 1:
            self._pool = ProcessPoolExecutor(
                max_workers=num_processes,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_receive,
                initargs=(function,),
            )

    def __enter__(self) -> Runs[T, R]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __call__(self, jobs: Sequence[T]) -> list[R]:
        """Results in the order of the jobs.

        Raises:
            ProcessError: a process died.
            HexgenError: what the function raised; jobs that had not begun are not run.
        """
        if self._pool is None:
            results = []
            for job in jobs:
                results.append(self._function(job))
                self._progress(len(results), len(jobs))
            return results
        try:
            futures: list[Future[R]] = [self._pool.submit(_run, job) for job in jobs]
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    self._progress(done, len(jobs))
            finally:
                for future in futures:
                    future.cancel()
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise ProcessError(f"a process of the search died: {error}") from error


def _receive(function: Callable[[Any], Any]) -> None:
    """In a new process: keep the function; the caller alone answers an interrupt.

    A caller that was killed cannot end its processes, so they watch it.
    """
    global _run_one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _run_one = function


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(job: Any) -> Any:
    """In a process: one job."""
    if _run_one is None:
        raise ProcessError("a process of the search got no function")
    return _run_one(job)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return max(1, len(os.sched_getaffinity(0)))
