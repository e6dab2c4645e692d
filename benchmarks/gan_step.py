"""Time a step of the adversarial task against bare loops over the same two networks and losses.

    python benchmarks/gan_step.py [--blocks 8] [--steps 2]

``model=gan_fpn_aspp``, 4 crops of 256x256 in memory, bf16, channels_last, no warm-up. One bare loop asks the generator
for a labelling in each of the two steps, as most published ones do; the other takes both from one forward pass, as
the task does.
"""

from __future__ import annotations

import copy
import functools
import logging
import tempfile
import warnings
from collections.abc import Callable

import torch
from interleaved import Turns, arguments, random_batch, run_config, show
from torch import Tensor, nn
from torch.nn import functional as F

from cityseg.data.loading import Batch
from cityseg.runs.objects import build_data, build_network, build_task, build_trainer
from cityseg.tasks.adversarial import AdversarialTask

VOID_IGNORED = functools.partial(F.cross_entropy, ignore_index=255)


def bare_loop(
    generator: nn.Module,
    discriminator: nn.Module,
    weight: float,
    *,
    shared: bool,
    loss: Callable[[Tensor, Tensor], Tensor] = VOID_IGNORED,
    fused: bool = False,
) -> Callable[[Batch], None]:
    """One step of each network, as it is written without a framework: expected class index, hinge losses."""
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-3, fused=fused)
    judge_optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=fused)
    device = next(generator.parameters()).device
    index = torch.arange(19, device=device).view(1, -1, 1, 1) / 18

    def seen(logits: Tensor, void: Tensor) -> Tensor:
        return (logits.float().softmax(dim=1) * index).sum(dim=1, keepdim=True).masked_fill(void, 0)

    def mean(values: Tensor, mask: Tensor) -> Tensor:
        return (values * mask).sum() / mask.sum()

    def step(batch: Batch) -> None:
        photo, target = batch["photo"].float() / 127.5 - 1, batch["target"].long()
        void = (target == 255).unsqueeze(1)
        truth = (target.unsqueeze(1) / 18).masked_fill(void, 0)
        with torch.autocast(device.type, torch.bfloat16):
            if shared:
                logits = generator(batch["photo"])
            else:
                with torch.no_grad():
                    logits = generator(batch["photo"])
            real, fake = discriminator(photo, truth), discriminator(photo, seen(logits, void).detach())
            mask = (F.adaptive_avg_pool2d((~void).float(), real.shape[-2:]) >= 0.5).float()
            judged = mean(F.relu(1 - real), mask) + mean(F.relu(1 + fake), mask)
        judge_optimizer.zero_grad()
        judged.backward()
        judge_optimizer.step()
        discriminator.requires_grad_(False)
        with torch.autocast(device.type, torch.bfloat16):
            logits = logits if shared else generator(batch["photo"])
            value = loss(logits, target) - weight * mean(discriminator(photo, seen(logits, void)), mask)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        discriminator.requires_grad_(True)

    return step


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, blocks=8, steps=2)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    batch = random_batch(args.batch, 256, 256)
    with tempfile.TemporaryDirectory() as folder:
        config = run_config(
            folder, "model=gan_fpn_aspp", "model.generator.pretrained=false", "scheduler=none", "task.warmup_epochs=0",
            "trainer.max_epochs=1", "trainer.precision=bf16-mixed",
        )  # fmt: skip
        data = build_data(config)
        task = build_task(config, data, build_network(config, data.label_space))
        assert isinstance(task, AdversarialTask)
        steps = {}
        for name, shared in (("two forwards", False), ("one forward", True)):
            networks = copy.deepcopy(task.network).train(), copy.deepcopy(task.discriminator).train()
            steps[name] = bare_loop(*networks, config.task.adversarial_weight, shared=shared)
        others = {name: lambda step=step: step(batch) for name, step in steps.items()}
        turns = Turns(batch, others, blocks=args.blocks, steps=args.steps)
        build_trainer(config, [], [], limit_val_batches=0).fit(task, turns)
    show(turns.found, "ours", "two forwards", "< 1.0")
    show(turns.found, "ours", "one forward", "<= 1.05")


if __name__ == "__main__":
    main()
