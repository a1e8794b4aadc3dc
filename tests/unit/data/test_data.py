"""Photos and scenes: exact counts, splits by image, the same samples for any number of workers, nothing lost to a bad file."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from locus_lightning.boxes import iou
from locus_lightning.cue_samplers.objects import ObjectCues
from locus_lightning.cue_samplers.text_cue import TextCues
from locus_lightning.data.coco.annotations import read_coco
from locus_lightning.data.coco.coco import CocoCues
from locus_lightning.data.coco.excluded import excluded_images
from locus_lightning.data.datamodule import CueDataModule
from locus_lightning.data.order import Shuffled
from locus_lightning.data.sampler import PacedLoader, ResumableSampler
from locus_lightning.data.source import CueBatch, CueKey, Position
from locus_lightning.data.synthetic.scenes import SceneCues
from locus_lightning.errors import ConfigError, DataError
from locus_lightning.types import SceneObject
from tests.conftest import make_sample

ANY = ObjectCues({"tiny": 1.0, "small": 1.0, "medium": 1.0})


@pytest.fixture
def coco(tmp_path):
    """Twelve photos of noise with three objects each, a crowd, a near-duplicate; returns (annotation file, folder, content)."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(12):
        name = f"{i:04d}.jpg"
        Image.fromarray(rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)).save(folder / name)
        images.append({"id": i, "file_name": name, "width": 320, "height": 240})
        boxes = [(10, 10, 22, 20), (100, 50, 60, 50), (200, 100, 90, 80), (100.5, 50, 60, 50)]
        annotations += [{"id": 10 * i + k, "image_id": i, "bbox": list(b), "category_id": 1, "iscrowd": 0} for k, b in enumerate(boxes)]
        annotations.append({"id": 10 * i + 9, "image_id": i, "bbox": [0, 0, 320, 240], "category_id": 1, "iscrowd": 1})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path, folder, content


def rewrite(path, content):
    path.write_text(json.dumps(content))


def corners(bbox):
    x, y, w, h = bbox
    return [x, y, x + w, y + h]


def test_windows_counts_and_what_is_left_out(coco):
    path, folder, _ = coco
    source = CocoCues(str(path), str(folder), val_fraction=0.25, cue_sampler=ANY, per_image=2)
    train, val = source.dataset("train", 0), source.dataset("val", 0)
    left_out = source.summary()["left_out"]
    assert left_out["crowds"] == left_out["near-duplicate windows"] == left_out["windows over per_image"] == 12
    assert len(train) + len(val) + sum(left_out.values()) == 12 * 5, "every annotation is a cue or is counted as left out"
    source.dataset("train", 0)
    assert source.summary()["left_out"] == left_out, "a second look counts nothing twice"
    images = {split: {e.image_id for e in data.entries} for split, data in (("train", train), ("val", val))}
    assert not images["train"] & images["val"], "split by image"
    assert len(images["val"]) <= 3
    for data in (train, val):
        assert max(Counter(e.image_id for e in data.entries).values()) <= 2
        for i in range(len(data)):
            sample = data[CueKey(0, i)]
            assert sample.box == tuple(float(v) for v in sample.cue.window.box)
            assert sample.cue.window.label == "cat"
            assert iou(sample.cue.window.object_box, sample.box) > 0.6


def test_the_mix_is_kept_even_where_one_size_is_scarce(coco):
    path, folder, _ = coco
    source = CocoCues(str(path), str(folder), val_fraction=0.1, cue_sampler=ObjectCues({"tiny": 0.25, "small": 0.75}))
    bins = Counter(e.window.size_bin for e in source.dataset("train", 0).entries)
    assert bins["small"] == pytest.approx(3 * bins["tiny"], abs=2)


def test_same_seed_same_cues_and_other_seed_others(coco):
    path, folder, _ = coco
    entries = [CocoCues(str(path), str(folder), train_size=9, cue_sampler=ANY).dataset("train", seed).entries for seed in (1, 1, 2)]
    assert entries[0] == entries[1] != entries[2]


