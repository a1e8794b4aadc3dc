import numpy as np
from PIL import Image

from locus_cue_detail import DetailCues
from locus_lightning.cue_samplers.base import Picture
from locus_lightning.testing import check_cue_sampler

ANY = {"tiny": 1.0, "small": 1.0, "medium": 1.0, "large": 1.0}


def test_it_keeps_the_contract():
    check_cue_sampler(DetailCues(ANY))


def test_windows_lie_where_the_detail_is():
    """The right half is noise, the left half plain."""
    pixels = np.full((200, 400, 3), 128, dtype=np.uint8)
    pixels[:, 200:] = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    picture = Picture((400, 200), "half", 0, Image.fromarray(pixels).copy)
    windows = [w for seed in range(20) for w in DetailCues({"small": 1.0}).look(picture, (), np.random.default_rng(seed)) or []]
    assert len(windows) > 20
    assert min(window.box[0] for window in windows) >= 180


def test_sizes_follow_the_mix():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 800, 3), dtype=np.uint8))
    picture = Picture(noise.size, "noise", 0, noise.copy)
    sampler = DetailCues({"tiny": 0.7, "small": 0.3}, windows=4)
    bins = [w.size_bin for seed in range(50) for w in sampler.look(picture, (), np.random.default_rng(seed)) or []]
    assert abs(bins.count("tiny") / len(bins) - 0.7) < 0.1
