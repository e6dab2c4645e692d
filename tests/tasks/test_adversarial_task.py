"""Adversarial training of tiny networks through a real trainer."""

import copy
import functools

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from cityseg.adversarial import AUXILIARY_MAPS, map_channels
from cityseg.errors import ConfigError
from cityseg.labels import custom_label_space
from cityseg.losses import CrossEntropyLoss
from cityseg.models.patchgan import PatchGan
from cityseg.schedulers import constant, plateau, poly
from cityseg.tasks.adversarial import AdversarialTask, unchanged_statistics, without_gradients
from cityseg.tasks.segmentation import SegmentationTask

SPACE = custom_label_space({"a": (0, 0, 0), "b": (9, 9, 9), "c": (200, 0, 0)})
SGD = functools.partial(torch.optim.SGD, lr=0.1)


class TinyNetwork(nn.Module):
    """Two convolutions, without normalisation over the batch."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def forward(self, photo):
        return self.body(photo.float() / 255 - 0.5)


def batches(count, size=2, seed=0, void=True):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        target = torch.randint(0, 3, (size, 32, 32), generator=generator, dtype=torch.uint8)
        if void:
            target[:, :4] = 255
        photo = torch.randint(0, 256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
        yield {"photo": photo, "target": target, "index": torch.arange(size)}


def network(seed=0):
    torch.manual_seed(seed)
    return TinyNetwork()


def task(**options):
    torch.manual_seed(1)
    channels = 3 + map_channels(options.get("auxiliary_map", "expected_index"), 3)
    settings = {
        "network": network(),
        "loss": CrossEntropyLoss(num_classes=3),
        "optimizer": SGD,
        "scheduler": constant,
        "label_space": SPACE,
        "discriminator": PatchGan(channels, base_channels=4, layers=2),
        "discriminator_optimizer": SGD,
        "adversarial_weight": 0.5,
    }
    return AdversarialTask(**{**settings, **options})


def plain(**options):
    settings = {"loss": CrossEntropyLoss(num_classes=3), "optimizer": SGD, "scheduler": constant, "label_space": SPACE}
    return SegmentationTask(network(), **{**settings, **options})


def fit(module, data, epochs=1, callbacks=(), **options):
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, callbacks=list(callbacks), num_sanity_val_steps=0, **options,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(list(data), batch_size=None)
    trainer.fit(module, train_dataloaders=loader, val_dataloaders=loader if "limit_val_batches" in options else None)
    return trainer


def weights(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(one, two):
    return all(torch.equal(one[key], two[key]) for key in one)


class Steps(pl.Callback):
    """What each optimizer's step changed: a list of (which optimizer, network changed, discriminator changed)."""

    def __init__(self):
        self.before, self.seen, self.which = None, [], None

    def _note(self, module):
        now = weights(module.network), weights(module.discriminator)
        if self.which is not None:
            self.seen.append((self.which, not same(self.before[0], now[0]), not same(self.before[1], now[1])))
        self.before = now

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self._note(pl_module)
        self.which = trainer.optimizers.index(optimizer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._note(pl_module)
        self.which = None


def test_each_step_changes_its_own_network_only_and_they_take_turns():
    steps = Steps()
    fit(task(), batches(2), callbacks=[steps])
    assert steps.seen == [(1, False, True), (0, True, False)] * 2


def test_a_generator_step_has_no_weight_of_the_discriminator_on_its_tape():
    module, on_tape = task(), []

    def note(part, inputs):
        if inputs[1].requires_grad:  # the labelling of a generator step
            on_tape.append(any(p.requires_grad for p in part.parameters()))

    module.discriminator.register_forward_pre_hook(note)
    fit(module, batches(2))
    assert on_tape == [False, False]
    assert all(p.requires_grad for p in module.discriminator.parameters())


def test_both_steps_see_the_labelling_of_one_pass():
    module, seen = task(), []
    module.network.register_forward_hook(lambda *_: seen.append("pass"))
    module.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].detach().clone()))
    fit(module, batches(1))
    begin, _, fake, fake_again = seen
    assert begin == "pass"
    assert torch.equal(fake, fake_again)


