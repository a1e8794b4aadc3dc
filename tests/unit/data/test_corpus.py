"""A built corpus: exact counts, the same for any number of workers or interruptions, refused where it does not match its manifest."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from locus_lightning.cue_samplers.text_cue import TextCues
from locus_lightning.data.corpus import build as building
from locus_lightning.data.corpus import corpus
from locus_lightning.data.corpus.build import BuildSettings, build
from locus_lightning.data.corpus.contact_sheet import write_sheet
from locus_lightning.data.corpus.corpus import CorpusCues, read_manifest
from locus_lightning.data.corpus.text_cues import read_answers, write_requests
from locus_lightning.data.source import CueKey
from locus_lightning.errors import ConfigError, DataError
from locus_lightning.types import SceneObject
from tests.conftest import contents


@pytest.fixture
def photos(tmp_path):
    """Ten photos of noise, each with two tiny objects and one small one, a crowd, and an object without area."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(10):
        Image.fromarray(rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "width": 320, "height": 240})
        for k, box in enumerate([(10, 10, 20, 18), (200, 120, 22, 20), (100, 60, 50, 40), (5, 5, 0, 9)]):
            annotations.append({"id": 10 * i + k, "image_id": i, "bbox": list(box), "category_id": 1 + k % 2, "iscrowd": 0})
        annotations.append(
            {"id": 10 * i + 9, "image_id": i, "bbox": [0, 0, 300, 200], "category_id": 1, "iscrowd": 1, "segmentation": {"counts": [1]}}
        )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "key"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return BuildSettings(str(tmp_path / "instances.json"), str(folder), val_fraction=0.2)


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): corpus.digest(p) for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "manifest.json"}


def test_counts_and_what_is_left_out(photos, tmp_path):
    manifest = build(photos, tmp_path / "c")
    # eight photos of 2 tiny + 1 small; 70:30 with 8 small leaves 26 * 0.3 = 8 and 26 * 0.7 = 18, of 16 tiny: bound 22
    assert manifest["counts"]["train"]["bins"] == {"small": 7, "tiny": 15}
    assert manifest["counts"]["train"]["cues"] == 22
    assert manifest["left_out"]["bad boxes"] == manifest["left_out"]["crowds"] == 10
    cues = sum(counts["cues"] for counts in manifest["counts"].values())
    assert cues + sum(manifest["left_out"].values()) == 10 * 5, "every annotation is a cue or is counted as left out"
    assert manifest["found"]["val"] == {"tiny": 4, "small": 2}
    train, val = (CorpusCues(str(tmp_path / "c")).dataset(split, 0) for split in ("train", "val"))
    assert {e.image_id for e in train.entries}.isdisjoint({e.image_id for e in val.entries})
    sample = train[CueKey(0, 0)]
    x1, y1, x2, y2 = sample.box
    assert sample.cue.window.box == (x1, y1, x2, y2)
    assert sample.cue.window.label in ("cup", "key")
    assert sample.image.size == (320, 240)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [False, True])
def test_the_same_for_any_number_of_workers_and_interruptions(photos, tmp_path, monkeypatch, shards):
    settings = BuildSettings(**{**vars(photos), "shards": shards})
    monkeypatch.setattr(building, "_IMAGES_A_PART", 3)
    monkeypatch.setattr(building, "_IMAGES_A_SHARD", 3)
    build(settings, tmp_path / "one")
    monkeypatch.setattr(building, "_PARTS_WORTH_PROCESSES", 1)
    real, calls = building.windows_of, []

    def breaks(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(building, "windows_of", breaks)
    with pytest.raises(DataError, match="goes on where it was"):
        build(settings, tmp_path / "two")
    with pytest.raises(DataError, match="not finished"):
        CorpusCues(str(tmp_path / "two")).check()
    monkeypatch.setattr(building, "windows_of", real)
    build(settings, tmp_path / "two", workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    again = build(settings, tmp_path / "two")
    assert again["counts"] == read_manifest(tmp_path / "two", deep=True)["counts"]


def test_shards_need_no_folder(photos, tmp_path):
    settings = BuildSettings(**{**vars(photos), "shards": True})
    plain, whole = tmp_path / "plain", tmp_path / "whole"
    build(photos, plain)
    build(settings, whole)
    from_folder = CorpusCues(str(plain)).dataset("train", 0)
    pixels = [np.asarray(from_folder[CueKey(0, i)].image) for i in range(5)]
    Path(photos.images).rename(tmp_path / "gone")
    from_shards = CorpusCues(str(whole)).dataset("train", 0)
    for i, expected in enumerate(pixels):
        np.testing.assert_array_equal(np.asarray(from_shards[CueKey(0, i)].image), expected)
    with pytest.raises(DataError, match=r"picture folder .* does not exist"):
        CorpusCues(str(plain)).check()
    CorpusCues(str(plain), images=str(tmp_path / "gone")).check()


def test_pictures_that_do_not_open_are_counted_and_named(photos, tmp_path, capsys):
    (Path(photos.images) / "3.jpg").write_bytes(b"not a picture")
    (Path(photos.images) / "4.jpg").unlink()
    manifest = build(BuildSettings(**{**vars(photos), "verify": True, "per_image": 3}), tmp_path / "c")
    assert manifest["left_out"]["cues of pictures that cannot be used"] == 3
    assert manifest["left_out"]["objects of missing images"] == 3
    assert manifest["missing_images"] == [str(Path(photos.images) / "4.jpg")]
    assert "3.jpg" in capsys.readouterr().out
    assert 3 not in {e.image_id for s in ("train", "val") for e in CorpusCues(str(tmp_path / "c")).dataset(s, 0).entries}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: (c / "index" / "train.parquet").write_bytes((c / "index" / "train.parquet").read_bytes()[:-9]), "half-written"),
        (lambda c: (c / "index" / "val.parquet").unlink(), "is missing"),
        (lambda c: next((c / "shards").iterdir()).write_bytes(b""), "half-written"),
        (lambda c: (c / "manifest.json").write_text("{"), "not a corpus manifest"),
        (lambda c: (c / "manifest.json").unlink(), "holds no manifest"),
        (lambda c: (c / "index" / "val.parquet").write_bytes(bytes(len((c / "index" / "val.parquet").read_bytes()))), "was changed"),
    ],
)
def test_a_corpus_that_does_not_match_its_manifest_is_refused(photos, tmp_path, damage, message):
    build(BuildSettings(**{**vars(photos), "shards": True}), tmp_path / "c")
    damage(tmp_path / "c")
    with pytest.raises(DataError, match=message):
        CorpusCues(str(tmp_path / "c")).check()


