"""What a run may use of its machine, alone or beside the other jobs of a sweep: cores, a GPU, loader processes."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

_limit: int | None = None


def available_cores() -> int:
    """Cores that this run may use: those of its process, or its share of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if _limit is None else min(cores, _limit)


@contextlib.contextmanager
def limited_cores(cores: int | None) -> Iterator[None]:
    """Leave a run a share of its process's cores; None is all of them."""
    global _limit
    before, _limit = _limit, cores
    try:
        yield
    finally:
        _limit = before


def threads_of_a_job(launcher: Mapping[str, Any], cores: int) -> int | None:
    """How many of the cores of its process one job of a ``hydra.launcher`` may use; None for no limit.

    >>> threads_of_a_job({"_target_": "a.JoblibLauncher", "n_jobs": 3}, cores=8)
    2
    """
    share: float | None = None
    match _engine(launcher):
        case "JoblibLauncher":
            share = cores / (jobs_at_once(launcher, cores) or 1)
        case "LocalLauncher" | "SlurmLauncher":
            share = launcher["cpus_per_task"]
        case "RayLauncher":
            share = launcher["ray"]["remote"].get("num_cpus", 1)  # without the key Ray counts one core
    return None if share is None else max(1, min(cores, math.floor(share)))


def jobs_at_once(launcher: Mapping[str, Any], cores: int) -> int | None:
    """Jobs that run at once on this machine; None where a cluster decides."""
    match _engine(launcher):
        case "BasicLauncher":
            return 1
        case "JoblibLauncher":  # -1 is one a core, -2 one less
            n_jobs = int(launcher["n_jobs"])
            return n_jobs if n_jobs > 0 else max(1, cores + 1 + n_jobs)
    return None


def shares_gpus(launcher: Mapping[str, Any]) -> bool:
    """Whether jobs that run at once see the same GPUs, so that each must claim its own.

    SLURM shows a job only the GPUs that it was given, and Ray too if jobs ask for some (``num_gpus``). The local
    launcher of submitit shows the first ``gpus_per_node`` to every job.
    """
    engine = _engine(launcher)
    by_ray = engine == "RayLauncher" and not launcher["ray"]["remote"].get("num_gpus")
    return by_ray or engine in ("JoblibLauncher", "LocalLauncher")


def _engine(launcher: Mapping[str, Any]) -> str:
    return str(launcher["_target_"]).rpartition(".")[2]


@contextlib.contextmanager
def claim_gpu(folder: Path, count: int, *, pause: float = 1.0) -> Iterator[int]:
    """Hold one of `count` GPUs of this machine, by its index, alone among the jobs of a sweep; waits for a free one.

    Locks go into the sweep's folder, and the kernel releases those of a process that dies. Looks every `pause` seconds.

    Raises:
        ValueError: if there are none.
    """
    import fcntl  # not on Windows, where all else in this module works

    def lock(file: IO[str]) -> bool:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    if count < 1:
        raise ValueError(f"claim_gpu: found count={count}, expected at least one GPU")
    locks = folder / ".gpus"
    locks.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        # Machines of a cluster share the folder, and number their GPUs alike.
        paths = [locks / f"{platform.node()}_{index}.lock" for index in range(count)]
        files = [stack.enter_context(path.open("w")) for path in paths]
        while (taken := next((index for index, file in enumerate(files) if lock(file)), None)) is None:
            time.sleep(pause)
        try:
            yield taken
        finally:  # now: closing the file would leave the lock to loader processes that have inherited it
            fcntl.flock(files[taken], fcntl.LOCK_UN)


def restore_start_method() -> None:
    """Let loader processes start as outside a sweep: the workers of joblib start them by pickling everything."""
    if multiprocessing.get_start_method(allow_none=True) == "loky":
        multiprocessing.set_start_method(None, force=True)