def test_accumulated_batches_count_once_in_the_running_statistics():
    normalised = network()
    normalised.body.insert(1, nn.BatchNorm2d(8))
    fit(task(network=normalised, accumulate_grad_batches=2), batches(4))
    assert normalised.body[1].num_batches_tracked == 4


def test_the_discriminator_takes_as_many_steps_as_asked_for():
    steps = Steps()
    fit(task(discriminator_steps=3), batches(1), callbacks=[steps])
    assert [which for which, *_ in steps.seen] == [1, 1, 1, 0]


def test_without_weight_accumulated_batches_go_through_the_network_once():
    module, passes = task(adversarial_weight=0.0, accumulate_grad_batches=2), []
    module.network.register_forward_hook(lambda *_: passes.append(1))
    fit(module, batches(4))
    assert len(passes) == 4


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}])
def test_without_weight_the_training_is_that_of_the_plain_task_step_for_step(options):
    adversarial, reference = task(adversarial_weight=0.0, scheduler=poly, **options), plain(scheduler=poly)
    fit(adversarial, batches(4), epochs=2)
    fit(reference, batches(4), epochs=2, **options)
    assert same(weights(reference.network), weights(adversarial.network))


def test_warm_up_epochs_leave_the_adversarial_term_out_and_train_the_discriminator():
    reference, warm = plain(), task(warmup_epochs=1)
    before = weights(warm.discriminator)
    fit(reference, batches(3))
    fit(warm, batches(3))
    assert same(weights(reference.network), weights(warm.network))
    assert not same(before, weights(warm.discriminator))


@pytest.mark.parametrize("kind", AUXILIARY_MAPS)
def test_the_adversarial_term_changes_what_the_generator_learns(kind):
    reference, adversarial = plain(), task(auxiliary_map=kind)
    fit(reference, batches(1))
    fit(adversarial, batches(1))
    assert not same(weights(reference.network), weights(adversarial.network))


@pytest.mark.parametrize("kind", AUXILIARY_MAPS)
def test_accumulating_four_batches_equals_one_batch_of_four_times_the_size(kind):
    small = list(batches(4, size=2))
    large = {key: torch.cat([batch[key] for batch in small]) for key in small[0]}
    accumulated, whole = (
        task(accumulate_grad_batches=4, auxiliary_map=kind),
        task(auxiliary_map=kind, r1_weight=0.0),
    )
    fit(accumulated, small, epochs=2)
    fit(whole, [large], epochs=2)
    for one, two in zip(accumulated.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_plain_accumulation_of_four_batches_equals_one_batch_of_four_times_the_size():
    small = list(batches(4, size=2))
    accumulated, whole = plain(), plain()
    fit(accumulated, small, epochs=2, accumulate_grad_batches=4)
    fit(whole, [{key: torch.cat([batch[key] for batch in small]) for key in small[0]}], epochs=2)
    assert not same(weights(whole.network), weights(plain().network))
    for one, two in zip(accumulated.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_a_last_shorter_window_is_a_step_too():
    module = task(accumulate_grad_batches=3)
    trainer = fit(module, batches(4))
    assert trainer.global_step == 4  # two windows, two optimizers


def test_clipping_bounds_the_gradient_of_both(monkeypatch):
    norms, before_step = {0: [], 1: []}, AdversarialTask.on_before_optimizer_step

    def measuring(self, optimizer):
        before_step(self, optimizer)
        gradients = [p.grad for p in optimizer.param_groups[0]["params"]]
        norms[self.trainer.optimizers.index(optimizer)].append(torch.nn.utils.get_total_norm(gradients).item())

    monkeypatch.setattr(AdversarialTask, "on_before_optimizer_step", measuring)
    fit(task(gradient_clip_val=0.01), batches(3))
    assert [len(found) for found in norms.values()] == [3, 3]
    assert max(norms[0] + norms[1]) == pytest.approx(0.01, rel=1e-3)


def test_both_follow_the_schedule():
    module = task(scheduler=poly)
    trainer = fit(module, batches(2), epochs=2)
    expected = 0.1 * (1 - 4 / 4) ** 0.9
    assert [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers] == pytest.approx([expected] * 2)


def test_a_plateau_schedule_steps_at_the_end_of_an_epoch():
    schedule = functools.partial(plateau, monitor="val/loss", mode="max", patience=0, threshold=10.0)
    trainer = fit(task(scheduler=schedule), batches(2), epochs=2, limit_val_batches=1)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)


def test_r1_changes_the_discriminator_and_not_the_generator_directly():
    without, with_penalty = task(warmup_epochs=1), task(warmup_epochs=1, r1_weight=10.0)
    fit(without, batches(2))
    fit(with_penalty, batches(2))
    assert same(weights(without.network), weights(with_penalty.network))
    assert not same(weights(without.discriminator), weights(with_penalty.discriminator))


def test_a_batch_of_void_alone_is_harmless():
    data = list(batches(1))
    data[0]["target"].fill_(255)
    module = task()
    before = weights(module.network)
    fit(module, data)
    assert same(before, weights(module.network))


@pytest.mark.parametrize("precision", ["bf16-mixed", "fp16 with a scaler"])
def test_mixed_precision_trains_both(precision):
    from pytorch_lightning.plugins.precision import MixedPrecision

    options = {"precision": precision}
    if precision.startswith("fp16"):
        options = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))]}
    module = task(accumulate_grad_batches=2)
    before = copy.deepcopy(module)
    fit(module, batches(4), **options)
    assert not same(weights(before.network), weights(module.network))
    assert not same(weights(before.discriminator), weights(module.discriminator))
    assert all(torch.isfinite(value).all() for value in weights(module).values())


