"""What a folder from a stranger may decide: its frame and words, never code, another checkpoint, or markup."""

from __future__ import annotations

import json

import pytest
import yaml

from locus_lightning.backbones.auto import AutoBackbone
from locus_lightning.backbones.open import Run, open_model
from locus_lightning.data.source import CueKey
from locus_lightning.errors import CheckpointError, ConfigError
from locus_lightning.tasks.cue_search import CueSearch


def rewrite(folder, **changes):
    path = folder / "locus.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def saved(make_backbone, tmp_path):
    backbone = make_backbone("llava", decimals=3)
    backbone.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_folder_decides_the_settings_of_its_family_alone(saved, caplog):
    family = {"decimals": 4, "trust_remote_code": True, "checkpoint": "toy:llava", "train_vision": True, "dtype": "float64"}
    rewrite(saved, family=family)
    backbone = AutoBackbone(str(saved))
    assert backbone.decimals == 4
    assert backbone.trust_remote_code is False
    assert backbone.checkpoint == str(saved)
    assert not backbone.train_vision
    assert "checkpoint, dtype, train_vision, trust_remote_code of locus.json ignored" in caplog.text


def test_an_adapter_folder_decides_no_more(make_backbone, toy_folder, tmp_path):
    from locus_lightning.backbones.adapters import LoRA

    backbone = make_backbone("llava", lora=LoRA(rank=2))
    backbone.save_pretrained(tmp_path)
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**about, "base_model_name_or_path": str(toy_folder("llava"))}))
    rewrite(tmp_path, family={"decimals": 4, "trust_remote_code": True})
    opened = open_model(str(tmp_path))
    assert opened.decimals == 4
    assert opened.trust_remote_code is False


def test_a_run_folder_cannot_switch_remote_code_on(tmp_path):
    backbone = {
        "class_path": "locus_lightning.backbones.llava.LlavaBackbone",
        "init_args": {"checkpoint": "toy:llava", "trust_remote_code": True},
    }
    run = Run(tmp_path, tmp_path / "last.ckpt", {"model": {"init_args": {"backbone": backbone}}}, {})
    assert run.backbone("float32").trust_remote_code is False
    assert run.backbone("float32", trust_remote_code=True).trust_remote_code is True


@pytest.mark.parametrize("name", ["locus_lightning.backbones.llava.LlavaBackbone", "locus_lightning.AutoBackbone", "AutoBackbone"])
def test_a_run_folder_cannot_switch_it_on_by_another_road(tmp_path, name):
    stated = {"class_path": name, "init_args": {"checkpoint": "toy:llava"}, "dict_kwargs": {"trust_remote_code": True}}
    run = Run(tmp_path, tmp_path / "last.ckpt", {"model": {"init_args": {"backbone": stated}}}, {})
    assert run.backbone("float32").trust_remote_code is False


