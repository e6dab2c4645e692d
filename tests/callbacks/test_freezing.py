"""Which stages of the encoder learn in which epoch, in training of a few batches."""

import logging

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cityseg.callbacks import EncoderFreezing, LastCheckpoint
from cityseg.callbacks.freezing import frozen_epochs, frozen_stages
from cityseg.errors import ConfigError
from cityseg.models.network import SegmentationNetwork, encoder_stages
from cityseg.models.smp import build
from tests.runs.test_training import interrupt_after, losses, same, weights


def make_network(**options):
    torch.manual_seed(0)
    return build(
        "unet", encoder="tu-test_resnet", num_classes=2, pretrained=False, decoder_channels=[32, 16, 16, 8, 8],
        dropout=0.0, **options,
    )  # fmt: skip


class TinyTask(pl.LightningModule):
    """Notes, at every batch, which stages learn: gradient, batch-norm statistics and mode have to agree."""

    def __init__(self, network=None, adversarial=False):
        super().__init__()
        self.network = network or make_network()
        self.discriminator, self.accumulating = nn.Conv2d(2, 1, 1), False
        self.automatic_optimization = not adversarial
        self.learning, self.seen = [], []

    def training_step(self, batch, batch_idx):
        before = self.network.state_dict()
        before = {key: value.clone() for key, value in before.items()}
        if self.automatic_optimization:
            loss = self.network(batch).square().mean()
            self.network.zero_grad()
            torch.autograd.backward(loss, retain_graph=True)
        else:
            generator, discriminator = self.optimizers()
            self.toggle_optimizer(discriminator)
            self.manual_backward(self.discriminator(self.network(batch).detach()).mean())
            discriminator.step()
            self.untoggle_optimizer(discriminator)
            self.toggle_optimizer(generator)
            generator.zero_grad()
            loss = self.discriminator(self.network(batch)).mean()
            self.manual_backward(loss)
        self.learning.append((self.current_epoch, self._stages_that_learn(before)))
        if not self.automatic_optimization:
            generator.step()
            self.untoggle_optimizer(generator)
        return loss if self.automatic_optimization else None

    def _stages_that_learn(self, before):
        after = self.network.state_dict()
        moved = {
            name.rpartition(".")[0]
            for name in after
            if "running" in name and not torch.equal(after[name], before[name])
        }
        names = {module: name for name, module in self.network.named_modules()}
        found = []
        for number, stage in enumerate(encoder_stages(self.network), start=1):
            modules = [m for part in stage for m in part.modules()]
            norms = [m for m in modules if isinstance(m, _BatchNorm)]
            signs = {p.grad is not None for part in stage for p in part.parameters()}
            signs |= {names[norm] in moved for norm in norms} | {m.training for m in modules}
            assert len(signs) == 1, f"stage {number}: gradients, statistics and modes do not agree"
            found += [number] * signs.pop()
        return found

    def validation_step(self, batch, batch_idx):
        assert not any(module.training for module in self.modules())
        self.network(batch)

    def configure_optimizers(self):
        mine = torch.optim.AdamW(self.network.parameters(), lr=0.01)
        if self.automatic_optimization:
            return mine
        return [mine, torch.optim.AdamW(self.discriminator.parameters(), lr=0.01)]

    def on_train_epoch_end(self):
        self.seen.append({key: value.clone() for key, value in self.network.state_dict().items()})

    def train_dataloader(self):
        photos = torch.randint(0, 256, (2, 2, 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()
        return torch.utils.data.DataLoader(photos, batch_size=None)

    val_dataloader = train_dataloader


def fit(task, *callbacks, epochs=4, resume=None, **options):
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks),
        callbacks=list(callbacks), num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(task, ckpt_path=resume, weights_only=True)
    return task


ALL = list(range(1, len(encoder_stages(make_network())) + 1))


def by_epoch(task):
    """Stages that learned in each epoch, the same in each of its batches."""
    epochs = {}
    for epoch, stages in task.learning:
        assert epochs.setdefault(epoch, stages) == stages
    return epochs


# When


@pytest.mark.parametrize(
    ("epochs", "max_epochs", "expected"),
    [
        (0.05, 100, 5),
        (0.05, 30, 2),
        (0.05, 8, 1),
        (0.5, 1, 1),
        (1, 8, 1),
        (3, 8, 3),
        (12, 8, 12),
        (0, 8, 0),
        (3, -1, 3),
    ],
)
def test_a_share_of_all_epochs_or_a_number_of_them(epochs, max_epochs, expected):
    assert frozen_epochs(epochs, max_epochs) == expected


@pytest.mark.parametrize(
    ("frozen", "per_stage", "expected"),
    [(2, None, [3, 3, 0, 0, 0, 0]), (1, 2, [3, 2, 2, 1, 1, 0]), (0, 1, [2, 1, 0, 0, 0, 0]), (0, None, [0] * 6)],
)
def test_the_epoch_alone_says_what_is_frozen(frozen, per_stage, expected):
    assert [frozen_stages(epoch, 3, frozen, per_stage) for epoch in range(6)] == expected


# What


@pytest.mark.parametrize("adversarial", [False, True])
def test_the_encoder_learns_from_the_epoch_on_in_which_it_opens(adversarial):
    task = fit(TinyTask(adversarial=adversarial), EncoderFreezing(2))
    assert by_epoch(task) == {0: [], 1: [], 2: ALL, 3: ALL}


@pytest.mark.parametrize("adversarial", [False, True])
def test_stages_open_from_deep_to_shallow(adversarial):
    task = fit(TinyTask(adversarial=adversarial), EncoderFreezing(1, "progressive"), epochs=3 + len(ALL))
    opened = by_epoch(task)
    assert opened[0] == []
    for epoch in range(1, len(ALL) + 1):
        assert opened[epoch] == ALL[-epoch:]
    assert opened[len(ALL) + 2] == ALL


def test_frozen_weights_and_statistics_stay_bit_for_bit_while_the_decoder_learns():
    task = TinyTask()
    start = {key: value.clone() for key, value in task.network.state_dict().items()}
    fit(task, EncoderFreezing(2), epochs=3)
    encoder = [key for key in start if key.startswith("body.encoder.")]
    assert all(torch.equal(task.seen[1][key], start[key]) for key in encoder)
    assert not any(torch.equal(task.seen[2][key], start[key]) for key in encoder if task.seen[2][key].ndim == 4)
    decoder = [key for key in start if key.startswith("body.decoder.") and start[key].ndim == 4]
    assert not any(torch.equal(task.seen[1][key], start[key]) for key in decoder)


def test_no_gradient_flows_below_the_deepest_frozen_stage():
    class Watching(TinyTask):
        def training_step(self, batch, batch_idx):
            deepest = encoder_stages(self.network)[-1][-1]
            handle = deepest.register_forward_hook(lambda module, inputs, output: needed.append(output.requires_grad))
            try:
                return super().training_step(batch, batch_idx)
            finally:
                handle.remove()

    needed = []
    fit(Watching(), EncoderFreezing(1), epochs=2)
    assert needed == [False, False, True, True]


def test_validation_inside_an_epoch_leaves_frozen_stages_frozen():
    task = fit(TinyTask(), EncoderFreezing(1, "progressive"), epochs=3, val_check_interval=1)
    assert by_epoch(task) == {0: [], 1: ALL[-1:], 2: ALL[-2:]}


def test_a_resumed_run_goes_on_with_what_is_open(tmp_path):
    freezing = {"epochs": 1, "unfreeze": "progressive"}
    whole = fit(TinyTask(), EncoderFreezing(**freezing), epochs=4)
    fit(TinyTask(), EncoderFreezing(**freezing), LastCheckpoint(str(tmp_path)), epochs=2)
    resumed = fit(TinyTask(), EncoderFreezing(**freezing), epochs=4, resume=tmp_path / "last.ckpt")
    assert by_epoch(resumed) == {2: ALL[-2:], 3: ALL[-3:]}
    assert same(whole.seen[-1], resumed.seen[-1])


def test_the_network_is_left_as_it_was_found():
    task = fit(TinyTask(), EncoderFreezing(5), epochs=1)
    assert all(p.requires_grad for p in task.network.parameters())
    assert all(module.training for module in task.network.modules())


def test_what_the_network_froze_for_good_stays_frozen():
    network = make_network()
    norms = [module for module in network.encoder.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.requires_grad_(False)
    network.train()
    fit(TinyTask(network), EncoderFreezing(1), epochs=1)
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())
    assert not any(norm.training for norm in norms)
    kernels = [p for p in network.encoder.parameters() if p.ndim == 4]
    assert all(p.requires_grad for p in kernels)


def test_each_opening_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, "cityseg"):
        fit(TinyTask(), EncoderFreezing(2, "progressive", 2), epochs=6)
    count = len(ALL)
    assert [record.getMessage() for record in caplog.records if record.name == "cityseg.callbacks.freezing"] == [
        "encoder from epoch 1: frozen",
        f"encoder from epoch 3: stages {count} to {count} of {count} are trained",
        f"encoder from epoch 5: stages {count - 1} to {count} of {count} are trained",
    ]


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, r"callbacks\.freezing\.epochs: found -1"),
        ({"epochs": 2.5}, r"callbacks\.freezing\.epochs: found 2\.5, expected .* whole number"),
        ({"unfreeze": "progresive"}, r"Did you mean 'progressive'"),
        ({"epochs_per_stage": 0}, r"callbacks\.freezing\.epochs_per_stage: found 0"),
    ],
)
def test_an_option_out_of_range_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        EncoderFreezing(**options)