def shuffled(length, batch_size, rank=0, world_size=1):
    """A sampler of shuffled passes."""
    order, wide = Shuffled(), batch_size * world_size
    order.begin(range(length), 0, length // wide * wide, 0)
    return ResumableSampler(length, batch_size, order, rank, world_size)


@pytest.mark.parametrize("source", ["coco", "scenes"])
def test_samples_are_identical_for_any_number_of_workers(coco, source):
    path, folder, _ = coco
    made = CocoCues(str(path), str(folder), cue_sampler=ANY) if source == "coco" else SceneCues(train_size=24)
    data = made.dataset("train", 0)
    streams = []
    for workers in (0, 2):
        sampler = shuffled(len(data), 4)
        loader = DataLoader(data, batch_sampler=sampler, collate_fn=list, num_workers=workers)
        streams.append([(s.id, s.box, s.image.tobytes(), s.cue.image.tobytes()) for batch in loader for s in batch])
    assert streams[0] == streams[1]


def test_corrupt_images_are_replaced_counted_and_listed(coco):
    path, folder, _ = coco
    (folder / "0003.jpg").write_bytes(b"not an image")
    truncated = (folder / "0004.jpg").read_bytes()
    (folder / "0004.jpg").write_bytes(truncated[: len(truncated) // 3])
    Image.new("RGB", (50, 50)).save(folder / "0005.jpg")  # not the size its annotation says
    (folder / "0006.jpg").unlink()
    source = CocoCues(str(path), str(folder), cue_sampler=ANY)
    module = CueDataModule(source, batch_size=4)
    module.setup("fit")
    for batch in module._loader("train", shuffled(len(module.datasets["train"]), 4)):
        module.on_before_batch_transfer(batch, 0)
    assert [Path(p).name for p in source.missing] == ["0006.jpg"]
    named = {Path(p).name for p in module.quarantine}
    assert named <= {"0003.jpg", "0004.jpg", "0005.jpg"}
    assert named, "images of the training split were quarantined"
    assert any("320x240" in reason for reason in module.quarantine.values()) or "0005.jpg" not in named


def test_nothing_to_open_is_an_error(coco):
    path, folder, _ = coco
    for file in folder.iterdir():
        file.write_bytes(b"x")
    with pytest.raises(DataError, match="11 pictures in a row cannot be used, such as"):
        CocoCues(str(path), str(folder), cue_sampler=ANY).dataset("train", 0)[CueKey(0, 0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "COCO's detection format"),
        (lambda c: c["annotations"][3].update(bbox="wide"), "COCO's detection format"),
        (lambda c: c["images"][3].update(id=2), r"image id 2 stands for .*0002.jpg .* and for .*0003.jpg"),
        (lambda c: c["images"].append({**c["images"][3], "width": 300}), r"0003.jpg \(320x240 px\) and for .*0003.jpg \(300x240 px\)"),
        (lambda c: c["images"][3].pop("file_name"), "image 3 has neither file_name nor coco_url"),
        (lambda c: c["images"][3].update(id=2**63), "does not fit into 64 bits"),
        (lambda c: [a.update(bbox=[v / 320 for v in a["bbox"]]) for a in c["annotations"]], "shares of the image"),
        (lambda c: [a.update(bbox=corners(a["bbox"])) for a in c["annotations"]], r"12 of 48 boxes .* as x1, y1, x2, y2"),
    ],
)
def test_a_malformed_file_is_named_before_anything_is_loaded(coco, change, message):
    path, folder, content = coco
    change(content)
    rewrite(path, content)
    with pytest.raises(DataError, match=message) as error:
        CocoCues(str(path), str(folder)).check()
    assert str(path) in str(error.value)


def test_a_mix_that_wants_what_is_not_there_says_what_is(coco):
    path, folder, _ = coco
    source = CocoCues(str(path), str(folder), cue_sampler=ObjectCues({"tiny": 0.5, "large": 0.5}))
    with pytest.raises(DataError, match=r"found: \{'tiny': \d+"):
        source.dataset("train", 0)


@pytest.mark.parametrize(
    "box", [[300, 10, 40, 20], [30, 10, 0, 20], [], None, [1, 2, 3], [None, 1, 20, 20], [float("nan"), 1, 20, 20], "missing"]
)
def test_bad_boxes_are_counted_or_refuse_the_file(coco, box):
    path, folder, content = coco
    content["annotations"][7]["bbox"] = box
    if box == "missing":
        del content["annotations"][7]["bbox"]
    content["annotations"].append({"id": 999, "image_id": 4711, "bbox": [1, 1, 20, 20], "category_id": 1})
    rewrite(path, content)
    source = CocoCues(str(path), str(folder), cue_sampler=ANY)
    source.check()
    assert source.left_out["bad boxes"] == 1
    assert source.left_out["annotations without an image"] == 1
    with pytest.raises(DataError, match=r"annotation 12 has bbox .* in an image of 320x240 px"):
        CocoCues(str(path), str(folder), bad_boxes="refuse").check()


def read(path, folder):
    """What a file holds: by file name, the id and size of the image and its boxes with labels; and the annotation ids."""
    left_out = Counter()
    images = read_coco(path, folder, "skip", left_out)
    return (
        {Path(i.path).name: (i.id, i.size, [(o.box, o.label) for o in i.objects]) for i in images},
        [o.id for i in images for o in i.objects],
        left_out,
    )


def everywhere(content, part, **change):
    for row in content[part]:
        row.update(change)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: [a.update(iscrowd=bool(a["iscrowd"])) for a in c["annotations"]],
        lambda c: [a.update(iscrowd=a["iscrowd"] or None) for a in c["annotations"]],
        lambda c: [a.update(category_id="1") for a in c["annotations"]],
        lambda c: [a.update(image_id=str(a["image_id"])) for a in c["annotations"]],
        lambda c: [a.update(image_id=float(a["image_id"])) for a in c["annotations"]],
        lambda c: [i.update(width=320.0, height="240") for i in c["images"]],
        lambda c: everywhere(c, "images", width=None, height=None),
        lambda c: everywhere(c, "images", width=0, height=0),
        lambda c: [i.update(coco_url="http://somewhere/train/" + i.pop("file_name")) for i in c["images"]],
        lambda c: [i.update(file_name="./" + i["file_name"]) for i in c["images"]],
        lambda c: [i.update(file_name="none//../" + i["file_name"]) for i in c["images"]],
        lambda c: [i.update(file_name=".\\" + i["file_name"]) for i in c["images"]],
        lambda c: [i.update(file_name="%30" + i["file_name"][1:]) for i in c["images"]],
    ],
)
def test_other_spellings_of_the_same_file_are_read_alike(coco, change):
    path, folder, content = coco
    expected = read(path, folder)
    change(content)
    rewrite(path, content)
    assert read(path, folder) == expected
    assert len(expected[0]) == 12