def test_a_run_folder_imports_nothing_that_is_no_installed_backbone(tmp_path, monkeypatch):
    (tmp_path / "evil_backbone.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    stated = {"class_path": "evil_backbone.Evil", "init_args": {}}
    run = Run(tmp_path, tmp_path / "last.ckpt", {"model": {"init_args": {"backbone": stated}}}, {})
    with pytest.raises(CheckpointError, match="names the backbone 'evil_backbone.Evil', which is no installed backbone plugin"):
        run.backbone("float32")
    with pytest.raises(CheckpointError, match="no installed backbone plugin"):
        Run(tmp_path, tmp_path / "last.ckpt", {"model": []}, {}).backbone("float32")


def test_a_record_that_names_the_chooser_itself_ends(saved):
    rewrite(saved, backbone="locus_lightning.backbones.auto.AutoBackbone")
    assert type(AutoBackbone(str(saved))).__name__ == "LlavaBackbone"


def test_a_run_remembers_the_words_and_layout_of_its_task(tmp_path):
    search = {"class_path": "locus_lightning.CueSearch", "init_args": {"prompt": {"instruction": " Where?"}, "layout": "images_first"}}
    for task in (search, {"class_path": "TaskMixture", "init_args": {"tasks": [{"class_path": "MultiCue"}, search]}}):
        backbone = {"class_path": "locus_lightning.backbones.llava.LlavaBackbone", "init_args": {"checkpoint": "toy:llava"}}
        run = Run(tmp_path, tmp_path / "last.ckpt", {"model": {"init_args": {"backbone": backbone, "task": task}}}, {})
        adopted = CueSearch()
        adopted.adopt(run.backbone("float32").remembers)
        assert adopted.prompt.instruction == " Where?"
        assert adopted.layout == "images_first"


@pytest.mark.parametrize(
    "content",
    ["[]", '{"backbone": 1}', '{"backbone": "x", "family": []}', "{", ""],
)
def test_a_record_of_another_form_is_one_sentence(saved, content):
    (saved / "locus.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"locus\.json is not the record of a saved backbone"):
        AutoBackbone(str(saved))


def test_words_that_are_not_ours_are_one_sentence(saved):
    for prompt in ({"instructions": "Find it."}, {"instruction": 3}, ["x"]):
        rewrite(saved, prompt=prompt)
        with pytest.raises(ConfigError, match="remembers a prompt that cue search does not know"):
            CueSearch().adopt(AutoBackbone(str(saved)).remembers)


def test_the_code_that_will_run_is_named(saved, caplog):
    config = json.loads((saved / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "someone/model--modeling_own.OwnModel"}
    (saved / "config.json").write_text(json.dumps(config))
    from locus_lightning.backbones.checkpoint import announce_remote_code

    announce_remote_code(str(saved))
    assert "runs the code of configuration_own.py, someone/model/modeling_own.py" in caplog.text


EVIL = "<script>alert(1)</script>"


def test_pages_escape_what_files_say(tmp_path, samples):
    from locus_lightning.data.corpus.contact_sheet import write_sheet
    from locus_lightning.evaluation.base import Item
    from locus_lightning.evaluation.benchmarks.vstar import VStar
    from locus_lightning.evaluation.html import page

    numbers = {EVIL: 1.0}
    manifest = {
        "counts": {EVIL: {"cues": 1, "images": 1, "labels": 1, "bins": {EVIL: 1}}},
        "statistics": {EVIL: {EVIL: numbers, "labels": {EVIL: 1}}},
        "left_out": {EVIL: 3},
    }
    window = samples[0].cue.window.__class__((1, 2, 20, 30), EVIL, label=EVIL)
    sample = samples[0].__class__(EVIL, samples[0].image, samples[0].cue.__class__(samples[0].cue.image, window, EVIL), samples[0].box)
    out = tmp_path / f"{EVIL.replace('/', '')}.html"
    write_sheet(manifest, {CueKey(0, 0): sample}, out, EVIL, 1, 0)
    text = out.read_text()
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 8

    benchmark = VStar(tmp_path)
    benchmark.malformed.append(EVIL)
    item = Item(EVIL, EVIL, b"", EVIL, EVIL)
    result = {"model": EVIL, "figures": {EVIL: 0.5}, "scores": {EVIL: {"score": 0.0}}, "questions": 1, "prompt_tokens": {"least": 1, "most": 1},
              "image_budget": EVIL, "truncated": 0, "max_new_tokens": 1, "unread": 0, "prompt": EVIL}  # fmt: skip
    made = page(benchmark, [item], [result], {}, [{EVIL: {"text": EVIL}}], 3)
    assert "<script" not in made
    assert made.count("&lt;script&gt;") >= 8


def test_a_page_looks_the_same_for_plain_content(samples, tmp_path):
    from locus_lightning.data.corpus.contact_sheet import write_sheet

    manifest = {
        "counts": {"train": {"cues": 10, "images": 4, "labels": 2, "bins": {"tiny": 7, "small": 3}}},
        "statistics": {"train": {"width": {"0": 16.0, "1": 40.0}, "labels": {"cat": 6, "": 4}}},
        "left_out": {},
    }
    assert (
        write_sheet(
            manifest,
            dict(zip((CueKey(0, i) for i in range(3)), samples, strict=True)),
            tmp_path / "x" / "inspect.html",
            "train",
            2,
            0,
            side=50,
        )
        == 2
    )
    text = (tmp_path / "x" / "inspect.html").read_text()
    for part in ("train: 10 cues of 4 pictures", "70.0%", "cat 6, no label 4", "2 of 3 cues", "nothing", "data:image/png;base64,"):
        assert part in text, part
    assert yaml.safe_load(text.split("<title>")[1].split("</title>")[0]) == {"x": "train"}