def test_a_share_of_a_run_without_end_is_refused():
    with pytest.raises(ConfigError, match=r"epochs: found 0\.05, .* Fix: trainer\.max_epochs"):
        fit(TinyTask(), EncoderFreezing(), epochs=-1)


def test_an_encoder_frozen_for_good_is_refused():
    network = make_network()
    network.body.encoder.requires_grad_(False)
    with pytest.raises(ConfigError, match="frozen for good"):
        fit(TinyTask(network), EncoderFreezing())


def test_a_network_without_encoder_is_refused():
    body = nn.Conv2d(3, 2, 1)
    network = SegmentationNetwork(body, num_classes=2, mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(ConfigError, match="no encoder to freeze"):
        fit(TinyTask(network), EncoderFreezing())


def test_processes_that_wait_for_every_gradient_are_refused():
    trainer = pl.Trainer(accelerator="cpu", strategy="ddp", max_epochs=4, logger=False, enable_checkpointing=False)
    with pytest.raises(ConfigError, match=r"Fix: trainer\.strategy=ddp_find_unused_parameters_true"):
        EncoderFreezing().setup(trainer, TinyTask(), "fit")


class SharedTask(TinyTask):
    """Each process has photos of its own."""

    def training_step(self, batch, batch_idx):
        return self.network(batch // (1 + self.global_rank)).square().mean()


class Comparing(pl.Callback):
    """Writes, for each epoch, whether the processes have the same weights, and how many stages have a gradient."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_epoch_end(self, trainer, pl_module):
        weights = torch.cat([p.detach().flatten() for p in pl_module.network.parameters()])
        gathered = [torch.zeros_like(weights) for _ in range(trainer.world_size)]
        torch.distributed.all_gather(gathered, weights)
        stages = encoder_stages(pl_module.network)
        learning = sum(any(p.grad is not None for part in stage for p in part.parameters()) for stage in stages)
        with (self.folder / f"{trainer.global_rank}.txt").open("a") as handle:
            handle.write(f"{torch.equal(*gathered)} {learning}\n")


@pytest.mark.slow
def test_two_processes_that_do_not_wait_stay_alike(tmp_path):
    strategy = "ddp_spawn_find_unused_parameters_true"
    callbacks = EncoderFreezing(1, "progressive"), Comparing(tmp_path)
    fit(SharedTask(), *callbacks, epochs=3, devices=2, strategy=strategy, limit_val_batches=0)  # it clears gradients
    for rank in range(2):
        assert (tmp_path / f"{rank}.txt").read_text().splitlines() == ["True 0", "True 1", "True 2"]


# Runs


@pytest.mark.slow
def test_a_run_trains_the_decoder_first_and_resumes_exactly(run_tiny, monkeypatch):
    overrides = ("trainer.max_epochs=3", "callbacks=[default,freezing]", "callbacks.freezing.unfreeze=progressive")
    whole = run_tiny(*overrides, folder="whole")
    interrupt_after(run_tiny, monkeypatch, 2, *overrides, folder="stopped")
    stopped = whole.parent / "stopped"
    before = weights(stopped)
    run_tiny(f"resume={stopped}", folder="stopped")
    assert losses(whole) == losses(stopped)
    assert same(weights(whole), weights(stopped))
    stem = next(key for key in before if key.startswith("network.body.encoder.") and before[key].ndim == 4)
    assert torch.equal(before[stem], weights(whole)[stem])