def test_a_byte_order_mark_and_gzip_are_read(coco):
    path, folder, content = coco
    expected = read(path, folder)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    assert read(path, folder) == expected
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read(path, folder) == expected
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="is not JSON"):
        read(path, folder)


@pytest.mark.parametrize("change", [{"id": 0}, {"id": None}, {"id": "x"}, {"id": 2**70}])
def test_annotation_ids_that_are_no_keys_become_running_numbers(coco, change):
    path, folder, content = coco
    images, _, _ = read(path, folder)
    everywhere(content, "annotations", **change)
    rewrite(path, content)
    found, ids, _ = read(path, folder)
    assert found == images
    assert len(set(ids)) == len(ids) == 48


def test_negative_and_worded_image_ids(coco):
    path, folder, content = coco
    for row in content["images"]:
        row["id"] = -1 - row["id"] if row["id"] < 6 else f"photo {row['id']}"
    for row in content["annotations"]:
        row["image_id"] = -1 - row["image_id"] if row["image_id"] < 6 else f"photo {row['image_id']}"
    rewrite(path, content)
    source = CocoCues(str(path), str(folder), cue_sampler=ANY)
    train, val = source.dataset("train", 0), source.dataset("val", 0)
    assert len({e.path for e in (*train.entries, *val.entries)}) == 12
    assert len({e.id for e in train.entries}) == len(train.entries)


@pytest.mark.parametrize("id_of", [lambda i: i, lambda i: i + 100], ids=["same id", "another id"])
def test_images_listed_twice_are_in_one_split(coco, id_of):
    path, folder, content = coco
    content["images"] += [{**row, "id": id_of(row["id"]), "file_name": "./" + row["file_name"]} for row in content["images"]]
    content["annotations"] += [{**row, "id": row["id"] + 1000, "image_id": id_of(row["image_id"])} for row in content["annotations"]]
    rewrite(path, content)
    source = CocoCues(str(path), str(folder), val_fraction=0.25, cue_sampler=ANY)
    paths = {split: {e.path for e in source.dataset(split, 0).entries} for split in ("train", "val")}
    assert not paths["train"] & paths["val"]
    assert [len(paths[split]) for split in ("train", "val")] == [9, 3]
    assert source.left_out["images listed twice"] == 12


