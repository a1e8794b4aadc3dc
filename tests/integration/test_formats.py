"""A corpus from boxes in other formats."""

from __future__ import annotations

import json

import pytest
from PIL import Image


@pytest.mark.parametrize("kind", ["yolo", "voc", "label-studio"])
def test_a_corpus_is_built_from_each(locus, tmp_path, kind):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    tasks = []
    for i in range(10):
        Image.new("RGB", (200, 100), (i * 20, 0, 0)).save(images / f"{i}.png")
        if kind == "yolo":
            (labels / f"{i}.txt").write_text("0 0.5 0.5 0.15 0.2\n")
        elif kind == "voc":
            box = "<bndbox><xmin>86</xmin><ymin>41</ymin><xmax>115</xmax><ymax>60</ymax></bndbox>"
            (labels / f"{i}.xml").write_text(f"<annotation><filename>{i}.png</filename><object><name>cat</name>{box}</object></annotation>")
        tasks.append(
            {
                "data": {"image": f"/data/upload/{i}.png"},
                "annotations": [{"result": [{"value": {"x": 42.5, "y": 40, "width": 15, "height": 20}}]}],
            }
        )
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    annotations = tmp_path / "tasks.json" if kind == "label-studio" else labels
    status, out, err = locus("data", "build", "--annotations", annotations, "--images", images, "--out", "corpus", "--mix", "small=1",
                             "--val-fraction", "0.2", "--workers", "1")  # fmt: skip
    assert status == 0, err
    manifest = json.loads((tmp_path / "corpus" / "manifest.json").read_text())
    assert sum(counts["cues"] for counts in manifest["counts"].values()) == 10
    assert "train on it" in out
