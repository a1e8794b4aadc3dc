"""Pictures in every form that people have, and one error for those that cannot be used."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from locus_lightning.data.images import open_rgb, picture_size
from locus_lightning.errors import PictureError


def coloured():
    """40 x 30 px: red on the left half, blue on the right, white in the upper left corner."""
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    pixels[:, :20, 0], pixels[:, 20:, 2] = 255, 255
    pixels[:8, :8] = 255
    return Image.fromarray(pixels)


def stored(orientation, kind="PNG"):
    """The bytes of the coloured picture with an EXIF orientation."""
    image, buffer = coloured(), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def white_corner(image):
    """Which corner is white, as (right, bottom)."""
    pixels = np.asarray(image)
    return next((x, y) for x in (0, 1) for y in (0, 1) if (pixels[y * -1, x * -1] > 250).all())


@pytest.mark.parametrize(
    ("orientation", "size", "corner"), [(1, (40, 30), (0, 0)), (3, (40, 30), (1, 1)), (6, (30, 40), (1, 0)), (8, (30, 40), (0, 1))]
)
def test_without_an_annotation_a_picture_is_turned_as_viewers_show_it(orientation, size, corner):
    image = open_rgb(stored(orientation))
    assert image.size == size
    assert white_corner(image) == corner
    assert open_rgb(stored(orientation), exif="ignore").size == (40, 30)


def test_an_orientation_is_applied_where_it_gives_the_annotated_size():
    for exif in ("skip", "apply"):
        assert white_corner(open_rgb(stored(6), (30, 40), exif)) == (1, 0)
    with pytest.raises(PictureError, match="the file is 40x30 px, its annotation says 30x40"):
        open_rgb(stored(6), (30, 40), "ignore")


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_an_orientation_that_the_size_does_not_settle_is_left_to_the_user(orientation):
    with pytest.raises(PictureError, match=f"EXIF orientation {orientation}: .*set exif to apply or ignore"):
        open_rgb(stored(orientation), (40, 30), "skip")
    assert white_corner(open_rgb(stored(orientation), (40, 30), "ignore")) == (0, 0)
    assert white_corner(open_rgb(stored(orientation), (40, 30), "apply")) != (0, 0)


def test_a_turned_picture_whose_annotation_gives_the_stored_size_is_not_trained_on_unasked():
    for exif in ("skip", "apply"):
        with pytest.raises(PictureError, match="EXIF orientation 6"):
            open_rgb(stored(6), (40, 30), exif)
    assert white_corner(open_rgb(stored(6), (40, 30), "ignore")) == (0, 0)


def test_a_size_that_is_not_annotated_is_read_as_the_picture_will_be_opened(tmp_path):
    (tmp_path / "a.png").write_bytes(stored(6))
    assert picture_size(tmp_path / "a.png", "apply") == (30, 40)
    assert picture_size(tmp_path / "a.png", "skip") == picture_size(tmp_path / "a.png", "ignore") == (40, 30)
    assert picture_size(tmp_path / "none.png", "skip") == (0, 0)


def test_sixteen_bits_keep_their_upper_half():
    grey = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, kind)
        pixels = np.asarray(open_rgb(buffer.getvalue()))
        assert (pixels == (grey >> 8).astype(np.uint8)[..., None]).all()


def test_floats_in_the_unit_range_are_scaled_and_others_refused():
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    for scale, works in ((1, True), (300, False)):
        buffer = io.BytesIO()
        Image.fromarray(values * scale).save(buffer, "TIFF")
        if works:
            assert (np.asarray(open_rgb(buffer.getvalue()))[..., 0] == np.rint(values * 255)).all()
        else:
            with pytest.raises(PictureError, match="floating-point values from 0 to 300"):
                open_rgb(buffer.getvalue())


@pytest.mark.parametrize("mode", ["CMYK", "P", "RGBA", "LA", "L", "1", "YCbCr"])
def test_other_modes_become_rgb(mode):
    buffer = io.BytesIO()
    coloured().convert(mode).save(buffer, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    image = open_rgb(buffer.getvalue(), (40, 30))
    assert image.mode == "RGB"
    assert image.getpixel((2, 2))[0] > 200


def test_whatever_a_decoder_raises_is_one_error(monkeypatch, tmp_path):
    def bomb(*_):
        raise Image.DecompressionBombError("200,000,000 pixels")

    for data in (b"", b"not a picture", stored(1)[:60]):
        with pytest.raises(PictureError):
            open_rgb(data)
    with pytest.raises(PictureError, match="FileNotFoundError"):
        open_rgb(tmp_path / "none.png")
    for error in (bomb, lambda *_: exec("raise RuntimeError('avif')")):
        monkeypatch.setattr(Image, "open", error)
        with pytest.raises(PictureError, match="DecompressionBombError: 200|RuntimeError: avif"):
            open_rgb(b"x")


def test_a_sliver_that_no_processor_takes_is_refused_where_it_is_read():
    buffer = io.BytesIO()
    Image.new("RGB", (4400, 20)).save(buffer, "PNG")
    with pytest.raises(PictureError, match="4400x20 px is over 200 times as long as wide"):
        open_rgb(buffer.getvalue(), (4400, 20))
