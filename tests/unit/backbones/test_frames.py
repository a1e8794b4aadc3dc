"""Every family's frame against its own processor: what is drawn is seen where the frame says it is, and is read back as it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from locus_lightning.tasks.parsing import parse_boxes, write_response
from tests.conftest import FAMILIES, make_sample, prompt_length

SIZES = [(640, 480), (480, 640), (21, 17), (3840, 2160), (1200, 150), (110, 900), (97, 97)]


@pytest.fixture(scope="module", params=list(FAMILIES))
def backbone(request):
    made = FAMILIES[request.param](f"toy:{request.param}")
    made.load()
    return made


def seen(backbone, image):
    """The whole image as (grey) pixels that the model gets: from the tower's input, tiles left out."""
    prompt = backbone.encode_pixels([(image, "?")])[0]
    pixels = prompt.vision["pixel_values"].float()
    if "image_grid_thw" in prompt.vision:  # patches, those of a merged token together
        images = backbone.processor.image_processor
        (_, rows, columns), merge, patch = prompt.vision["image_grid_thw"][0].tolist(), images.merge_size, images.patch_size
        parts = pixels.view(rows // merge, columns // merge, merge, merge, 3, -1, patch, patch)[..., 0, :, :]
        return parts.permute(0, 2, 5, 1, 3, 6, 4).reshape(rows * patch, columns * patch, 3).mean(-1).numpy()
    if pixels.dim() == 5:  # (1, tiles, ...): LLaVA's overview comes first, Idefics' last
        pixels = pixels[0, [-1 if "pixel_attention_mask" in prompt.vision else 0]]
    return pixels[-1].mean(0).numpy()  # InternVL's overview comes last


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_what_is_drawn_is_seen_where_the_frame_says(backbone, size):
    """A white box on black, through prompt, padding, resize and normalisation."""
    w, h = size
    box = (round(0.3 * w), round(0.35 * h), round(0.6 * w), round(0.85 * h))
    pixels = np.zeros((h, w, 3), dtype=np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    image = Image.fromarray(pixels)
    grey = seen(backbone, image)
    bright = grey > (grey.max() + grey.min()) / 2 + 0.05 * np.ptp(grey)
    where = [np.flatnonzero(bright.any(axis)) for axis in (0, 1)]
    found = (where[0][0], where[1][0], where[0][-1] + 1, where[1][-1] + 1)
    frame = backbone.frame(image.size)
    height, width = grey.shape
    tolerance = 2.5 if "idefics" in backbone.checkpoint or "smolvlm" in backbone.checkpoint else 1.5  # those resize twice
    for got, stated, extent, side in zip(
        found, frame.to_model(tuple(map(float, box))), (*frame.extent, *frame.extent), (width, height) * 2, strict=True
    ):
        assert abs(got - stated / extent * side) <= tolerance, (found, grey.shape)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(w=st.integers(16, 5000), h=st.integers(16, 5000), corners=st.tuples(*[st.floats(0, 1)] * 4))
@example(w=4433, h=4433, corners=(0.0, 0.59375, 0.0, 0.0))  # thinner than a step, both ends round to the same number
def test_a_box_is_read_back_within_the_frames_rounding(backbone, w, h, corners):
    """Original pixels -> frame -> text -> parse -> original pixels."""
    if max(w, h) > 190 * min(w, h):
        return
    x1, y1 = int(corners[0] * (w - 16)), int(corners[1] * (h - 16))
    box = (float(x1), float(y1), float(x1 + 16 + int(corners[2] * (w - 16 - x1))), float(y1 + 16 + int(corners[3] * (h - 16 - y1))))
    frame = backbone.frame((w, h))
    boxes, well_formed = parse_boxes(write_response("r", frame.to_text(box)), frame, 1)
    assert well_formed
    assert boxes is not None
    for got, true, step in zip(boxes[0], box, frame.resolution * 2, strict=True):
        assert abs(got - true) <= 1.01 * step


def test_the_cue_is_bound_by_the_same_budget_as_the_image(backbone):
    small, large = (prompt_length(backbone, make_sample(*size, (2, 2, 20, 20))) for size in ((64, 48), (1280, 960)))
    assert small <= large
