"""Boxes in other formats, each written as its tool writes it, with boxes counted by hand."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from locus_lightning.data.formats import coco_file, format_of
from locus_lightning.errors import DataError


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "train").mkdir(parents=True)
    Image.new("RGB", (200, 100)).save(folder / "train" / "a.jpg")
    Image.new("RGB", (50, 80)).save(folder / "train" / "b.png")
    return folder


def read(path):
    content = json.loads(path.read_text())
    names = {one["id"]: one["name"] for one in content["categories"]}
    files = {one["id"]: one["file_name"] for one in content["images"]}
    return [(files[one["image_id"]], names[one["category_id"]], one["bbox"]) for one in content["annotations"]], content


def test_yolo(tmp_path, images):
    labels = tmp_path / "labels" / "train"
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text("0 0.5 0.5 0.1 0.4\n1 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.6\n")
    (labels / "b.txt").write_text("")
    (labels / "gone.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "data.yaml").write_text("names: {0: cat, 1: dog}\n")
    assert format_of(tmp_path / "labels") == "yolo"
    boxes, content = read(coco_file(tmp_path / "labels", images, "auto", tmp_path / "out.json"))
    assert boxes == [("train/a.jpg", "cat", [90.0, 30.0, 20.0, 40.0]), ("train/a.jpg", "dog", [20.0, 20.0, 40.0, 40.0])]
    assert [(one["file_name"], one["width"], one["height"]) for one in content["images"]] == [
        ("train/a.jpg", 200, 100),
        ("train/b.png", 50, 80),
    ]
    (labels / "a.txt").write_text("0 0.5 0.5 0.1\n")
    with pytest.raises(DataError, match=r"a\.txt, line 1: .* is not `class cx cy w h`"):
        coco_file(tmp_path / "labels", images, "yolo", tmp_path / "out.json")


def test_a_yolo_folder_of_roboflow_with_names_in_a_list(tmp_path, images):
    labels = tmp_path / "train" / "labels"
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text("1 0.5 0.5 1 1\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\nnc: 2\n")
    boxes, _ = read(coco_file(labels, images / "train", "auto", tmp_path / "out.json"))
    assert boxes == [("a.jpg", "dog", [0.0, 0.0, 200.0, 100.0])]


def test_a_turned_photo_has_the_size_that_a_viewer_shows(tmp_path, images):
    image = Image.new("RGB", (200, 100))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(images / "t.jpg", exif=exif)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "t.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    boxes, content = read(coco_file(tmp_path / "labels", images, "auto", tmp_path / "out.json"))
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (100, 200)
    assert boxes == [("t.jpg", "class 0", [25.0, 50.0, 50.0, 100.0])]


def test_pascal_voc(tmp_path, images):
    folder = tmp_path / "Annotations"
    folder.mkdir()
    (folder / "a.xml").write_text(
        "<annotation><folder>x</folder><filename>a.jpg</filename><size><width>200</width><height>100</height><depth>3</depth></size>"
        "<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>11</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>"
        "<object><name>dog</name><bndbox><xmin>101</xmin><ymin>1</ymin><xmax>200</xmax><ymax>100</ymax></bndbox></object></annotation>"
    )
    (folder / "c.xml").write_text("<annotation><filename>c.jpg</filename></annotation>")
    boxes, content = read(coco_file(folder, images / "train", "auto", tmp_path / "out.json"))
    assert boxes == [("a.jpg", "cat", [0.0, 10.0, 20.0, 20.0]), ("a.jpg", "dog", [100.0, 0.0, 100.0, 100.0])]
    assert len(content["images"]) == 1
    (folder / "c.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"c\.xml is not a Pascal VOC file"):
        coco_file(folder, images / "train", "voc", tmp_path / "out.json")


def test_label_studio(tmp_path, images):
    rectangle = {"x": 10, "y": 20, "width": 5, "height": 50, "rotation": 0, "rectanglelabels": ["cat"]}
    result = [{"value": rectangle, "type": "rectanglelabels", "original_width": 200, "original_height": 100},
              {"value": {**rectangle, "rotation": 30}, "type": "rectanglelabels"}, {"value": {"choices": ["good"]}, "type": "choices"}]  # fmt: skip
    tasks = [
        {
            "id": 1,
            "data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"},
            "annotations": [{"was_cancelled": True, "result": []}, {"result": result}],
        },
        {"id": 2, "data": {"image": "/data/local-files/?d=train/b.png"}, "annotations": [{"result": []}]},
        {"id": 3, "image": "s3://bucket/some/where/a.jpg", "label": [{**rectangle, "x": 0, "y": 0}]},
        {"id": 4, "data": {"image": "/data/upload/1/x.jpg"}, "annotations": []},
    ]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks))
    assert format_of(path) == "label-studio"
    boxes, content = read(coco_file(path, images / "train", "auto", tmp_path / "out.json"))
    assert boxes == [("a.jpg", "cat", [20.0, 20.0, 10.0, 50.0]), ("a.jpg", "cat", [0.0, 0.0, 10.0, 50.0])]
    assert [one["file_name"] for one in content["images"]] == ["a.jpg", "b.png"], "two tasks about one picture are one picture"


def test_cocos_own_file_is_taken_as_it_is_and_the_unknown_is_refused(tmp_path, images):
    path = tmp_path / "coco.json"
    path.write_text(' {"images": []}')
    assert coco_file(path, images, "auto", tmp_path / "out.json") == path
    for wrong, message in ((tmp_path / "gone", "does not exist"), (images, "neither .txt files")):
        with pytest.raises(DataError, match=message):
            format_of(wrong)
    path.write_text("[1, 2]")
    with pytest.raises(DataError, match="list of tasks"):
        coco_file(path, images, "auto", tmp_path / "out.json")
