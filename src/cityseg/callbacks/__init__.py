"""What happens beside training: checkpoints, history, progress, pictures."""

from cityseg.callbacks.history import EpochLines, History
from cityseg.callbacks.images import Images
from cityseg.callbacks.progress import ProgressBar
from cityseg.callbacks.state import EpochSeed, LastCheckpoint, best_checkpoint

__all__ = ["EpochLines", "EpochSeed", "History", "Images", "LastCheckpoint", "ProgressBar", "best_checkpoint"]
