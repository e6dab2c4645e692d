"""What happens beside training: checkpoints, history, progress, pictures, averages of weights, freezing."""

from cityseg.callbacks.averaging import WeightEMA
from cityseg.callbacks.finite import FiniteLoss
from cityseg.callbacks.freezing import EncoderFreezing
from cityseg.callbacks.history import EpochLines, History
from cityseg.callbacks.images import Images
from cityseg.callbacks.progress import ProgressBar
from cityseg.callbacks.state import LastCheckpoint, StepSeed, best_checkpoint

__all__ = [
    "EncoderFreezing",
    "EpochLines",
    "FiniteLoss",
    "History",
    "Images",
    "LastCheckpoint",
    "ProgressBar",
    "StepSeed",
    "WeightEMA",
    "best_checkpoint",
]
