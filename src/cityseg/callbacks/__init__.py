"""What happens beside training: checkpoints, history, progress, pictures, averages of weights, freezing."""

from cityseg.callbacks.averaging import WeightEMA as WeightEMA
from cityseg.callbacks.finite import FiniteLoss as FiniteLoss
from cityseg.callbacks.freezing import EncoderFreezing as EncoderFreezing
from cityseg.callbacks.history import EpochLines as EpochLines
from cityseg.callbacks.history import History as History
from cityseg.callbacks.history import ProgressBar as ProgressBar
from cityseg.callbacks.images import Images as Images
from cityseg.callbacks.state import LastCheckpoint as LastCheckpoint
from cityseg.callbacks.state import StepSeed as StepSeed
from cityseg.callbacks.state import best_checkpoint as best_checkpoint
