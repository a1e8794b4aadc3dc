"""Reinforcement on plain questions, beside cue search or alone."""

from __future__ import annotations

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.integration.conftest import ROOT

CUES = {"class_path": "SceneCues", "init_args": {"image_size": 96, "objects": [2, 4], "val_size": 2}}


@pytest.mark.parametrize("mix", [{"choose_attribute": 1.0}, {"attribute": 0.5, "cue": 0.5}])
def test_questions_are_trained_on_counted_and_drawn(locus, tmp_path, mix):
    config = yaml.safe_load((ROOT / "tests" / "configs" / "scenes_llava.yaml").read_text())
    settings = config["model"]["init_args"]
    settings["rewards"] = [{"class_path": "AnswerReward"}]
    config["data"]["source"] = {
        "class_path": "SceneQA",
        "init_args": {
            "held_out": CUES,
            "per_scene": 1,
            "train_size": 8,
            "val_size": 3,
            "stages": [{"epochs": 9, "scenes": CUES, "mix": mix}],
        },
    }
    config["data"]["val_source"] = CUES
    config["trainer"]["logger"] = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "runs", "name": "questions"}}
    (tmp_path / "questions.yaml").write_text(yaml.safe_dump(config))
    status, _, err = locus("fit", "--config", "questions.yaml")
    assert status == 0, err
    events = EventAccumulator(str(tmp_path / "runs" / "questions" / "version_0"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"rollout/question_score", "val/iou", "reward/total"} <= scalars
    assert ("rollout/iou" in scalars) == ("cue" in mix)
    assert events.Tags()["images"]
