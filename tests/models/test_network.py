"""The wrapper that gives every network photos of any size."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cityseg.errors import ConfigError
from cityseg.models.network import SegmentationNetwork, count_parameters, encoder_stages

MEAN, STD = (0.5, 0.25, 0.0), (0.5, 0.25, 1.0)


class Recorder(nn.Module):
    """Keeps what it sees and gives its first channels back, at 1/stride of the size."""

    def __init__(self, stride=1):
        super().__init__()
        self.stride = stride
        self.seen = None

    def forward(self, x):
        self.seen = x
        return x[:, :2, :: self.stride, :: self.stride]


def network(body, **options):
    return SegmentationNetwork(body, num_classes=2, mean=MEAN, std=STD, **options)


def test_bytes_are_normalised_with_the_mean_and_std_of_the_encoder():
    photos = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    body = Recorder()
    network(body)(photos)
    torch.testing.assert_close(body.seen.flatten(), torch.tensor([-1.0, (0.2 - 0.25) / 0.25, 1.0]))


def test_floats_are_taken_as_0_to_255_too():
    photos = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    wrapped = network(Recorder())
    torch.testing.assert_close(wrapped(photos.float()), wrapped(photos))


@pytest.mark.parametrize(
    ("size", "padded"),
    [((97, 131), (128, 160)), ((64, 96), (64, 96)), ((1, 1), (32, 32)), ((33, 5), (64, 32))],
)
def test_any_size_comes_back_and_the_body_sees_multiples_of_the_divisor(size, padded):
    body = Recorder()
    logits = network(body, divisor=32)(torch.zeros(1, 3, *size, dtype=torch.uint8))
    assert logits.shape == (1, 2, *size)
    assert body.seen.shape[-2:] == padded


def test_the_padding_is_the_mean_colour_at_the_right_and_the_bottom():
    body = Recorder()
    network(body, divisor=4)(torch.full((1, 3, 3, 2), 255, dtype=torch.uint8))
    assert bool((body.seen[..., :3, :2] > 0).all())
    assert bool((body.seen[..., 3:, :] == 0).all())
    assert bool((body.seen[..., 2:] == 0).all())


def test_a_divisible_size_is_not_touched():
    photos = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    torch.testing.assert_close(network(Recorder(), divisor=32)(photos), network(Recorder())(photos))


def test_smaller_logits_are_interpolated_to_the_photos_size():
    photos = torch.randint(0, 256, (1, 3, 32, 64), dtype=torch.uint8)
    body = Recorder(stride=4)
    logits = network(body, divisor=32)(photos)
    quarter = body.seen[:, :2, ::4, ::4]
    expected = nn.functional.interpolate(quarter, scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, expected)


def test_tiny_photos_are_padded_to_the_least_size():
    body = Recorder()
    network(body, divisor=16, min_size=100)(torch.zeros(1, 3, 8, 130, dtype=torch.uint8))
    assert body.seen.shape[-2:] == (112, 144)


def test_the_body_gets_channels_last():
    body = Recorder()
    network(body)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert body.seen.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 8, 8, 3)])
def test_photos_of_another_shape_are_refused_with_both_shapes(shape):
    with pytest.raises(ValueError, match=r"found photos of shape \(.*expected \(B, 3, H, W\)"):
        network(Recorder())(torch.zeros(shape))


def test_a_fixed_size_pads_smaller_photos_and_refuses_larger_ones_before_training():
    body = Recorder()
    wrapped = network(body, fixed_size=(64, 64))
    assert wrapped(torch.zeros(1, 3, 50, 64)).shape == (1, 2, 50, 64)
    assert body.seen.shape[-2:] == (64, 64)
    with pytest.raises(ValueError, match=r"found .* 50x65 .*at most 64x64.*nearest that works is 50x64"):
        wrapped.check_size(50, 65)
    network(Recorder(), divisor=32).check_size(997, 3)


def test_the_constants_are_not_weights():
    assert network(nn.Conv2d(3, 2, 1)).state_dict().keys() == {"body.weight", "body.bias"}


@pytest.mark.parametrize("options", [{"mean": (0.5,), "std": STD}, {"mean": MEAN, "std": (1.0, 0.0, 1.0)}])
def test_wrong_statistics_are_refused(options):
    with pytest.raises(ValueError, match="expected three values"):
        SegmentationNetwork(Recorder(), num_classes=2, **options)


def test_a_dry_run_leaves_statistics_and_random_state_and_finds_the_least_batch():
    pooled = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(2))
    plain = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5))
    for body, least in ((pooled, 2), (plain, 1)):
        wrapped = network(body, divisor=8)
        before, state = {k: v.clone() for k, v in wrapped.state_dict().items()}, torch.get_rng_state()
        wrapped.dry_run()
        assert wrapped.min_train_batch == least
        assert wrapped.training
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(v, before[k]) for k, v in wrapped.state_dict().items())


def test_parameters_are_counted_with_the_encoder_apart():
    body = nn.Module()
    body.encoder, body.head = nn.Linear(2, 3), nn.Linear(3, 1)
    body.head.weight.requires_grad_(False)
    assert count_parameters(network(body)) == {"total": 13, "trainable": 10, "encoder": 9}


def test_the_network_can_be_exported():
    wrapped = network(nn.Conv2d(3, 2, 3, padding=1), divisor=8).eval()
    photos = torch.randint(0, 256, (1, 3, 21, 13), dtype=torch.uint8)
    exported = torch.export.export(wrapped, (photos,)).module()
    torch.testing.assert_close(exported(photos), wrapped(photos))


class Encoder(nn.Module):
    """Three maps, at 1/2, 1/4 and 1/8; a weight of its own beside its stages, and one that nothing uses."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(1, 1)
        self.last = nn.Sequential(nn.Conv2d(4, 6, 2, stride=2), nn.Dropout(0.5))  # not registered in order
        self.first = nn.Sequential(nn.Conv2d(3, 2, 2, stride=2), nn.BatchNorm2d(2))
        self.second = nn.Conv2d(2, 4, 2, stride=2)
        self.dropout = nn.Dropout(0.5)
        self.offset = nn.Parameter(torch.zeros(2, 1, 1))

    def forward(self, x):
        first = self.first(x) + self.offset
        second = self.dropout(self.second(first))
        return [x, first, second, self.last(second)]


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.head(self.encoder(x)[-1])


