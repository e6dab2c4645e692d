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
    """How many of the cores one job may use.

    Args:
        launcher: the job's ``hydra.launcher``.
        cores: that the job's process may run on.

    Returns:
        From 1 to `cores`; None where the engine sets no limit, as when jobs run one after the other.

    >>> threads_of_a_job({"_target_": "a.JoblibLauncher", "n_jobs": 3}, cores=8)
    2
    """
    match _engine(launcher):
        case "JoblibLauncher":
            share = cores / (jobs_at_once(launcher, cores) or 1)
        case "LocalLauncher" | "SlurmLauncher":
            share = launcher["cpus_per_task"]
        case "RayLauncher":
            share = launcher["ray"]["remote"].get("num_cpus", 1)  # without the key Ray counts one core
        case _:
            return None
    return None if share is None else max(1, min(cores, math.floor(share)))


def shares_gpus(launcher: Mapping[str, Any]) -> bool:
    """Whether jobs that run at once see the same GPUs, so that each must claim its own.

    SLURM shows a job only the GPUs that it was given, and Ray too if jobs ask for some (``num_gpus``). The local
    launcher of submitit shows the first ``gpus_per_node`` to every job.
    """
    match _engine(launcher):
        case "JoblibLauncher" | "LocalLauncher":
            return True
        case "RayLauncher":
            return not launcher["ray"]["remote"].get("num_gpus")
        case _:
            return False


@contextlib.contextmanager
def claim_gpu(folder: Path, count: int, *, pause: float = 1.0) -> Iterator[int]:
    """Hold one GPU of this machine alone among the jobs of a sweep; waits while all are taken.

    Args:
        folder: of the sweep; the locks go into it, and the kernel releases those of a process that dies.
        count: GPUs that every job sees (``torch.cuda.device_count()``).
        pause: seconds between two looks at taken GPUs.

    Yields:
        Index of the GPU, from 0, for ``trainer.devices=[index]``.

    Raises:
        ValueError: if there is no GPU to claim.
    """
    if count < 1:
        raise ValueError(f"claim_gpu: found count={count}, expected at least one GPU")
    locks = folder / ".gpus"
    locks.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        # Machines of a cluster share the folder, and number their GPUs alike.
        paths = [locks / f"{platform.node()}_{index}.lock" for index in range(count)]
        files = [stack.enter_context(path.open("w")) for path in paths]
        while (taken := next((index for index, file in enumerate(files) if _lock(file)), None)) is None:
            time.sleep(pause)
        try:
            yield taken
        finally:
            _unlock(files[taken])


def restore_start_method() -> None:
    """Let a job's loader processes start as they do outside a sweep.

    The workers of joblib start processes in a way that needs everything pickled, which loaders are not made for.
    """
    if multiprocessing.get_start_method(allow_none=True) == "loky":
        multiprocessing.set_start_method(None, force=True)


def _engine(launcher: Mapping[str, Any]) -> str:
    return str(launcher["_target_"]).rpartition(".")[2]


def jobs_at_once(launcher: Mapping[str, Any], cores: int) -> int | None:
    """Jobs that run at once on this machine; None where a cluster decides."""
    match _engine(launcher):
        case "BasicLauncher":
            return 1
        case "JoblibLauncher":  # -1 is one a core, -2 one less
            n_jobs = int(launcher["n_jobs"])
            return n_jobs if n_jobs > 0 else max(1, cores + 1 + n_jobs)
        case _:
            return None


def _lock(file: IO[str]) -> bool:
    import fcntl  # not on Windows, where all else in this module works

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(file: IO[str]) -> None:
    """Release a lock now: closing the file would leave it to loader processes that have inherited it."""
    import fcntl

    fcntl.flock(file, fcntl.LOCK_UN)
