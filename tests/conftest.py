"""Tiny data in the real layouts, and runs of a few seconds on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).parent.parent
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# The same examples at each run, however slow the machine; tests/properties/test_many.py tries more of them.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, max_examples=12,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)  # fmt: skip
hypothesis.settings.load_profile("repeatable")
SCENES = {"train": 6, "val": 3, "size": 64}

# A run that takes about a second: tiny scenes, a small network, float32, no loader processes.
TINY = (
    "data.scenes={train: 6, val: 3, size: 64}",
    "data.crop=64",
    "data.batch_size=2",
    "data.eval_batch_size=2",
    "data.workers=0",
    "model.encoder=tu-test_resnet",
    "+model.decoder_channels=[32, 16, 16, 8, 8]",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=1",
    "panels=1",
)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def compose_config():
    """Compose conf/train.yaml or another primary config as the command line would."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig

    def composed(overrides=(), run_dir="RUN", name="train"):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose(name, [f"hydra.runtime.output_dir={run_dir}", *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        from omegaconf import OmegaConf, open_dict

        config = OmegaConf.create(config)
        OmegaConf.set_struct(config, True)
        if "run_dir" in config:
            config.run_dir = str(run_dir)
        with open_dict(config):
            del config["hydra"]
        return config

    return composed


@pytest.fixture
def run_tiny(tmp_path, cache_dir, compose_config) -> Callable[..., Path]:
    """Train on a few tiny scenes in this process; returns the run folder."""
    from cityseg.runs.jobs import run_job

    def run(*overrides: str, folder: str = "run", base: tuple[str, ...] = TINY) -> Path:
        run_dir = tmp_path / folder
        threads = torch.get_num_threads()
        try:
            # The cache folder is not part of a run's identity, so it is given to all.
            typed = [*base, f"data.cache_dir={cache_dir}", *overrides]
            run_job(compose_config(typed, run_dir), run_dir, list(overrides), sweep=None)
        finally:
            torch.set_num_threads(threads)
        return run_dir

    return run
