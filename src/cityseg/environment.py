"""What a run ran on: versions, platform, device, and the commit of the working directory."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from cityseg import __version__

# Without optional locks a run gets in nobody's way who is at work in the checkout.
_DESCRIBE = ("git", "--no-optional-locks", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")


def environment(device: torch.device | None = None) -> dict[str, str | bool | None]:
    """Facts to keep with the figures of a run on a device (by default the first GPU, if any), while it happens.

    ``git_commit`` and ``git_dirty`` (a tracked file was changed) are None where there is no git checkout.
    """
    try:
        done = subprocess.run(_DESCRIBE, capture_output=True, text=True, timeout=10, check=True)
        commit, _, mark = done.stdout.strip().partition("-")
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "pytorch_lightning": version("pytorch-lightning"),
        "cityseg": __version__,
        "platform": platform.platform(),
        "device": _device_name(device or torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "git_commit": commit,
        "git_dirty": None if commit is None else mark == "dirty",
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    if device.type != "cpu":
        return device.type
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text(encoding="utf-8").splitlines() if cpu_info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU, {models[0] if models else platform.processor() or platform.machine()}"
