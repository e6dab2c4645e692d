import numpy as np
import pytest
from PIL import Image

from cityseg.data.images import read_photo
from cityseg.errors import FileProblem


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA", "1"])
def test_a_png_of_any_mode_is_what_pillow_reads(tmp_path, picture, mode):
    path = tmp_path / "photo.png"
    Image.fromarray(picture).convert(mode).save(path)
    np.testing.assert_array_equal(read_photo(path), np.asarray(Image.open(path).convert("RGB")))


def test_what_a_png_says_beside_its_pixels_changes_none(tmp_path, picture):
    path, exif = tmp_path / "photo.png", Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(picture).save(path, exif=exif, gamma=1.7, transparency=tuple(picture[0, 0].tolist()), dpi=(9, 9))
    np.testing.assert_array_equal(read_photo(path), picture)


@pytest.mark.parametrize("damage", ["cut", "bit", "name"])
def test_a_damaged_png_is_never_a_picture(tmp_path, picture, damage):
    path = tmp_path / "photo.png"
    Image.fromarray(picture).save(path)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-200:-12]
    elif damage == "bit":
        data[len(data) // 2] ^= 1
    else:
        data[0] = 0
    path.write_bytes(data)
    with pytest.raises(FileProblem, match=r"photo\.png"):
        read_photo(path)
