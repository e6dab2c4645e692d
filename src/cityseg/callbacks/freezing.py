"""Freezing of the encoder for the first epochs, and its opening at once or stage by stage."""

from __future__ import annotations

import logging
from typing import Literal, cast, get_args

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn

from cityseg.errors import ConfigError, did_you_mean
from cityseg.models.network import encoder_stages
from cityseg.tasks.base import Task

log = logging.getLogger(__name__)

Unfreeze = Literal["all", "progressive"]


class EncoderFreezing(Callback):
    """Trains the decoder alone for some epochs, then the encoder too: all of it, or a stage more every few epochs.

    A frozen stage has no gradient, and is in eval mode: batch normalisation keeps its statistics, dropout and
    stochastic depth are off, so the decoder learns from the features that the encoder was trained to give.

    What is frozen follows from the epoch alone, so a resumed run is right without any state; a share of
    ``trainer.max_epochs`` moves when that is changed. The optimizer holds the encoder from the start; the schedule runs
    on while it is frozen. Weights that the network itself has frozen for good (``model.freeze_encoder``) stay frozen.

    Args:
        epochs: how long the whole encoder is frozen: a share of all epochs if below 1 (rounded, one at least), else
            a number of epochs.
        unfreeze: ``all`` stages at once, or ``progressive``, from deep to shallow.
        epochs_per_stage: of ``progressive``: epochs from the opening of one stage to that of the next.

    Raises:
        ConfigError: if an option is out of its range.
    """

    def __init__(self, epochs: float = 0.05, unfreeze: Unfreeze = "all", epochs_per_stage: int = 1) -> None:
        if not epochs >= 0 or (epochs >= 1 and epochs != int(epochs)):
            raise _wrong("epochs", epochs, "a share from 0 to less than 1, or a whole number of epochs")
        if unfreeze not in get_args(Unfreeze):
            hint = did_you_mean(str(unfreeze), get_args(Unfreeze))
            raise _wrong("unfreeze", unfreeze, f"all or progressive.{hint}")
        if epochs_per_stage < 1 or epochs_per_stage != int(epochs_per_stage):
            raise _wrong("epochs_per_stage", epochs_per_stage, "a whole number from 1")
        self._epochs = epochs
        self._epochs_per_stage = int(epochs_per_stage) if unfreeze == "progressive" else None
        self._frozen_epochs = 0
        self._trainable: set[nn.Parameter] = set()
        self._logged: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that it can work, and note what it may unfreeze.

        Raises:
            ConfigError: if the run has no length, the network no encoder to train, or the strategy waits for it.
        """
        if stage != "fit":
            return
        self._frozen_epochs = frozen_epochs(self._epochs, trainer.max_epochs)
        stages = _stages(_network(pl_module))
        self._trainable = {p for part in stages for p in part.parameters() if p.requires_grad}
        self._logged = None
        if not self._trainable:
            found = "an encoder that is frozen for good (model.freeze_encoder)" if stages else "none"
            raise ConfigError(
                f"callbacks.freezing: the network has no encoder to freeze and unfreeze: found {found}. Fix: "
                "model.freeze_encoder=false, another model, or no callbacks=freezing"
            )
        strategy = trainer.strategy
        finds_unused = isinstance(strategy, DDPStrategy) and strategy._ddp_kwargs.get("find_unused_parameters", False)
        if not (isinstance(strategy, SingleDeviceStrategy) or finds_unused):
            raise ConfigError(
                f"callbacks.freezing: found the strategy {type(strategy).__name__}, which waits for the gradient of "
                "every weight, also of frozen ones. Fix: trainer.strategy=ddp_find_unused_parameters_true"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze and open what this epoch wants."""
        network = _network(pl_module)
        stages = _stages(network)
        epoch = trainer.current_epoch
        frozen = frozen_stages(epoch, len(stages), self._frozen_epochs, self._epochs_per_stage)
        self._freeze(network, stages, frozen)
        if frozen != self._logged and trainer.is_global_zero:
            count = len(stages)
            partly = f"stages {frozen + 1} to {count} of {count} are trained" if frozen else "all of it is trained"
            log.info("encoder from epoch %d: %s", epoch + 1, "frozen" if frozen == count else partly)
        self._logged = frozen

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the network as it was found."""
        network = _network(pl_module)
        self._freeze(network, _stages(network), 0)

    def _freeze(self, network: nn.Module, stages: list[nn.ModuleList], frozen: int) -> None:
        for index, stage in enumerate(stages):
            for parameter in stage.parameters():
                if parameter in self._trainable:
                    parameter.requires_grad_(index >= frozen)
        network.train()  # what is frozen for good stays in the mode that the network gives it
        for stage in stages[:frozen]:
            stage.eval()


def frozen_epochs(epochs: float, max_epochs: int | None) -> int:
    """Number of epochs in which the whole encoder is frozen: a share of the run's if below 1, else a number.

    Raises:
        ConfigError: if it is a share of a run without end (None or -1).

    >>> frozen_epochs(0.05, 100), frozen_epochs(0.05, 8), frozen_epochs(3, 8), frozen_epochs(0, 8)
    (5, 1, 3, 0)
    """
    if epochs >= 1 or epochs == 0:
        return int(epochs)
    if max_epochs is None or max_epochs < 0:
        raise _wrong("epochs", epochs, "a whole number of epochs, as the run has no last one. Fix: trainer.max_epochs")
    return max(1, round(epochs * max_epochs))


def frozen_stages(epoch: int, stages: int, frozen_epochs: int, epochs_per_stage: int | None) -> int:
    """Number of stages, from the stem on, that are frozen in an epoch (from 0); None opens all at once.

    >>> [frozen_stages(epoch, 3, frozen_epochs=2, epochs_per_stage=1) for epoch in range(6)]
    [3, 3, 2, 1, 0, 0]
    """
    if epoch < frozen_epochs:
        return stages
    if epochs_per_stage is None:
        return 0
    return max(0, stages - 1 - (epoch - frozen_epochs) // epochs_per_stage)


def _network(pl_module: LightningModule) -> nn.Module:
    return cast(Task, pl_module).network


def _stages(network: nn.Module) -> list[nn.ModuleList]:
    # Asked for anew each time: synchronised batch normalisation replaces modules when training starts.
    return [nn.ModuleList(stage) for stage in encoder_stages(network)]


def _wrong(key: str, found: object, expected: str) -> ConfigError:
    return ConfigError(f"callbacks.freezing.{key}: found {found!r}, expected {expected}")
