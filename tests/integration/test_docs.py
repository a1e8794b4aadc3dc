"""Every command in README and docs is run, made small; every file they name exists."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from locus_lightning import plugins
from tests.integration.conftest import ROOT, small

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TINIER = {
    "data.batch_size": 4,
    "model.init_args.micro_batch_size": 4,
    "model.init_args.sampling.max_new_tokens": 4,
    "model.init_args.group_size": 2,
}


def commands():
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.splitlines():
                assert line.startswith("$ "), f"{page.name}: {line!r} in a console block is no command"
                for part in line[2:].split(" && "):
                    yield pytest.param(part.strip(), id=f"{page.stem}: {part.strip()[:60]}")


@pytest.fixture
def folder(tmp_path, coco_folder):
    """What the pages assume: a clone's configs, and a COCO file with its images."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copy(coco_folder / "instances.json", tmp_path / "instances.json")
    (tmp_path / "images").symlink_to(coco_folder / "images")
    return tmp_path


@pytest.mark.parametrize("command", commands())
def test_every_command_runs(command, locus, folder, toy_folder):
    words = shlex.split(command.removeprefix("uv run ").removeprefix("uv "))
    if words[0] == "locus":
        run_locus(words[1:], locus, folder, toy_folder)
    elif words[:2] == ["pip", "install"]:
        assert words[2:] in (["uv"], ["-e", "./giou"])
    elif words[0] in ("pytest", "bash") or words[0] == "python":
        assert words[0] == "pytest" or (ROOT / words[1]).is_file()  # this run, and a test of its own below
    else:
        program = shutil.which(words[0], path=str(Path(sys.executable).parent))
        assert program, f"{words[0]} is not installed with the project"
        assert subprocess.run([program, "--help"], capture_output=True, check=False).returncode == 0


def run_locus(words, locus, folder, toy_folder):
    if words[0] == "toy":
        return assert_runs(locus, *words)
    if words[0] in ("eval", "analyze") and "smallstar" in words and "--data" in words:
        assert_runs(locus, "smallstar", "smallstar", "--number", "2")
    if words[0] == "preflight":
        shutil.copytree(toy_folder("qwen2_5_vl"), folder / "toy-qwen", dirs_exist_ok=True)
    if words[0] == "data":
        if words[1] != "build":
            build_corpus(locus)
        return assert_runs(locus, *words)
    config = Path(words[words.index("--config") + 1]).name if "--config" in words else None
    if words[0] in ("fit", "validate", "predict") and config:
        options = small(**TINIER) if config == "tiny.yaml" else []
        if "--data.source=CorpusCues" in words:
            build_corpus(locus)
        if "--data.source=CocoCues" in words:
            words = [*words, '--data.source.cue_sampler={"class_path": "ObjectCues", "init_args": {"mix": {"tiny": 0.5, "small": 0.5}}}']
        if "--ckpt_path" in words:  # what the page has just run
            assert_runs(locus, "fit", "--config", f"configs/{config}", *options)
            options = [option for option in options if words[0] == "fit" or "trainer.max_steps" not in option]
        shutil.copytree(toy_folder("llava_onevision"), folder / "toy-onevision", dirs_exist_ok=True)
        words = [*words, *options, *(["--trainer.max_steps=2"] if words[0] == "fit" and "--ckpt_path" in words else [])]
    return assert_runs(locus, *words)


def build_corpus(locus):
    """What docs/data.md has just built."""
    wanted = ["--mix", "tiny=0.5,small=0.5", "--val-fraction", "0.3"]
    assert_runs(locus, "data", "build", "--annotations", "instances.json", "--images", "images", "--out", "corpus", *wanted)


def assert_runs(locus, *words):
    status, _, err = locus(*words)
    assert status == 0, err


def test_every_link_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.slow
def test_the_configuration_reference_is_what_the_code_says():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make_reference.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_guides_plugin_is_the_one_in_the_repository():
    guide = (ROOT / "docs" / "reward-plugin.md").read_text()
    stated = tomllib.loads(re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)[0])
    shipped = tomllib.loads((ROOT / "plugins" / "giou" / "pyproject.toml").read_text())
    assert stated["project"]["entry-points"] == shipped["project"]["entry-points"]
    assert stated["build-system"] == shipped["build-system"]
    scope: dict[str, object] = {}
    source = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)[0]
    exec(source.replace("GIoUReward", "GuideReward"), scope)  # a second class of the plugin's name would be ambiguous to other tests
    from locus_reward_giou import GIoUReward
    from tests.conftest import make_completion, make_sample

    for box in (None, (10.0, 12.0, 44.0, 40.0), (60.0, 50.0, 90.0, 70.0)):
        completion = make_completion("", box)
        assert scope["GuideReward"]().score(completion, make_sample()) == GIoUReward().score(completion, make_sample())


def test_every_documented_curve_exists_in_the_code():
    """The names in the TensorBoard page's table of what to look at first."""
    page = "".join((ROOT / "docs" / name).read_text() for name in ("tensorboard.md", "recipes.md"))
    code = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    for name in re.findall(r"\| `((?:val|rollout|reward|update)/[\w.]+)`", page):
        assert name.split("/")[1] in code


def test_the_guides_task_keeps_the_contract():
    guide = (ROOT / "docs" / "task-plugin.md").read_text()
    stated = tomllib.loads(re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)[0])
    shipped = tomllib.loads((ROOT / "plugins" / "task_rotation" / "pyproject.toml").read_text())
    assert stated["project"]["entry-points"] == shipped["project"]["entry-points"]
    source, check = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    scope: dict[str, object] = {"__name__": "guide"}
    exec(
        source.replace("RotationTask", "GuideTask").replace(
            "from dataclasses", "import sys, types\nsys.modules['guide'] = types.ModuleType('guide')\nfrom dataclasses"
        ),
        scope,
    )
    exec(check.replace("RotationTask", "GuideTask"), scope)
    mixture = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)[0])
    assert mixture["model"]["task"]["class_path"] == "TaskMixture"


@pytest.mark.parametrize("page", ["cue-sampler-plugin", "backbone-plugin", "class-paths", "python"])
def test_every_python_block_of_a_page_runs(page, monkeypatch, tmp_path):
    """The blocks of a page one after the other, as a reader would try them; the file that a page names holds its first class."""
    monkeypatch.chdir(tmp_path)
    text, scope = (ROOT / "docs" / f"{page}.md").read_text(), {"__name__": f"page_{page.replace('-', '_')}"}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), scope)
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        assert yaml.safe_load(block)
    if page == "class-paths":
        from locus_lightning.data.source import CueKey
        from locus_lightning.rollout.base import SamplingParams

        sample = scope["Dots"](4).dataset("val", 0)[CueKey(0, 3)]
        assert sample.image.crop(tuple(map(int, sample.box))).getextrema() == ((255, 255),) * 3
        backbone = plugins.load("backbones", "LlavaBackbone")("toy:llava")
        backbone.load()
        (group,) = scope["Longest"]().generate(backbone, backbone.encode([(sample.image, "?")]), 2, SamplingParams(3))
        assert len(group) == 2


def test_the_python_example_trains(monkeypatch, capsys):
    import importlib.util

    spec = importlib.util.spec_from_file_location("train_in_python", ROOT / "examples" / "train_in_python.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert 0 < example.main(1) < 1
    assert "mean IoU 0.1" in capsys.readouterr().out
