"""The average of the weights against a loop by hand, in training of a few batches."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from cityseg.callbacks import LastCheckpoint, WeightEMA, best_checkpoint
from cityseg.checkpoints import load_checkpoint
from cityseg.errors import ConfigError
from tests.runs.test_training import interrupt_after, losses, same, weights

BATCHES = 5


class TinyTask(pl.LightningModule):
    """A network with batch normalisation beside a discriminator; notes the weights after every batch."""

    def __init__(self, adversarial=False, accumulate=1):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.Conv2d(4, 2, 1))
        self.discriminator = nn.Conv2d(2, 1, 1)
        self.automatic_optimization = not adversarial
        self.accumulate, self.accumulating = accumulate, False
        self.seen, self.validated = [snapshot(self)], []

    def training_step(self, batch, batch_idx):
        loss = self.network(batch).square().mean()
        if self.automatic_optimization:
            return loss
        generator, discriminator = self.optimizers()
        self.manual_backward(loss)
        self.accumulating = (batch_idx + 1) % self.accumulate != 0
        if not self.accumulating:
            self.manual_backward(self.discriminator(self.network(batch).detach()).mean())
            discriminator.step()
            discriminator.zero_grad()
            generator.step()
            generator.zero_grad()
        return None

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen.append(snapshot(self))

    def validation_step(self, batch, batch_idx):
        self.validated.append(snapshot(self))
        self.log("val/loss", self.network(batch).square().mean())

    def configure_optimizers(self):
        mine = torch.optim.Adam(self.network.parameters(), lr=0.05)
        if self.automatic_optimization:
            return mine
        return [mine, torch.optim.Adam(self.discriminator.parameters(), lr=0.05)]

    def train_dataloader(self):
        return torch.utils.data.DataLoader(photos(BATCHES), batch_size=None)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(photos(1), batch_size=None)


class Reseeding(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        torch.manual_seed(trainer.current_epoch)


def photos(count):
    return torch.randn(count, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def snapshot(task):
    return copy.deepcopy(task.state_dict())


def fit(task, *callbacks, epochs=2, resume=None, **options):
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks),
        callbacks=[*callbacks, Reseeding()], num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(task, ckpt_path=resume, weights_only=True)
    return trainer


def average_by_hand(seen, decay):
    """The average after each of the snapshots; the first is where it starts."""
    average = {key: value.double() for key, value in seen[0].items() if key.startswith("network.")}
    averages = []
    for step, weights_now in enumerate(seen[1:]):
        d = min(decay, (1 + step) / (10 + step))
        average = {key: d * old + (1 - d) * weights_now[key].double() for key, old in average.items()}
        for key in average:
            if key.endswith("num_batches_tracked"):
                average[key] = weights_now[key].double()
        averages.append(average)
    return averages


def assert_close(found, expected):
    for key, value in expected.items():
        torch.testing.assert_close(found[key].double(), value, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("decay", [0.999, 0.3, 0.0])
@pytest.mark.parametrize("adversarial", [False, True])
def test_every_step_moves_the_average_as_a_loop_by_hand_does(decay, adversarial):
    task = TinyTask(adversarial)
    fit(task, WeightEMA(decay))
    averages = average_by_hand(task.seen, decay)
    assert len(averages) == 2 * BATCHES
    assert_close(task.validated[0], averages[BATCHES - 1])
    assert_close(task.validated[1], averages[-1])


def test_only_the_network_is_averaged():
    task = TinyTask(adversarial=True)
    fit(task, WeightEMA(), epochs=1)
    assert same(part(task.validated[0], "discriminator"), part(task.seen[-1], "discriminator"))
    assert not torch.equal(task.seen[0]["discriminator.weight"], task.seen[-1]["discriminator.weight"])


def part(state, name):
    return {key: value for key, value in state.items() if key.startswith(name)}


@pytest.mark.parametrize("adversarial", [False, True])
def test_accumulated_batches_move_the_average_once(adversarial):
    task = TinyTask(adversarial, accumulate=2)
    fit(task, WeightEMA(), epochs=1, **({} if adversarial else {"accumulate_grad_batches": 2}))
    stepped = [0, 2, 4] if adversarial else [0, 2, 4, 5]  # the trainer steps on an epoch's last batch too
    assert_close(task.validated[0], average_by_hand([task.seen[i] for i in stepped], 0.999)[-1])


def test_training_itself_is_not_touched():
    alone, averaged = TinyTask(), TinyTask()
    fit(alone, val_check_interval=0.4)  # validation within an epoch
    fit(averaged, WeightEMA(), val_check_interval=0.4)
    assert len(averaged.validated) == 4
    assert all(same(*pair) for pair in zip(alone.seen, averaged.seen, strict=True))
    assert same(alone.state_dict(), averaged.state_dict())


def test_the_best_checkpoint_holds_what_was_validated(tmp_path):
    task = TinyTask()
    fit(task, best_checkpoint(str(tmp_path), "val/loss", "min"), WeightEMA(), epochs=1)
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert same(best["state_dict"], task.validated[-1])
    assert same(best["raw_state_dict"], part(task.seen[-1], "network"))


@pytest.mark.parametrize("adversarial", [False, True])
def test_weights_and_average_go_on_where_they_were(tmp_path, adversarial):
    whole, first, second = (TinyTask(adversarial) for _ in range(3))
    fit(whole, WeightEMA(), LastCheckpoint(str(tmp_path / "whole")), epochs=3)
    fit(first, WeightEMA(), LastCheckpoint(str(tmp_path / "parts")), epochs=1)
    fit(second, WeightEMA(), LastCheckpoint(str(tmp_path / "parts")), epochs=3, resume=tmp_path / "parts/last.ckpt")
    assert same(whole.seen[-1], second.seen[-1])
    assert same(whole.validated[-1], second.validated[-1])
    ours, theirs = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("parts", "whole"))
    for key in ("state_dict", "raw_state_dict"):
        assert same(ours[key], theirs[key])
    assert ours["callbacks"]["WeightEMA"] == theirs["callbacks"]["WeightEMA"] == {"updates": 3 * BATCHES}


def test_an_average_can_start_at_a_checkpoint_without_one(tmp_path):
    fit(TinyTask(), LastCheckpoint(str(tmp_path)), epochs=1)
    task = TinyTask()
    task.seen = []
    fit(task, WeightEMA(), epochs=2, resume=tmp_path / "last.ckpt")
    start = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert_close(task.validated[-1], average_by_hand([start, *task.seen], 0.999)[-1])


def test_weights_in_16_bits_are_averaged_in_32():
    task = TinyTask().to(torch.bfloat16)
    task.seen = [snapshot(task)]
    ema = WeightEMA()
    fit(task, ema, epochs=1, precision="bf16-true")
    expected = average_by_hand(task.seen, 0.999)[-1]
    assert_close({f"network.{key}": value for key, value in ema._average.items()}, expected)


def test_weights_that_two_layers_share_survive_validation():
    alone, averaged = TinyTask(), TinyTask()
    for task in (alone, averaged):
        task.network[3] = nn.Conv2d(4, 4, 1)
        task.network.append(task.network[3])
        task.network.append(nn.Conv2d(4, 2, 1))
        task.load_state_dict(alone.state_dict())
    fit(alone)
    fit(averaged, WeightEMA())
    assert same(alone.state_dict(), averaged.state_dict())


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ConfigError, match=r"callbacks\.ema\.decay: found .* less than 1"):
        WeightEMA(decay)


# Runs


def test_a_run_scores_and_keeps_the_average(run_tiny):
    folder = run_tiny("callbacks=[default,ema]")
    last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert same(load_checkpoint(folder / "checkpoints/best.ckpt").state_dict, last["state_dict"])
    assert {key for key in last["state_dict"] if key.startswith("network.")} == last["raw_state_dict"].keys()
    assert not same(part(last["state_dict"], "network."), last["raw_state_dict"])


@pytest.mark.slow
def test_an_interrupted_and_resumed_average_equals_an_uninterrupted_one(run_tiny, monkeypatch):
    overrides = ("trainer.max_epochs=3", "callbacks=[default,ema]", "augment=strong")
    whole = run_tiny(*overrides, folder="whole")
    interrupt_after(run_tiny, monkeypatch, 1, *overrides, folder="stopped")
    stopped = whole.parent / "stopped"
    run_tiny(f"resume={stopped}", folder="stopped")
    assert losses(whole) == losses(stopped)
    assert same(weights(whole), weights(stopped))
    assert same(weights(whole, "best"), weights(stopped, "best"))