def test_pictures_of_the_validation_file_are_not_trained_on(coco):
    path, folder, content = coco
    other = path.with_name("val.json")
    rewrite(other, {**content, "images": [{**i, "id": i["id"] + 50} for i in content["images"][:3]],
                    "annotations": [{**a, "image_id": a["image_id"] + 50} for a in content["annotations"] if a["image_id"] < 3]})  # fmt: skip
    source = CocoCues(str(path), str(folder), str(other), cue_sampler=ANY)
    paths = {split: {e.path for e in source.dataset(split, 0).entries} for split in ("train", "val")}
    assert not paths["train"] & paths["val"]
    assert [len(paths[split]) for split in ("train", "val")] == [9, 3]
    assert source.left_out["objects of training images that are also in validation"] == 3 * 4
    with pytest.raises(DataError, match=r"every image of .*instances.json is also in"):
        CocoCues(str(path), str(folder), str(path)).check()


def test_a_split_without_cues_says_what_was_left_out(coco):
    path, folder, content = coco
    content["annotations"][7]["bbox"] = None
    rewrite(path, content)
    with pytest.raises(DataError, match="left out: 1 bad boxes, 12 crowds"):
        CocoCues(str(path), str(folder), cue_sampler=ObjectCues({"tiny": 0.5, "large": 0.5})).dataset("train", 0)


def test_missing_files_and_broken_json_are_sentences(coco, tmp_path):
    path, folder, _ = coco
    with pytest.raises(DataError, match="does not exist"):
        CocoCues(str(tmp_path / "no.json"), str(folder)).check()
    with pytest.raises(DataError, match="image folder"):
        CocoCues(str(path), str(tmp_path / "no")).check()
    with pytest.raises(DataError, match="none of the 12 images"):
        CocoCues(str(path), str(tmp_path)).check()
    path.write_text('{"images": [')
    with pytest.raises(DataError, match="is not JSON"):
        CocoCues(str(path), str(folder)).check()
    with pytest.raises(ConfigError, match="val_fraction"):
        CocoCues(str(path), str(folder), val_fraction=2.0)


def test_excluded_images_are_left_out(coco, tmp_path):
    path, folder, _ = coco
    (tmp_path / "exclude.txt").write_text("0\n1\n2\n")
    source = CocoCues(str(path), str(folder), exclude=str(tmp_path / "exclude.txt"), cue_sampler=ANY)
    ids = {e.image_id for split in ("train", "val") for e in source.dataset(split, 0).entries}
    assert ids <= set(range(3, 12))
    assert source.left_out["objects of excluded images"] == 3 * 4


def parquet(path, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)


_REFS = [
    {"ref_id": 7, "image_id": 1, "split": "testA"},
    {"ref_id": 8, "image_id": 2, "split": "val"},
    {"ref_id": 9, "image_id": 5, "split": "train"},
]
_NAMED = [{"file_name": f"COCO_train2014_{i:012d}_{k}.jpg", "answer": "a cat"} for i, k in ((1, 0), (2, 1))]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("ids.txt", lambda p: p.write_text("1\n2\n")),
        ("refs(unc).p", lambda p: p.write_bytes(pickle.dumps(_REFS, protocol=2))),
        ("refs.json", lambda p: p.write_text(json.dumps(_REFS))),
        ("refs.jsonl", lambda p: p.write_text("".join(json.dumps(row) + "\n" for row in _REFS))),
        ("testA.parquet", lambda p: parquet(p, _NAMED)),
    ],
)
def test_images_are_excluded_by_refcocos_own_files(tmp_path, name, write):
    write(tmp_path / name)
    assert excluded_images(tmp_path / name) == {1, 2}
    assert excluded_images(tmp_path) == {1, 2}, "a folder of them does as well"


def test_an_exclude_file_runs_no_code_and_is_never_silently_empty(tmp_path, coco):
    path, folder, _ = coco
    (tmp_path / "refs(x).p").write_bytes(pickle.dumps([{"image_id": Path("1")}]))
    (tmp_path / "empty.txt").write_text("")
    for name, message in (("refs(x).p", "it holds pathlib"), ("empty.txt", "gives no image id"), ("nowhere.txt", "cannot be read")):
        with pytest.raises(DataError, match=message):
            CocoCues(str(path), str(folder), exclude=str(tmp_path / name)).check()


def test_a_growing_share_of_bad_pictures_is_said(coco, caplog):
    path, folder, _ = coco
    data = CueDataModule(CocoCues(str(path), str(folder), cue_sampler=ANY))
    good, bad = make_sample(), replace(make_sample(), quarantined=(("a.jpg", "broken"),))
    data.on_before_batch_transfer(CueBatch([good] * 40), 0)
    assert "samples could not use their picture" not in caplog.text
    data.on_before_batch_transfer(CueBatch([bad] * 10), 0)
    assert "20 % of the last 50 samples could not use their picture" in caplog.text


