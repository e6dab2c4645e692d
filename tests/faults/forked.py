"""Processes that may be killed, forked from one that has imported everything and computed nothing."""

import multiprocessing
import os
import signal
import threading

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["cityseg.runs.jobs", "cityseg.tasks.adversarial", "cityseg.models.smp"])
FAILED = 3
KILLED = -signal.SIGKILL


def start(function, *arguments, output):
    """Another process at work on a function; what it says goes to a file."""
    process = FORKED.Process(target=_work, args=(str(output), function, arguments))
    process.start()
    return process


def finish(process, seconds=300):
    """Wait for its end; returns its exit code."""
    process.join(seconds)
    hangs = process.is_alive()
    process.kill()
    assert not hangs, f"still at work after {seconds} seconds"
    return process.exitcode


def _work(output, function, arguments):
    import torch

    from cityseg.errors import CitysegError

    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    multiprocessing.set_start_method("fork", force=True)  # of its loader processes, as of any run
    torch.set_num_threads(1)
    try:
        function(*arguments)
    except CitysegError as error:
        print(error, flush=True)
        os._exit(FAILED)


def job(config, run_dir, typed=(), moment=None):
    """Train, or go on, until the moment comes at which the process kills itself."""
    import logging

    from cityseg.runs.jobs import run_job

    logging.basicConfig(level=logging.INFO)
    if moment is not None:
        _die_at(*moment)
    run_job(config, run_dir, typed, sweep=None)


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at(what, amount):
    """After so many seconds, or at the so manieth step of writing a file: half of it, or just before it is renamed."""
    if what == "seconds":
        timer = threading.Timer(amount, _die)
        timer.daemon = True
        timer.start()
        return
    from cityseg import checkpoints, files

    left, replace = [amount], os.replace

    def step(damage=lambda: None):
        left[0] -= 1
        if left[0] == 0:
            damage()
            _die()

    def write_half(path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.stem}.{os.getpid()}.new{path.suffix}")
        step(lambda: fresh.write_bytes(content[: len(content) // 2]))
        files.write_bytes(path, content)

    def replaced(*names):
        step()
        replace(*names)

    checkpoints.write_bytes, os.replace = write_half, replaced
