import os

import pytest
import torch

from cityseg.checkpoints import KEY, load_checkpoint, load_weights
from cityseg.errors import CheckpointError, ConfigError
from cityseg.labels import label_space
from cityseg.runs.trust import check_trusted


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

    def save(**changes):
        path = tmp_path / "a.ckpt"
        torch.save({**content, **changes}, path)
        return path

    return save


class Command:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def test_a_checkpoint_comes_back_whole(saved):
    checkpoint = load_checkpoint(saved())
    assert checkpoint.epochs == 4
    assert checkpoint.label_space == label_space("cityscapes19")
    assert checkpoint.config == {"model": {"a": 1}}


def test_code_in_a_checkpoint_is_refused_and_not_run(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="refused, because it holds more than weights"):
        load_checkpoint(saved(state_dict=Command()))
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "b.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"b\.ckpt: "):
        load_checkpoint(path)


def test_a_truncated_file_is_named(saved):
    path = saved()
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_checkpoint(path)


def test_a_missing_file_says_what_is_beside_it(saved):
    with pytest.raises(CheckpointError, match=r"no such file; .* holds a\.ckpt"):
        load_checkpoint(saved().with_name("best.ckpt"))


def test_somebody_elses_checkpoint_is_refused(tmp_path):
    torch.save({"model": 1}, tmp_path / "c.ckpt")
    with pytest.raises(CheckpointError, match="not written by cityseg"):
        load_checkpoint(tmp_path / "c.ckpt")


def test_weights_of_another_network_are_refused_by_name(saved):
    checkpoint = load_checkpoint(saved())
    with pytest.raises(CheckpointError, match=r"1 other shape: weight \(file \(3, 2\), network \(3, 4\)\)"):
        load_weights(torch.nn.Linear(4, 3), checkpoint)
    with pytest.raises(CheckpointError, match=r"2 missing: 0\.bias, 0\.weight; 2 unknown: bias, weight"):
        load_weights(torch.nn.Sequential(torch.nn.Linear(2, 3)), checkpoint)


def test_a_config_that_would_build_foreign_code_is_refused_by_name():
    config = {"model": {"_target_": "cityseg.models.smp.build"}, "loss": {"terms": [{"_target_": "os.system"}]}}
    with pytest.raises(ConfigError, match=r"os\.system, which is refused"):
        check_trusted(config)
    check_trusted({"model": {"_target_": "mine.Net"}}, ["mine"])
    with pytest.raises(ConfigError, match=r"mine2\.Net"):
        check_trusted({"model": {"_target_": "mine2.Net"}}, ["mine"])
