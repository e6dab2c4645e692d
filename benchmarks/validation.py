"""Time validation of whole 2048x1024 photos, all scores included, against the network's forward passes alone.

    python benchmarks/validation.py [--blocks 8] [--steps 1] [key=value ...]

Ours is an epoch of the Trainer's validation over photos in memory: logits at the truth's size, argmax, confusion
matrix, loss, and the epoch's scores. The other side is ``network(photo)`` under the same precision. What follows the
options goes into the run's config (``model=fpn``, ``data.scale=0.5``).
"""

from __future__ import annotations

import logging
import tempfile
import warnings

import torch
from interleaved import arguments, in_turns, random_batch, run_config, show
from torch.nn import functional as F
from torch.utils.data import DataLoader

from cityseg.runs.objects import build_data, build_network, build_task, build_trainer

PHOTOS = 2


def main() -> None:
    """Measure and print."""
    args, overrides = arguments(__doc__, blocks=8, steps=1).parse_known_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    batch = random_batch(1, 1024, 2048)
    with tempfile.TemporaryDirectory() as folder:
        chosen = ["model=unet", "model.encoder=efficientnet-b0", "model.pretrained=false", *overrides]
        config = run_config(folder, *chosen)
        data = build_data(config)
        if config.data.scale != 1:
            batch["photo"] = F.interpolate(batch["photo"], scale_factor=config.data.scale)
        network = build_network(config, data.label_space).eval()
        task = build_task(config, data, network)
        trainer = build_trainer(config, [], [])
        loader = DataLoader([batch] * PHOTOS, batch_size=None)

        def forward() -> None:
            with torch.inference_mode(), trainer.precision_plugin.forward_context():
                for _ in range(PHOTOS):
                    network(batch["photo"])

        sides = {"validation": lambda: trainer.validate(task, loader, verbose=False), "forward": forward}
        print(f"an epoch of {PHOTOS} photos of {tuple(batch['photo'].shape)}, {config.trainer.precision}")
        show(in_turns(sides, blocks=args.blocks, steps=args.steps), "validation", "forward", "<= 1.10")


if __name__ == "__main__":
    main()