def test_a_mistake_that_a_worker_meets_is_its_own_sentence(coco):
    path, folder, _ = coco
    data = CueDataModule(CocoCues(str(path), str(folder), cue_sampler=ANY, val_fraction=0.5), num_workers=1)
    data.setup("validate")
    for file in folder.iterdir():
        file.write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        list(data.val_dataloader())
    assert str(caught.value).startswith("6 pictures in a row cannot be used")
    assert "Traceback" not in str(caught.value)


def test_words_belong_to_an_object_of_one_image(tmp_path):
    (tmp_path / "words.jsonl").write_text('{"id": "1-7", "text": "the left cat"}\n{"id": "2-7", "text": "the right dog"}\n')
    sampler = TextCues(dict.fromkeys(("tiny", "small", "medium", "large"), 1.0), expressions=str(tmp_path / "words.jsonl"))
    for image_id, words in ((1, "the left cat"), (2, "the right dog")):
        (window,) = sampler.sample((200, 200), [SceneObject((10, 10, 60, 60), "x", 7, image_id)], np.random.default_rng(0))
        assert window.label == words


def test_a_cue_that_stands_twice_or_shows_nothing_can_be_left_out(coco):
    from locus_lightning.data.coco.filters import second_match, texture

    rng = np.random.default_rng(0)
    patch = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).resize((80, 60))
    image = Image.new("RGB", (320, 240), (90, 90, 90))
    image.paste(patch, (20, 20))
    once = second_match(image, (20, 20, 100, 80))
    image.paste(patch, (200, 150))
    assert second_match(image, (20, 20, 100, 80)) > 0.95 > once
    assert texture(image, (110, 30, 150, 60)) == 0.0
    assert texture(image, (20, 20, 100, 80)) > 20
    path, folder, _ = coco
    with pytest.raises(DataError, match="no cue passes min_texture 300"):
        CocoCues(str(path), str(folder), cue_sampler=ANY, min_texture=300.0).dataset("train", 0)[CueKey(0, 0)]
    assert CocoCues(str(path), str(folder), cue_sampler=ANY, min_texture=5.0, max_match=0.9).dataset("train", 0)[CueKey(0, 0)]


# ---- scenes ------------------------------------------------------------------------------------------------------------


def test_scenes_depend_on_seed_split_epoch_and_index_alone():
    source = SceneCues(train_size=8)

    def picture(split, seed, epoch, item):
        return source.dataset(split, seed)[CueKey(epoch, item)].image.tobytes()

    same = picture("train", 0, 0, 3)
    assert same == picture("train", 0, 0, 3)
    assert len({same, picture("val", 0, 0, 3), picture("train", 1, 0, 3), picture("train", 0, 1, 3), picture("train", 0, 0, 4)}) == 5


def test_objects_touch_their_boxes_and_distractors_are_controllable():
    source = SceneCues(image_size=128, objects=(5, 5), object_size=(0.15, 0.3), background="plain", clutter=0)
    scene = source.draw(np.random.default_rng(1))
    assert len(scene.objects) == 5
    ground = np.array([122, 122, 122])
    pixels = np.asarray(scene.image).astype(int)
    painted = np.abs(pixels - ground).sum(-1) > 8
    rows, columns = np.nonzero(painted)
    boxes = np.array(scene.boxes)
    assert rows.min() == boxes[:, 1].min()
    assert columns.min() == boxes[:, 0].min()
    assert rows.max() == boxes[:, 3].max() - 1
    assert columns.max() == boxes[:, 2].max() - 1


def test_colours_and_shapes_can_be_chosen():
    source = SceneCues(objects=(4, 6), colours=["red", "cyan"], shapes=["ring"])
    looks = [look for seed in range(5) for look in source.draw(np.random.default_rng(seed)).looks]
    assert {(look.colour, look.shape) for look in looks} == {("red", "ring"), ("cyan", "ring")}
    for wrong in ({"colours": ["redd"]}, {"shapes": []}):
        with pytest.raises(ConfigError, match="choose from"):
            SceneCues(**wrong)


def test_a_scene_that_holds_no_wanted_cue_says_so():
    source = SceneCues(image_size=64, object_size=(0.5, 0.6), cue_sampler=ObjectCues({"tiny": 1.0}, min_side=4))
    with pytest.raises(ConfigError, match="widen object_size"):
        source.dataset("train", 0)[CueKey(0, 0)]


