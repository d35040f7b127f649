from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fluxexp.data.shapes import draw_scene
from tools.evaluate_tiny_fill.scoring import named_objects, score_fill, score_objects

ROOT = Path(__file__).parents[2]


def test_the_truth_has_the_best_scores() -> None:
    scene = draw_scene(5, 1, 128, 128)
    score = score_fill(scene.truth, scene.truth, scene.mask, (scene.traits["color"], scene.traits["shape"]))
    assert (score.color, score.shape) == (True, True)
    assert score.ssim == pytest.approx(1)


def test_psnr_and_ssim_follow_their_definitions() -> None:
    rng = np.random.default_rng(0)
    truth, picture = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    score = score_fill(picture, truth, mask, ("red", "star"))

    difference = picture[8:24, 8:24].astype(float) - truth[8:24, 8:24]
    assert score.psnr == pytest.approx(10 * np.log10(255**2 / (difference**2).mean()))
    values = []
    for row in range(8, 24):
        for column in range(8, 24):
            a, b = (p[row - 3 : row + 4, column - 3 : column + 4].mean(axis=2) for p in (picture, truth))
            luminance = (2 * a.mean() * b.mean() + 2.55**2) / (a.mean() ** 2 + b.mean() ** 2 + 2.55**2)
            covariance = ((a - a.mean()) * (b - b.mean())).mean()
            values.append(luminance * (2 * covariance + 7.65**2) / (a.var() + b.var() + 7.65**2))
    assert score.ssim == pytest.approx(np.mean(values))


def test_every_named_object_gets_a_score() -> None:
    caption = "a small striped red star, a large blue ring and a small dotted pink heart on a plain tan background"
    assert named_objects(caption) == [("red", "star"), ("blue", "ring"), ("pink", "heart")]
    scene = draw_scene(5, 1, 128, 128)
    asked = named_objects(scene.traits["scene"])
    assert all(score.color and score.shape for score in score_objects(scene.truth, asked))


@pytest.mark.slow
def test_the_report_has_every_table() -> None:
    command = [sys.executable, "-m", "tools.evaluate_tiny_fill", "--scenes", "4", "--steps", "1", "--workers", "1"]
    command += ["--vary-steps", "1", "--vary-guidance", "30", "--vary-dev-guidance", "3.5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=True)
    assert "4 held-out scenes, 128 x 128" in done.stdout
    assert "scores of the truths themselves: color 100.0%, shape 100.0%" in done.stdout
    assert "unmasked pixels changed: 0" in done.stdout
    for caption in ("right", "wrong", "none"):
        assert len(re.findall(rf"^ *[\d.]+ {caption} ", done.stdout, re.MULTILINE)) == 1
