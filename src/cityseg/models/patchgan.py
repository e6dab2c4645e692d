"""The discriminator of adversarial training: says of each patch whether its labelling looks like a true one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm as spectrally_normalised

from cityseg.errors import ConfigError

_KERNEL = 4  # pixels
_MOST = 8  # channels grow up to this many times the first layer's


class PatchGan(nn.Module):
    """Scores patches of a photo together with a map of its labelling (Isola et al., CVPR 2017, section 3.2.2).

    Convolutions of 4x4, ``layers`` of stride 2 and two of stride 1, with LeakyReLU 0.2 between them: each score
    sees 70x70 pixels with three layers, 34x34 with two, 16x16 with one. The scores are logits, as hinge losses take
    them.

    Nothing is normalised: with batch normalisation the scores of one image would depend on the others of its batch,
    and true and predicted labellings come in batches of their own; instance normalisation takes a map's mean away,
    which says how sure a labelling is. What hinge losses need is a bound on the slope: spectral normalisation
    (Miyato et al., ICLR 2018).

    Args:
        in_channels: of photo and map together.
        base_channels: of the first layer; doubled with each further one, up to eight times.
        layers: of stride 2.
        spectral_norm: divide each layer's weights by their largest singular value.

    Raises:
        ConfigError: if an option is out of its range.
    """

    def __init__(self, in_channels: int, base_channels: int = 64, layers: int = 3, spectral_norm: bool = False) -> None:
        super().__init__()
        if min(in_channels, base_channels, layers) < 1:
            found = f"in_channels={in_channels}, base_channels={base_channels}, layers={layers}"
            raise ConfigError(f"model.discriminator: found {found}, expected 1 or more of each")
        widths = [in_channels, *(base_channels * min(2**layer, _MOST) for layer in range(layers + 1)), 1]
        self._strides = [2] * layers + [1, 1]
        parts: list[nn.Module] = []
        for before, after, stride in zip(widths[:-1], widths[1:], self._strides, strict=True):
            convolution = nn.Conv2d(before, after, _KERNEL, stride, padding=1)
            parts += [spectrally_normalised(convolution) if spectral_norm else convolution, nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*parts[:-1])

    def forward(self, photo: Tensor, labelling: Tensor) -> Tensor:
        """Score every patch.

        Args:
            photo: ``(B, 3, H, W)`` float, normalised.
            labelling: ``(B, M, H, W)`` float, a map of the true or the predicted classes.

        Returns:
            Scores ``(B, 1, h, w)``, above 0 where a patch looks true; h is H over the strides, less 2.

        Raises:
            ValueError: if the photo is too small for one patch.
        """
        self._grid(*photo.shape[-2:])
        scores: Tensor = self.layers(torch.cat([photo, labelling], dim=1))
        return scores

    def valid_mask(self, void: Tensor) -> Tensor:
        """Which scores count where pixels ``(B, H, W)`` bool have no true class: ``(B, 1, h, w)`` float, 1 or 0.

        The image is divided evenly among the scores; a score counts if at least half of its own cell is not void.
        (Its whole patch is larger and overlaps the next ones.)

        Raises:
            ValueError: as :meth:`forward`.
        """
        valid = F.adaptive_avg_pool2d((~void).unsqueeze(1).float(), self._grid(*void.shape[-2:]))
        return (valid >= 0.5).float()

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Number of scores down and across."""
        sides = [height, width]
        for stride in self._strides:
            sides = [(side + 2 - _KERNEL) // stride + 1 for side in sides]
        if min(sides) < 1:
            least = 3 * 2 ** (len(self._strides) - 2)
            raise ValueError(
                f"found photos of {width}x{height} (width x height), expected at least {least}x{least}: the "
                f"discriminator has {len(self._strides) - 2} layers of stride 2. Fix: larger crops, or fewer layers"
            )
        return sides[0], sides[1]
