"""Windows of any size over photos of any size, for networks to which they must make no difference."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cityseg.inference import Inference, _starts, _weight

SIDES = st.integers(1, 40)
SIZES = st.tuples(SIDES, SIDES)
BLENDINGS = st.sampled_from(["gaussian", "flat"])


class Constant(nn.Module):
    """The same logits everywhere."""

    def forward(self, photos):
        logits = torch.tensor([1.5, -2.0, 0.25]).view(1, 3, 1, 1)
        return logits.expand(len(photos), 3, *photos.shape[-2:])


class Values(nn.Module):
    """Each pixel's own value as its logits: what a window shows around it makes no difference."""

    def forward(self, photos):
        return photos.float() / 255


def photos(size, count=1):
    return torch.randint(0, 256, (count, 3, *size), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


@st.composite
def sliding(draw):
    window = draw(SIZES)
    stride = draw(st.none() | st.tuples(*(st.integers(max(1, side // 3), side) for side in window)))
    return Inference(window=window, stride=stride, blending=draw(BLENDINGS))


@given(length=st.integers(1, 200), window=st.integers(1, 200), stride=st.integers(1, 200))
def test_windows_cover_every_pixel_and_end_with_the_photo(length, window, stride):
    window = min(window, length)
    starts = _starts(length, window, min(stride, window))
    covered = {pixel for start in starts for pixel in range(start, start + window)}
    assert covered == set(range(length))
    assert starts == sorted(set(starts))


@given(size=SIZES, blending=BLENDINGS)
def test_weights_are_above_0_symmetric_and_largest_in_the_middle(size, blending):
    weight = _weight(*size, blending)
    assert (weight > 0).all()
    torch.testing.assert_close(weight, weight.flip(0).flip(1))
    assert weight.max() == weight[(size[0] - 1) // 2, (size[1] - 1) // 2]


@given(size=SIZES, inference=sliding(), count=st.integers(1, 2))
def test_windows_change_nothing_for_a_network_that_sees_no_surroundings(size, inference, count):
    pictures = photos(size, count)
    torch.testing.assert_close(inference(Values(), pictures), Values()(pictures), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inference(Constant(), pictures), Constant()(pictures).contiguous(), rtol=1e-5, atol=1e-5)


@given(size=SIZES, more=st.tuples(st.integers(0, 9), st.integers(0, 9)), blending=BLENDINGS)
def test_a_window_as_large_as_the_photo_is_the_whole_photo(size, more, blending):
    window = size[0] + more[0], size[1] + more[1]
    sliding = Inference(window=window, blending=blending)
    assert torch.equal(sliding(Values(), photos(size)), Inference()(Values(), photos(size)))


@given(size=SIZES, wanted=SIZES, scales=st.lists(st.floats(0.1, 2), min_size=1, max_size=3), flip=st.booleans())
def test_views_of_a_constant_network_agree_and_probabilities_sum_to_1(size, wanted, scales, flip):
    inference = Inference(scales=tuple(scales), flip=flip)
    probabilities = inference(Constant(), photos(size), wanted).softmax(1)
    assert probabilities.shape == (1, 3, *wanted)
    expected = torch.tensor([1.5, -2.0, 0.25]).softmax(0).view(1, 3, 1, 1).expand_as(probabilities)
    torch.testing.assert_close(probabilities, expected, rtol=1e-5, atol=1e-6)
    if flip or len(scales) > 1:  # else these are the network's own logits
        found = inference(Values(), photos(size), wanted).exp()
        torch.testing.assert_close(found.sum(1), torch.ones(1, *wanted))