def test_epoch_figures_show_both_sides():
    trainer = fit(task(), batches(2), log_every_n_steps=1)
    for name in ("train/loss", "train/adversarial_loss", "train/discriminator_loss",
                 "train/discriminator_real_accuracy", "train/discriminator_fake_accuracy", "optim/gradient_norm",
                 "optim/discriminator_gradient_norm"):  # fmt: skip
        assert torch.isfinite(trainer.callback_metrics[name]), name


def test_the_loss_of_an_epoch_is_of_all_its_batches(monkeypatch):
    losses, supervised = [], AdversarialTask.supervised

    def noted(self, batch):
        labelled = supervised(self, batch)
        losses.append(float(labelled[1]))
        return labelled

    monkeypatch.setattr(AdversarialTask, "supervised", noted)
    trainer = fit(task(), batches(3))
    assert len(losses) == 3
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_the_summary_counts_both_networks():
    module = task()
    counts = module.parameters_by_part()
    assert counts["total"] == sum(p.numel() for p in module.network.parameters())
    assert counts["discriminator"] == sum(p.numel() for p in module.discriminator.parameters())


@pytest.mark.parametrize(
    ("options", "named"),
    [({"adversarial_weight": -1.0}, "adversarial_weight"), ({"discriminator_steps": 0}, "discriminator_steps"),
     ({"r1_weight": -0.1}, "r1_weight"), ({"warmup_epochs": -1}, "warmup_epochs")],
)  # fmt: skip
def test_options_out_of_range_are_named(options, named):
    with pytest.raises(ConfigError, match=named):
        task(**options)


def test_without_gradients_restores_what_was_trainable():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    with without_gradients(module):
        assert not any(p.requires_grad for p in module.parameters())
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]


def test_unchanged_statistics_normalise_by_the_batch_and_keep_the_running_ones():
    norm, photo = nn.BatchNorm2d(2), torch.randn(4, 2, 3, 3) + 5
    before = weights(norm)
    with unchanged_statistics(norm):
        inside = norm(photo)
    assert same(before, weights(norm))
    assert torch.equal(inside, norm(photo))
    assert not same(before, weights(norm))
