"""Windows and views against whole photos, loops by hand, and networks for which they must change nothing."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from cityseg.errors import ConfigError
from cityseg.inference import WINDOW_BATCH, Ensemble, Inference


class PerPixel(nn.Module):
    """A 1x1 convolution: what a window shows around a pixel makes no difference to it."""

    def __init__(self, classes=3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Conv2d(3, classes, 1)

    def forward(self, photos):
        return self.head(photos.float() / 255)


class Context(PerPixel):
    """Sees its surroundings, the same way to the left and to the right if `symmetric`."""

    def __init__(self, *, symmetric=False, seed=0):
        super().__init__(seed=seed)
        kernel = torch.randn(3, 3, 5, 5)
        self.head = nn.Conv2d(3, 3, 5, padding=2)
        self.head.weight.data = kernel + kernel.flip(-1) if symmetric else kernel


class Recorder(nn.Module):
    """Notes what it is asked to score, and gives each input pixel's value back as a score."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, photos):
        self.shapes.append(tuple(photos.shape))
        return photos.float()


def photos(height, width, count=1):
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


AWKWARD = [  # height, width, window, stride
    (37, 53, (16, 16), (11, 11)),
    (37, 53, (16, 16), (16, 16)),
    (37, 53, (64, 16), (5, 16)),  # the photo is lower than the window
    (8, 9, (16, 16), None),  # it fits in altogether
    (33, 48, (16, 24), (1, 7)),
    (17, 17, (16, 16), None),
    (5, 1, (2, 1), (2, 1)),
]


