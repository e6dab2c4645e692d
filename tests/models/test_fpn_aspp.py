"""The feature pyramid with atrous spatial pyramid pooling."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cityseg.models.fpn_aspp import AtrousPooling, FeaturePyramid, build


def photos(height=97, width=131, batch=2):
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


def small(**options):
    return build(**{"encoder": "test_resnet", "num_classes": 5, "fpn_channels": 16, "aspp_channels": 16, **options})


@pytest.mark.parametrize(
    "encoder",
    [
        *("efficientnet_b0", "resnet18", "mobilenetv3_small_050", "convnext_atto"),
        *(
            pytest.param(encoder, marks=pytest.mark.slow)
            for encoder in (
                "vgg11_bn",
                "hrnet_w18_small",
                "vit_tiny_patch16_224",
                "convnext_tiny",
                "swin_tiny_patch4_window7_224",
                "maxvit_tiny_tf_224",
            )
        ),
    ],
)
def test_photos_of_odd_sizes_come_back_at_their_size_and_every_weight_learns(encoder):
    network = build(encoder=encoder, num_classes=5)
    logits = network(photos())
    assert logits.shape == (2, 5, 97, 131)
    logits.square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in network.parameters())
    for size in ((64, 96), (20, 33)):
        with torch.no_grad():
            assert network.eval()(photos(*size, batch=1)).shape == (1, 5, *size)


def test_the_widths_are_those_of_the_design():
    body = build(num_classes=19).body
    assert body.encoder.channels == [16, 24, 40, 112, 320]
    assert [convolution.in_channels for convolution in body.fpn.lateral] == [24, 40, 112, 320]
    seen = {}
    for name in ("aspp", "decoder", "head"):
        module = getattr(body, name)
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: tuple(output.shape)}))
    with torch.no_grad():
        body(torch.zeros(2, 3, 64, 128))
    assert seen == {"aspp": (2, 256, 4, 8), "decoder": (2, 128, 16, 32), "head": (2, 19, 16, 32)}


def test_the_pyramid_carries_coarse_maps_to_fine_ones_by_hand():
    pyramid = FeaturePyramid([1, 1], 1)
    for convolution, weight in zip(pyramid.lateral, (1.0, 10.0), strict=True):
        nn.init.constant_(convolution.weight, weight)
    for convolution in pyramid.smooth:
        nn.init.dirac_(convolution.weight)
    fine, coarse = pyramid([torch.arange(4.0).view(1, 1, 2, 2), torch.tensor([[[[0.5]]]])])
    assert coarse.flatten().tolist() == [5.0]
    assert fine.flatten().tolist() == [5.0, 6.0, 7.0, 8.0]  # each pixel, and what is coarse above it


def test_the_pooling_is_that_of_the_paper():
    torch.manual_seed(0)
    pooling = AtrousPooling(3, 4, (2, 3)).eval()
    x = torch.randn(2, 3, 9, 11)
    weights = [branch[0].weight for branch in pooling.branches]
    assert [tuple(w.shape[-2:]) for w in weights] == [(1, 1), (3, 3), (3, 3)]

    def normalised(y):  # a fresh batch normalisation in eval mode
        return F.relu(y / (1 + 1e-5) ** 0.5)

    scales = [normalised(F.conv2d(x, weights[0]))]
    scales += [normalised(F.conv2d(x, w, padding=r, dilation=r)) for w, r in zip(weights[1:], (2, 3), strict=True)]
    scales.append(
        normalised(F.conv2d(x.mean(dim=(2, 3), keepdim=True), pooling.pooling[1][0].weight)).expand(-1, -1, 9, 11)
    )
    expected = normalised(F.conv2d(torch.cat(scales, dim=1), pooling.project[0].weight))
    torch.testing.assert_close(pooling(x), expected)


def test_what_it_pools_is_the_mean_of_all_levels_at_a_sixteenth():
    body = small().body.eval()
    seen = {}
    body.fpn.register_forward_hook(lambda _m, _i, output: seen.update(levels=output))
    body.aspp.register_forward_pre_hook(lambda _m, inputs: seen.update(merged=inputs[0]))
    with torch.no_grad():
        body(torch.randn(1, 3, 64, 64))
    quarter, eighth, sixteenth, coarsest = seen["levels"]
    expected = F.avg_pool2d(quarter, 4) + F.avg_pool2d(eighth, 2) + sixteenth
    expected += F.interpolate(coarsest, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(seen["merged"], expected / 4)


def test_dropout_works_in_training_only_and_leaves_the_keys_alone():
    dropping, plain = small(dropout=0.5), small()
    assert dropping.state_dict().keys() == plain.state_dict().keys()
    dropping.load_state_dict(plain.state_dict())
    x = photos(64, 64)
    with torch.no_grad():
        torch.testing.assert_close(dropping.eval()(x), plain.eval()(x))
        dropping.body.head.train()
        assert not torch.equal(dropping(x), dropping(x))


def test_a_batch_of_one_is_known_to_be_too_few_in_training():
    assert small().min_train_batch == 2


def test_bf16_autocast_works():
    with torch.autocast("cpu", torch.bfloat16):
        assert small()(photos()).isfinite().all()
