"""What happens beside training: checkpoints, history, progress, pictures, averages of weights, freezing."""

from cityseg.callbacks.averaging import WeightEMA
from cityseg.callbacks.freezing import EncoderFreezing
from cityseg.callbacks.history import EpochLines, History
from cityseg.callbacks.images import Images
from cityseg.callbacks.progress import ProgressBar
from cityseg.callbacks.state import EpochSeed, LastCheckpoint, best_checkpoint

__all__ = [
    "EncoderFreezing",
    "EpochLines",
    "EpochSeed",
    "History",
    "Images",
    "LastCheckpoint",
    "ProgressBar",
    "WeightEMA",
    "best_checkpoint",
]