def test_stages_go_by_the_finest_map_that_depends_on_a_weight():
    wrapped = network(Body(), divisor=8)
    encoder = wrapped.encoder
    first, second, last = encoder_stages(wrapped)
    assert first[1:] == [encoder.first]
    assert [p is encoder.offset for p in first[0].parameters()] == [True]
    assert second == [encoder.second, encoder.dropout]
    assert last == [encoder.unused, encoder.last]


def test_looking_for_stages_changes_nothing_and_works_on_a_frozen_encoder():
    wrapped = network(Body(), divisor=8)
    expected = encoder_stages(network(Body(), divisor=8))
    wrapped.encoder.requires_grad_(False)
    wrapped.encoder.second.eval()
    before = {key: value.clone() for key, value in wrapped.state_dict().items()}
    modes, state = [m.training for m in wrapped.modules()], torch.get_rng_state()
    with torch.no_grad():
        assert [len(stage) for stage in encoder_stages(wrapped)] == [len(stage) for stage in expected]
    assert [m.training for m in wrapped.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in wrapped.state_dict().items())
    assert all(p.grad is None for p in wrapped.parameters())
    assert not any(p.requires_grad for p in wrapped.encoder.parameters())


def test_a_network_without_an_encoder_has_no_stages_and_no_auxiliary_head():
    wrapped = network(nn.Conv2d(3, 2, 1))
    assert encoder_stages(wrapped) == []
    with pytest.raises(ConfigError, match=r"found 0 feature maps .*Fix: model.auxiliary_head=false"):
        wrapped.add_auxiliary_head()
    with pytest.raises(ConfigError, match=r"Fix: model.auxiliary_head=true"):
        wrapped.forward_auxiliary(torch.zeros(1, 3, 8, 8))


def test_frozen_batch_normalisation_stays_in_eval_mode():
    body = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.Dropout())
    wrapped = network(body)
    body[1].requires_grad_(False)
    assert [m.training for m in wrapped.train().body] == [True, False, True, True]
    body[1].requires_grad_(True)
    assert all(m.training for m in wrapped.train().body)
    assert not any(m.training for m in wrapped.eval().modules())


def test_the_auxiliary_head_scores_the_second_coarsest_map_in_the_same_pass():
    wrapped = network(Body(), divisor=8)
    wrapped.add_auxiliary_head()
    wrapped.eval()
    photos, seen = torch.randint(0, 256, (2, 3, 21, 30), dtype=torch.uint8), []
    handle = wrapped.encoder.register_forward_hook(lambda _m, _i, output: seen.append(output))
    logits, auxiliary = wrapped.forward_auxiliary(photos)
    handle.remove()
    assert len(seen) == 1
    torch.testing.assert_close(logits, wrapped(photos))
    small = wrapped.auxiliary(seen[0][2])
    assert small.shape == (2, 2, 6, 8)
    expected = nn.functional.interpolate(small, size=(24, 32), mode="bilinear", align_corners=False)[..., :21, :30]
    torch.testing.assert_close(auxiliary, expected)
    assert not wrapped.encoder._forward_hooks
    assert [type(m) for m in wrapped.auxiliary] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Dropout, nn.Conv2d]


def test_a_copy_of_a_network_has_an_auxiliary_head_of_its_own():
    wrapped = network(Body(), divisor=8)
    wrapped.add_auxiliary_head()
    copied = copy.deepcopy(wrapped)
    photos = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    nn.init.zeros_(wrapped.auxiliary.head.weight)
    assert not torch.equal(copied.eval().forward_auxiliary(photos)[1], wrapped.eval().forward_auxiliary(photos)[1])
