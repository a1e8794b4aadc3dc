"""Models and corpora pushed to a stand-in for the Hub."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.integration.hub_stand_in import HubStandIn
from tests.integration.test_export import trained  # noqa: F401 - a fixture


@pytest.fixture
def hub():
    one = HubStandIn()
    yield one
    one.close()


@pytest.fixture
def locus_online(tmp_path, hub):
    """``locus`` in a process of its own whose Hub is the stand-in."""

    def run(*arguments, token="hf_test"):
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf"),
                       "OMP_NUM_THREADS": "1", "HF_TOKEN": token}  # fmt: skip
        return subprocess.run(
            [sys.executable, "-m", "locus_lightning", *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.mark.slow
def test_a_model_is_pushed_once_it_has_passed_its_comparison(locus_online, hub, trained, tmp_path):  # noqa: F811
    run = trained("lora_onevision.yaml", "llava_onevision")
    hub.refuse_commits = 1
    done = locus_online("export", run, "model", "--dtype", "float32", "--push", "ada/model", "--private")
    assert done.returncode == 2, done.stderr
    assert "the disk of the Hub is full" in done.stderr
    assert "give the same command again" in done.stderr
    sent = list(hub.uploads)
    done = locus_online("export", run, "model", "--dtype", "float32", "--push", "ada/model", "--private")
    assert done.returncode == 0, done.stderr
    assert "loaded again" not in done.stdout, "what was exported and compared is not made again"
    assert hub.uploads == sent, "files that the Hub had were sent again"
    assert hub.repos == {"ada/model": True}
    pushed = {path: content for (name, path), content in hub.files.items()}
    assert pushed.keys() == {str(path.relative_to(tmp_path / "model")) for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert pushed["model.safetensors"] == (tmp_path / "model/model.safetensors").read_bytes()
    card = pushed["README.md"].decode()
    assert "## Held-out figures" in card
    assert "](answers-step-" in card
    assert any(path.startswith("answers-step-") for path in pushed)


@pytest.mark.slow
def test_a_model_that_fails_its_comparison_is_not_pushed(locus_online, hub, trained, tmp_path):  # noqa: F811
    run = trained("lora_onevision.yaml", "llava_onevision")
    assert locus_online("export", run, "model", "--dtype", "float32").returncode == 0
    record = tmp_path / "model/export.json"
    assert json.loads(record.read_text())["dtype"] == "float32"
    record.unlink()  # as an export leaves its folder that did not pass
    done = locus_online("export", run, "model", "--dtype", "float32", "--push", "ada/model")
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert not hub.files


@pytest.mark.parametrize(("more", "words"), [(["--push", "model"], "it is OWNER/NAME"), (["--private"], "--private belongs to --push")])
def test_a_push_that_cannot_be_is_refused_first(locus, more, words):
    status, _, err = locus("export", "run", "folder", *more)
    assert status == 2
    assert words in err


@pytest.mark.slow
def test_a_wrong_token_is_said(locus_online, hub, coco_folder):
    built = locus_online("data", "build", "--annotations", coco_folder / "instances.json", "--images", coco_folder / "images", "--out", "corpus",
                         "--mix", "tiny=0.5,small=0.5", "--val-fraction", "0.3", "--workers", "1")  # fmt: skip
    assert built.returncode == 0, built.stderr
    done = locus_online("data", "push", "corpus", "ada/cues", token="hf_other")
    assert done.returncode == 2
    assert "could not be pushed to ada/cues" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_corpus_is_pushed_as_a_dataset(locus_online, hub, coco_folder, tmp_path):
    built = locus_online("data", "build", "--annotations", coco_folder / "instances.json", "--images", coco_folder / "images", "--out", "corpus",
                         "--mix", "tiny=0.5,small=0.5", "--val-fraction", "0.3", "--workers", "1")  # fmt: skip
    assert built.returncode == 0, built.stderr
    done = locus_online("data", "push", "corpus", "ada/cues")
    assert done.returncode == 0, done.stderr
    index = pq.read_table(tmp_path / "corpus/index/train.parquet")
    content = hub.files["ada/cues", "data/train-00000-of-00001.parquet"]
    rows = pq.read_table(io.BytesIO(content))
    features = json.loads(rows.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == features["crop"] == {"_type": "Image"}
    assert rows.num_rows == index.num_rows > 0
    same_size = []  # small cues are enlarged
    for row in rows.to_pylist():
        image, crop = (Image.open(io.BytesIO(row[name]["bytes"])) for name in ("image", "crop"))
        cut = image.crop(row["box"]).convert("RGB")
        assert cut.size[0] * crop.size[1] == pytest.approx(cut.size[1] * crop.size[0], rel=0.1)
        same_size.append(cut.size == crop.size)
        assert not same_size[-1] or cut.tobytes() == crop.tobytes()
    assert any(same_size)
    assert "split: validation" in hub.files["ada/cues", "README.md"].decode()