def test_another_build_does_not_overwrite(photos, tmp_path):
    build(photos, tmp_path / "c")
    with pytest.raises(ConfigError, match="other settings"):
        build(BuildSettings(**{**vars(photos), "seed": 1}), tmp_path / "c")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="not empty"):
        build(photos, tmp_path / "d")


def test_a_full_disk_is_a_sentence_and_loses_nothing(photos, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(building, "write", full)
    with pytest.raises(DataError, match="No space left"):
        build(photos, tmp_path / "c")
    monkeypatch.undo()
    assert build(photos, tmp_path / "c")["counts"]["train"]["cues"] == 22


def test_the_sheet_shows_pictures_and_facts(photos, tmp_path):
    manifest = build(photos, tmp_path / "c")
    shown = write_sheet(manifest, CorpusCues(str(tmp_path / "c")).dataset("train", 0), tmp_path / "c" / "s.html", "train", 5, 0, side=160)
    page = (tmp_path / "c" / "s.html").read_text()
    assert shown == 5
    assert page.count("<figure>") == 5
    assert "model sees" in page
    assert "bad boxes" in page


def test_words_for_cues_make_the_round_trip(photos, tmp_path):
    build(photos, tmp_path / "c")
    source = CorpusCues(str(tmp_path / "c"))
    sets = [source.dataset("train", 0), source.dataset("val", 0)]
    assert write_requests(sets, tmp_path / "r.jsonl", "some-model", limit=4) == 8
    requests = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    ids = [request["custom_id"] for request in requests]
    assert [part["type"] for part in requests[0]["body"]["messages"][0]["content"]] == ["image_url", "image_url", "text"]

    def answered(key, text):
        return json.dumps({"custom_id": key, "response": {"body": {"choices": [{"message": {"content": text}}]}}})

    lines = [
        answered(ids[0], '"the grey cup left of the key."'),
        json.dumps({"id": ids[1], "text": "<think>hm</think> a key"}),
        answered(ids[2], "word " * 25),
        answered(ids[3], "the thing at 12, 34"),
        answered("4711-1", "a cup"),
        "{not json",
        json.dumps({"custom_id": ids[4], "response": None, "error": "timeout"}),
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    read = read_answers(sets, tmp_path / "a.jsonl", tmp_path / "words.jsonl")
    assert read.kept == 2
    assert sum(read.refused.values()) == 5
    words = CorpusCues(str(tmp_path / "c"), expressions=str(tmp_path / "words.jsonl")).dataset("train", 0)
    assert sorted(words[CueKey(0, i)].cue.text for i in range(len(words))) == ["a key", "the grey cup left of the key"]


def test_text_cues_take_labels_that_single_an_object_out():
    objects = [SceneObject((10, 10, 40, 40), "cup", 1), SceneObject((60, 10, 90, 40), "cup", 2), SceneObject((10, 60, 40, 90), "key", 3)]
    sampler = TextCues(mix={"medium": 1.0, "large": 1.0, "small": 1.0})
    (window,) = sampler.sample((200, 100), objects, np.random.default_rng(0))
    assert (window.label, window.object_id) == ("key", 3)
    cue = sampler.cue(Image.new("RGB", (200, 100)), window)
    assert cue.text == "key"


def test_words_take_the_place_of_crop_and_instruction(make_backbone, samples):
    from dataclasses import replace

    backbone = make_backbone("qwen2_5_vl")
    spoken = replace(samples[0], cue=replace(samples[0].cue, text="the left mug"))
    crop, words = backbone.encode(contents(backbone, [samples[0], spoken]))
    assert "the left mug" in words.text
    assert words.text.count("<|image_pad|>") < crop.text.count("<|image_pad|>") or words.vision["image_grid_thw"].shape[0] == 1
    assert crop.vision["image_grid_thw"].shape[0] == 2
