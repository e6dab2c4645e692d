import os

import pytest
import torch

from cityseg.checkpoints import KEY, load_checkpoint, load_weights
from cityseg.errors import CheckpointError, ConfigError
from cityseg.labels import label_space
from cityseg.runs.config import check_trusted


@pytest.fixture
def saved(tmp_path):
    network = torch.nn.Linear(2, 3)
    content = {
        "state_dict": network.state_dict(),
        "epoch": 4,
        KEY: {
            "format": 1,
            "version": "0",
            "epochs": 4,
            "config": {"model": {"a": 1}},
            "label_space": label_space("cityscapes19").to_dict(),
        },
    }
    with pytest.raises(ConfigError, match=r"os\.system, which is refused"):
        check_trusted(config)
    check_trusted({"model": {"_target_": "mine.Net"}}, ["mine"])
    with pytest.raises(ConfigError, match=r"mine2\.Net"):
        check_trusted({"model": {"_target_": "mine2.Net"}}, ["mine"])