@pytest.mark.parametrize("blending", ["gaussian", "flat"])
@pytest.mark.parametrize(("height", "width", "window", "stride"), AWKWARD)
def test_windows_change_nothing_for_a_network_without_surroundings(height, width, window, stride, blending):
    network, batch = PerPixel(), photos(height, width, count=2)
    sliding = Inference(window, stride, blending)(network, batch)
    torch.testing.assert_close(sliding, network(batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [(40, 56), (64, 64), (40, 1000)])
def test_a_window_that_holds_the_photo_is_the_whole_photo_bit_for_bit(window):
    network, batch = Context(), photos(40, 56, count=2)
    assert torch.equal(Inference(window)(network, batch), network(batch))


def test_whole_photos_are_the_networks_own_logits():
    network, batch = Context(), photos(20, 30)
    assert torch.equal(Inference()(network, batch), network(batch))
    bigger = functional.interpolate(network(batch), (40, 60), mode="bilinear", align_corners=False)
    assert torch.equal(Inference()(network, batch, (40, 60)), bigger)


@pytest.mark.parametrize(("height", "width", "window", "stride"), AWKWARD)
def test_every_window_has_the_same_size_and_lies_inside(height, width, window, stride):
    network = Recorder()
    Inference(window, stride)(network, photos(height, width, count=3))
    sides = {shape[2:] for shape in network.shapes}
    assert sides == {(min(window[0], height), min(window[1], width))}
    if sides != {(height, width)}:
        assert max(shape[0] for shape in network.shapes) <= WINDOW_BATCH
    assert Inference(window, stride).network_sizes(height, width) == list(sides)


@pytest.mark.parametrize("blending", ["gaussian", "flat"])
def test_overlapping_windows_are_averaged_as_in_a_loop_over_pixels(blending):
    network, batch = Context(), photos(9, 12)
    with torch.no_grad():
        found = Inference((5, 6), (3, 4), blending)(network, batch)[0].numpy()
        total, weights = np.zeros((3, 9, 12)), np.zeros((9, 12))
        for top in (0, 3, 4):
            for left in (0, 4, 6):
                scores = network(batch[..., top : top + 5, left : left + 6])[0].numpy()
                for y in range(5):
                    for x in range(6):
                        weight = 1.0
                        if blending == "gaussian":
                            weight = np.exp(-(((y - 2) / (5 / 8)) ** 2) / 2 - ((x - 2.5) / (6 / 8)) ** 2 / 2)
                        total[:, top + y, left + x] += weight * scores[:, y, x]
                        weights[top + y, left + x] += weight
    np.testing.assert_allclose(found, total / weights, rtol=1e-4, atol=1e-4)


def test_flipping_changes_nothing_for_a_symmetric_network():
    network, batch = Context(symmetric=True), photos(20, 31, count=2)
    flipped = Inference(flip=True)(network, batch).softmax(1)
    torch.testing.assert_close(flipped, network(batch).softmax(1), rtol=1e-4, atol=1e-6)
    other = Context()
    assert not torch.allclose(Inference(flip=True)(other, batch).softmax(1), other(batch).softmax(1), atol=1e-3)


def test_flip_is_the_mean_of_two_runs_made_by_hand():
    network, batch = Context(), photos(20, 31, count=2)
    mirrored = torch.from_numpy(batch.numpy()[..., ::-1].copy())
    by_hand = (network(batch).softmax(1) + network(mirrored).softmax(1).flip(3)) / 2
    torch.testing.assert_close(Inference(flip=True)(network, batch).softmax(1), by_hand, rtol=1e-5, atol=1e-7)


def test_scales_are_the_mean_of_runs_on_resized_photos():
    network, batch = Context(), photos(24, 32)
    views = []
    for height, width in ((12, 16), (24, 32), (36, 48)):
        resized = functional.interpolate(batch.float(), (height, width), mode="bilinear", antialias=True)
        for mirror in (False, True):
            logits = network(resized.flip(3) if mirror else resized)
            logits = functional.interpolate(logits.flip(3) if mirror else logits, (24, 32), mode="bilinear")
            views.append(logits.softmax(1))
    found = Inference(scales=(0.5, 1.0, 1.5), flip=True)(network, batch).softmax(1)
    torch.testing.assert_close(found, torch.stack(views).mean(0), rtol=1e-4, atol=1e-6)


def test_an_ensemble_is_the_mean_of_its_members_probabilities():
    one, two, batch = Context(seed=1), Context(seed=2), photos(20, 24)
    both = (one(batch).softmax(1) + two(batch).softmax(1)) / 2
    ensemble = Ensemble([one, two])
    torch.testing.assert_close(Inference()(ensemble, batch).softmax(1), both, rtol=1e-5, atol=1e-7)
    sliding = Inference((8, 8))
    apart = (sliding(one, batch).softmax(1) + sliding(two, batch).softmax(1)) / 2
    torch.testing.assert_close(sliding(ensemble, batch).softmax(1), apart, rtol=1e-5, atol=1e-7)


def test_averaged_scores_never_become_infinite():
    class Sure(nn.Module):
        def forward(self, batch):
            return torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).expand(len(batch), 2, *batch.shape[-2:])

    assert Inference(flip=True)(Sure(), photos(4, 4)).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": (8, 8), "stride": (9, 8)}, "stride: found 8x9 with windows of 8x8"),
        ({"window": (8, 8), "stride": (0, 8)}, "stride"),
        ({"window": (0, 8)}, "window: found 8x0"),
        ({"stride": (8, 8)}, "inference=sliding"),
        ({"blending": "cosine"}, "gaussian, flat"),
        ({"scales": ()}, "scales"),
        ({"scales": (1.0, -0.5)}, "scales"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Inference(**settings)


def test_what_is_done_is_said_in_words():
    assert str(Inference()) == ""
    assert str(Inference((512, 512), flip=True)) == "sliding window 512x512, stride 341, Gaussian; flip"
    words = "sliding window 1024x512, stride 512x256, flat; scales 0.5, 1, 1.75"
    assert str(Inference((512, 1024), (256, 512), "flat", (0.5, 1.0, 1.75))) == words


@pytest.mark.slow
def test_windows_bound_the_memory_at_8192x4096():
    import subprocess
    import sys

    code = (
        "import resource, torch; from cityseg.inference import Inference\n"
        "torch.set_grad_enabled(False); torch.set_num_threads(1)\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.Conv2d(64, 4, 1))\n"
        "photo = torch.zeros(1, 3, 4096, 8192, dtype=torch.uint8)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "Inference((512, 512))(lambda x: net(x.float()), photo)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
    )
    peak = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    scores, weights = 4096 * 8192 * 4 * 4 / 2**20, 4096 * 8192 * 4 / 2**20
    whole = 4096 * 8192 * 64 * 4 / 2**20  # the hidden layer of the whole photo: 8 GiB
    assert peak < scores + weights + 0.1 * whole
