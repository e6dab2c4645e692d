"""Time the confusion matrix of a 2048x1024 prediction against torchmetrics, on the CPU.

    python benchmarks/confusion_matrix.py [--blocks 20] [--steps 5]

19 classes, void left out. Predictions as an argmax gives them (int64) and as the task keeps them (uint8), targets as
files hold them (uint8); torchmetrics without its checks of the arguments. The counts of both must be the same.
"""

from __future__ import annotations

import torch
from interleaved import arguments, in_turns, random_batch, show
from torchmetrics.classification import MulticlassConfusionMatrix

from cityseg.metrics import SegmentationMetrics


def main() -> None:
    """Measure and print."""
    args = arguments(__doc__, blocks=20, steps=5).parse_args()
    torch.set_num_threads(args.threads)
    target = random_batch(1, 1024, 2048)["target"]
    random = torch.randint(0, 19, target.shape, generator=torch.Generator().manual_seed(1))
    wrong = torch.rand(target.shape, generator=torch.Generator().manual_seed(2)) < 0.2
    for dtype in (torch.int64, torch.uint8):
        prediction = target.long().clamp(max=18).where(~wrong, random).to(dtype)
        ours = SegmentationMetrics(19)
        theirs = MulticlassConfusionMatrix(19, ignore_index=255, validate_args=False)
        ours.update(prediction, target)
        theirs.update(prediction, target)
        assert torch.equal(ours.confmat, theirs.confmat), "different counts"
        sides = {
            "torchmetrics": lambda p=prediction, m=theirs: m.update(p, target),
            "ours": lambda p=prediction, m=ours: m.update(p, target),
        }
        print(f"predictions {dtype}, the same counts")
        show(in_turns(sides, blocks=args.blocks, steps=args.steps), "torchmetrics", "ours", ">= 3")


if __name__ == "__main__":
    main()