# ---- order and position ------------------------------------------------------------------------------------------------


def test_ranks_take_disjoint_halves_of_every_batch():
    whole = list(shuffled(20, 4))
    halves = [list(shuffled(20, 2, rank=r, world_size=2)) for r in (0, 1)]
    for b, batch in enumerate(whole):
        assert sorted(batch) == sorted(halves[0][b] + halves[1][b])


def test_epochs_differ_and_every_sample_comes_once():
    sampler = shuffled(10, 2)
    first = [key for batch in sampler for key in batch]
    sampler.set_epoch(1)
    second = [key for batch in sampler for key in batch]
    assert sorted(k.item for k in first) == list(range(10)) == sorted(k.item for k in second)
    assert [k.item for k in first] != [k.item for k in second]


class Prompts:
    """Stands for a loader of prompt batches that follows its sampler."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        return (CueBatch((key.epoch, key.item) for key in keys) for keys in self.sampler)


def paced(start):
    sampler = shuffled(8, 2)
    return PacedLoader(Prompts(sampler), sampler, steps=3, start=start)


def micro_steps(loader):
    return [(batch.position, list(batch)) for batch in loader]


@pytest.mark.parametrize("taken", range(12))
def test_a_paced_loader_goes_on_where_steps_stood(taken):
    loader = paced(Position(0, 0))
    first, second = micro_steps(loader), micro_steps(loader)
    assert [bool(prompts) for _, prompts in first] == [True, False, False] * 4
    assert [position.epoch for position, _ in first + second] == [0] * 12 + [1] * 12
    assert [prompts for _, prompts in first] != [prompts for _, prompts in second], "another order in the second pass"
    resumed = paced(Position(0, taken))
    assert micro_steps(resumed) == first[taken:]
    assert micro_steps(resumed) == second


def test_lightning_cannot_move_a_paced_loader_to_another_epoch():
    from lightning.fabric.utilities.data import _set_sampler_epoch

    loader = paced(Position(0, 3))
    expected = micro_steps(paced(Position(0, 3)))
    _set_sampler_epoch(loader, 7)
    assert micro_steps(loader) == expected


REAL = Path(os.environ.get("LOCUS_COCO", Path(__file__).resolve().parents[4] / "shared" / "coco_mini"))


@pytest.mark.skipif(not REAL.is_dir(), reason="no folder of real photos in COCO layout (set LOCUS_COCO)")
def test_real_photos():
    source = CocoCues(
        str(REAL / "annotations" / "instances_train2017.json"),
        str(REAL / "train2017"),
        str(REAL / "annotations" / "instances_val2017.json"),
        str(REAL / "val2017"),
    )
    train = source.dataset("train", 0)
    bins = Counter(e.window.size_bin for e in train.entries)
    assert bins["tiny"] / len(train) == pytest.approx(0.7, abs=0.01)
    for i in range(0, len(train), 20):
        sample = train[CueKey(0, i)]
        assert not sample.quarantined
        assert sample.cue.image.width >= 12


def test_scenes_hold_to_the_mix_and_pass_over_sizes_they_do_not_have():
    mix = {"tiny": 0.7, "small": 0.3}
    for sampler in (ObjectCues(mix, min_side=12), TextCues(mix, min_side=12)):
        cues = SceneCues(image_size=192, objects=(4, 6), object_size=(0.065, 0.22), cue_sampler=sampler).dataset("train", 0)
        bins = Counter(cues[CueKey(0, i)].cue.window.size_bin for i in range(300))
        assert bins["tiny"] / 300 == pytest.approx(0.7, abs=0.08)  # three standard deviations
    large = SceneCues(image_size=96, objects=(1, 1), object_size=(0.5, 0.6), cue_sampler=ObjectCues({"tiny": 1, "large": 1}))
    assert {large.dataset("val", 0)[CueKey(0, i)].cue.window.size_bin for i in range(4)} == {"large"}


def test_a_rare_miss_of_all_size_bins_ends_no_run():
    """Among thousands of samples some scenes have no object of a wanted size twenty times in a row."""
    rare = SceneCues(
        image_size=96, objects=(1, 1), object_size=(0.06, 0.3), cue_sampler=ObjectCues({"tiny": 0.7, "small": 0.3}, min_side=18)
    )
    for seed in range(20):
        assert rare.cue("x", np.random.default_rng(seed)).cue.window.size_bin == "small"
