"""Blurred colour labels -> train ids: a pixel between two colours is explained as a mixture of the two.

Shrinking a label image mixes the colours on both sides of an edge, and JPEG blurs the result once more, its
chroma far more than its luma. The colour nearest to such a pixel is often a third class's. The decoder here
weighs all explanations of a pixel (one colour, or two in any proportion) by how well they fit within the noise
of JPEG and by what is seen nearby.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from cityseg.data.color_labels import PaletteDecoder, check_colors
from cityseg.labels import ByteArray, LabelSpace

_Floats = npt.NDArray[np.float32]
_Indices = npt.NDArray[np.intp]

_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)  # JFIF (ITU-T T.871): the space in which JPEG rounds; the offset of 128 is left out

# Noise of a pixel's luma and chroma: a floor of rounding, and a share of the range (largest less smallest value)
# in the 3x3 pixels around it. Measured as JPEG minus original on composites of known colours, quality 75 to 95:
# luma errs by 3 to 8 % of its range. Chroma errs by 35 % of it where 2x2 pixels share one value (4:2:0), which
# is that blur's own scale and hardly depends on the quality, and by 12 % where each pixel has its own (4:4:4).
LUMA_NOISE, LUMA_NOISE_OF_RANGE = 2.0, 0.04
CHROMA_NOISE, SHARED_CHROMA_OF_RANGE, OWN_CHROMA_OF_RANGE = 1.5, 0.35, 0.12
MAX_MISFIT = 60.0  # squared distance in units of the noise: beyond it exp() only underflows

# A pixel is certain at first sight if its colour is this near to a palette colour and no channel's range in the
# 3x3 pixels around it is larger than this: beside an edge, and so in a blend, the range nearly always is. At
# quality 75 ringing reaches this far into flat regions; 10 and 12 give the same scores and take longer.
FLAT_DISTANCE, FLAT_RANGE = 15.0, 20.0  # levels of 0 to 255, in YCbCr

# How likely a colour is before a pixel is looked at: its share in a window around the pixel (at first of the
# certain pixels, which stay away from edges, so a wide one), a little of its share in the image, and a floor for
# thin things that are nowhere seen pure. Half or twice of any moves mIoU by 2.3 points at most, mostly by 0.5.
WINDOWS = (13, 5, 5)  # pixels; one window for each round of explaining
IMAGE_WEIGHT = 0.05
UNSEEN = 5e-4
BLENDED = 0.5  # of the pixels that are not certain at first sight, those that are mixtures

LOCAL_COLORS = 3  # likeliest colours at a pixel; a mixture holds at least one of them
DECIDED = 0.999  # probability above which later rounds leave a pixel alone
MIN_PROBABILITY = 0.99  # of a likeliest class that is not ambiguous: odds of 100 to 1

_CHUNK = 2048  # pixels explained at once: their tables stay in the processor's cache
_ROOT_TWO_PI = math.sqrt(2 * math.pi)


class BlendDecoder(PaletteDecoder):
    """Gives each pixel the train id of the colour that most of it is made of, ambiguous ones void where rejected.

    In rounds, each pixel gets a probability for every colour: that of being this colour alone, plus that of
    being a mixture in which it has the larger share, over all proportions and second colours (the likelihood is
    Gaussian in luma and chroma, with the noise of the place; the prior is what the last round found nearby). From
    the second round on, the chroma that 4:2:0 has blurred is sharpened by what the mixtures found so far lose
    in the same blur; how much of that loss the image really shows tells whether its chroma was subsampled.

    ``benchmarks/decoders.py`` measures it. It takes 0.04 to 0.07 s for 256x256 pixels on one core, so decode once and
    keep the result.
    """

    def __init__(self, space: LabelSpace, reject_ambiguous: bool = True) -> None:
        super().__init__(space, None)
        self.reject_ambiguous = reject_ambiguous
        self._palette: _Floats = np.array([color for color, _ in self._entries], np.float32) @ _YCBCR.T
        between = np.square(self._palette[:, None] - self._palette)
        self._luma_between, self._chroma_between = between[..., 0], between[..., 1:].sum(-1)
        targets = np.array([train_id for _, train_id in self._entries])
        self._train_ids = np.unique(targets).astype(np.uint8)
        self._same_class = (self._train_ids[:, None] == targets).astype(np.float32)

    def __call__(self, colors: ByteArray) -> ByteArray:
        """Decode a label image ``(H, W, 3)`` uint8 RGB to train ids ``(H, W)`` uint8."""
        check_colors(colors)
        probability = self._same_class @ self._winners(colors)
        likeliest = probability.argmax(0)
        train_ids: ByteArray = self._train_ids[likeliest]
        if self.reject_ambiguous:
            train_ids[probability[likeliest, np.arange(len(likeliest))] < MIN_PROBABILITY] = self._void
        return train_ids.reshape(colors.shape[:2])

    def _winners(self, colors: ByteArray) -> _Floats:
        """Probability of each colour to have the larger share of each pixel, ``(K, H * W)``."""
        height, width = colors.shape[:2]
        window = np.ones((3, 3), np.uint8)
        image = np.asarray(cv2.transform(colors.astype(np.float32), _YCBCR), np.float32)
        seen = np.ascontiguousarray(image.reshape(-1, 3).T)
        spread = (cv2.dilate(image, window) - cv2.erode(image, window)).reshape(-1, 3).T
        chroma_spread = np.maximum(spread[1], spread[2])
        winner, open_pixels = self._at_first_sight(seen, np.maximum(spread[0], chroma_spread))
        share, sharp, of_range = winner.copy(), seen, SHARED_CHROMA_OF_RANGE
        luma_noise = LUMA_NOISE + LUMA_NOISE_OF_RANGE * spread[0]
        for number, size in enumerate(WINDOWS):
            if number:
                sharp, subsampled = self._sharpen(seen, share, (height, width))
                of_range = OWN_CHROMA_OF_RANGE + (SHARED_CHROMA_OF_RANGE - OWN_CHROMA_OF_RANGE) * subsampled
                open_pixels = open_pixels[winner[:, open_pixels].max(0) < DECIDED]
            noise = np.stack([luma_noise, CHROMA_NOISE + of_range * chroma_spread])
            expected = _expected(winner, (height, width), size)
            for start in range(0, len(open_pixels), _CHUNK):
                pixels = open_pixels[start : start + _CHUNK]
                explained = self._explain(sharp[:, pixels], noise[:, pixels], expected[:, pixels])
                winner[:, pixels], share[:, pixels] = explained
        return winner

    def _at_first_sight(self, seen: _Floats, spread: _Floats) -> tuple[_Floats, _Indices]:
        """Certain pixels as one-hot columns ``(K, H * W)``, zero elsewhere, and the indices of the others."""
        squares = np.square(self._palette).sum(1)[:, None] - 2 * self._palette @ seen
        nearest = squares.argmin(0)
        distance = squares[nearest, np.arange(len(nearest))] + np.square(seen).sum(0)
        flat = (distance < FLAT_DISTANCE**2) & (spread < FLAT_RANGE)
        winner = np.zeros(squares.shape, np.float32)
        winner[nearest[flat], np.flatnonzero(flat)] = 1
        return winner, np.flatnonzero(~flat)

    def _sharpen(self, seen: _Floats, share: _Floats, size: tuple[int, int]) -> tuple[_Floats, float]:
        """Give back to the chroma what 4:2:0 took, and estimate from the image whether it did (0 to 1).

        The mixtures found so far predict the chroma before and after: the mean of 2x2 pixels, brought back by the
        triangle filter that JPEG decoders use.
        """
        height, width = size
        sharp, lost = seen.copy(), np.empty((2, height * width), np.float32)
        mixed = self._palette[:, 1:].T @ share
        for plane, lost_plane in zip(mixed, lost, strict=True):
            whole = plane.reshape(size)
            half = cv2.resize(whole, (-(-width // 2), -(-height // 2)), interpolation=cv2.INTER_AREA)
            lost_plane[:] = (whole - cv2.resize(half, (width, height), interpolation=cv2.INTER_LINEAR)).reshape(-1)
        missing = mixed - seen[1:]
        # Least squares of missing = subsampled * lost; 1 keeps an image without edges from dividing by zero.
        subsampled = min(max(float((missing * lost).sum()) / (float(np.square(lost).sum()) + 1), 0.0), 1.0)
        sharp[1:] += np.float32(subsampled) * lost
        return sharp, subsampled

    def _explain(self, seen: _Floats, noise: _Floats, expected: _Floats) -> tuple[_Floats, _Floats]:
        """How probably each of K colours has the larger share of N pixels, and its mean share, ``(K, N)`` each.

        On the line from colour a to colour b, in units of the noise, a pixel is `length` * `place` along and
        `misfit` off; the integral of its Gaussian over the places 0 to 1 is the mixture's likelihood, and the
        part beyond one half is b's win. Luma and chroma are `seen` ``(3, N)``, and `noise` ``(2, N)`` their standard
        deviations; `expected` ``(K, N)`` is how likely each colour is, up to a factor.
        """
        luma, chroma = noise**-2
        squares = luma * np.square(seen[0] - self._palette[:, :1])
        squares += chroma * np.square(seen[1] - self._palette[:, 1:2])
        squares += chroma * np.square(seen[2] - self._palette[:, 2:])
        second = expected / expected.sum(0)
        winner: _Floats = (1 - BLENDED) * second * np.exp(-0.5 * np.minimum(squares, MAX_MISFIT))
        share = winner.copy()
        columns = np.arange(seen.shape[1])
        for _ in range(min(LOCAL_COLORS, len(second) - 1)):
            first = second.argmax(0)
            likely, from_first = second[first, columns], squares[first, columns]
            second[first, columns] = 0  # neither with itself, nor the same pair twice
            # Colours closer than the noise cannot be told apart: a length of 1 keeps the division sound.
            square_length = luma * self._luma_between.take(first, axis=1)
            square_length += chroma * self._chroma_between.take(first, axis=1)
            np.maximum(square_length, 1, out=square_length)
            place = (from_first - squares) / (2 * square_length) + np.float32(0.5)
            misfit = np.clip(from_first - np.square(place) * square_length, 0, MAX_MISFIT)
            length = np.sqrt(square_length)
            fit = (2 * BLENDED * _ROOT_TWO_PI * likely) * second * np.exp(-0.5 * misfit) / length
            # The normal distribution function as the line with its slope at 0: cheap, and as good here.
            slope = length * np.float32(1 / _ROOT_TWO_PI)
            at_start = np.float32(0.5) - place * slope
            middle = np.clip(at_start + np.float32(0.5) * slope, 0, 1)
            end = np.clip(at_start + slope, 0, 1)
            np.clip(at_start, 0, 1, out=at_start)
            winner += fit * (end - middle)
            winner[first, columns] += np.einsum("kn,kn->n", fit, middle - at_start)
            fit *= end - at_start
            of_second = np.clip(place, 0, 1)
            of_second *= fit
            share += of_second
            share[first, columns] += fit.sum(0) - of_second.sum(0)
        return winner / winner.sum(0), share / share.sum(0)


def _expected(winner: _Floats, size: tuple[int, int], window: int) -> _Floats:
    """How likely each colour is at each pixel, up to a factor, from `winner` in a window around it: ``(K, H * W)``."""
    expected = np.full_like(winner, UNSEEN)
    for plane, expected_plane in zip(winner, expected, strict=True):
        if overall := float(plane.mean()):
            nearby = cv2.blur(plane.reshape(size), (window, window))
            expected_plane += nearby.reshape(-1) + np.float32(IMAGE_WEIGHT * overall)
    return expected
