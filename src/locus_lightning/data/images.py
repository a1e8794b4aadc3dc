"""Opening pictures: one function for training, for building a corpus and for evaluation, and one error for a picture that is left out."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from locus_lightning.boxes import MOST_ASPECT
from locus_lightning.errors import PictureError
from locus_lightning.types import Size

Exif = Literal["skip", "apply", "ignore"]
"""What happens to a picture whose EXIF orientation says that it is shown turned, where the annotated size does not settle which way its boxes
were drawn."""

_ORIENTATION = 0x0112


def open_rgb(source: str | Path | bytes, size: Size | None = None, exif: Exif = "apply") -> Image.Image:
    """A picture as RGB, the way its boxes mean it.

    Pictures of 16 bits a channel keep their upper 8 bits. Floating-point pictures are scaled by 255 where they lie in [0, 1]. Transparency is
    dropped, and of an animation the first frame is taken. An EXIF orientation is applied where that gives the annotated size; otherwise
    ``exif`` decides. All of this is our choice.

    Args:
        source: a path, or the bytes of a file.
        size: the annotated (width, height); None where there is no annotation.
        exif: see :data:`Exif`; without ``size``, every setting but ``ignore`` applies the orientation.

    Raises:
        PictureError: it does not open, is not of the annotated size, or is one that no model takes; the message is the reason.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            image = _upright(file, size, exif)
            image = image.convert("RGB") if image.mode not in _DEEP else _eight_bits(image)
    except PictureError:
        raise
    except Exception as cause:  # decoders of damaged files raise whatever they like, an AVIF's RuntimeError among it
        raise PictureError(f"{type(cause).__name__}: {cause}") from cause
    if size is not None and image.size != size:
        raise PictureError(f"the file is {image.width}x{image.height} px, its annotation says {size[0]}x{size[1]}")
    if max(image.size) > MOST_ASPECT * min(image.size):
        raise PictureError(f"{image.width}x{image.height} px is over {MOST_ASPECT} times as long as wide")
    return image


def is_turned(path: str | Path) -> bool:
    """Whether a picture's EXIF orientation says that it is shown turned by a quarter."""
    try:
        with Image.open(path) as file:
            return bool(file.getexif().get(_ORIENTATION, 1) >= 5)
    except Exception:
        return False


def picture_size(path: str | Path, exif: Exif) -> Size:
    """(width, height) from a picture's header, as shown where ``exif`` is ``apply``; (0, 0) where it cannot be read."""
    try:
        with Image.open(path) as file:
            turned = exif == "apply" and file.getexif().get(_ORIENTATION, 1) >= 5
            return (file.height, file.width) if turned else file.size
    except Exception:
        return 0, 0


def data_url(image: Image.Image, kind: str = "JPEG", quality: int = 90) -> str:
    """A picture inside an address, for pages and requests that stand alone."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _upright(image: Image.Image, size: Size | None, exif: Exif) -> Image.Image:
    """The picture as stored, or turned as its EXIF orientation says."""
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation not in range(2, 9) or exif == "ignore":
        return image
    turned = ImageOps.exif_transpose(image)
    if size is None or turned.size == size != image.size or (exif == "apply" and turned.size == size):
        return turned
    if image.size == size:
        raise PictureError(
            f"EXIF orientation {orientation}: the annotated size does not say whether boxes were drawn on the picture as shown; set exif to "
            "apply or ignore"
        )
    return image


_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Modes with more than 8 bits a channel, which ``convert`` would clip."""


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits, or of floats in [0, 1], as RGB."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        if not (low >= 0 and high <= 1):
            raise PictureError(f"floating-point values from {low:g} to {high:g}; only values between 0 and 1 have a plain meaning")
        grey = np.rint(values * 255).astype(np.uint8)
    elif not (low >= 0 and high < 2**16):
        raise PictureError(f"32-bit values from {low:g} to {high:g}; only 16 bits have a plain meaning")
    else:
        grey = (values.astype(np.uint32) >> 8).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
