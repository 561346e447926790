"""The gate by numbers: what is let through, and what is named when it is not."""

import numpy as np
import polars as pl
import pytest

from emdn_deploy.session import open_session
from emdn_models.pretrained import onnx_path
from emdn_train.simulate import testset
from emdn_train.variants import gate
from emdn_train.variants.gate import verdict


def rows(losses: list[float], ratios: list[float]) -> tuple[pl.DataFrame, pl.DataFrame]:
    levels = [0.1, 0.1, 1.0, 1.0]
    model = pl.DataFrame({"level": levels, "gain_db": [10.0] * 4, "mean": [5.0] * 4})
    gains, means = [10 - loss for loss in losses], [5 * ratio for ratio in ratios]
    return model, pl.DataFrame({"level": levels, "gain_db": gains, "mean": means})


@pytest.mark.parametrize(
    ("losses", "ratios", "told"),
    [
        ([0.3, 0.05, 0.02, 0.01], [1.004] * 4, ""),
        ([0.3, 0.1, 0.02, 0.02], [1.0] * 4, "loses 0.11 dB"),
        # Means that are off to both sides do not make up for each other.
        ([0.0] * 4, [1.0, 1.0, 1.007, 0.993], "mean off by 0.70 %"),
        ([0.2] * 4, [0.99] * 4, "loses 0.20 dB, mean off by 1.00 %"),
        ([0.0] * 4, [1.0, np.nan, 1.0, 1.0], "mean off by nan %"),
        ([0.0, np.nan, 0.0, 0.0], [1.0] * 4, "loses nan dB"),
    ],
)
def test_what_is_refused(losses: list[float], ratios: list[float], told: str) -> None:
    assert verdict(*rows(losses, ratios)).refusal == told


def test_losses_are_those_of_the_levels() -> None:
    found = verdict(*rows([0.3, 0.1, -0.02, 0.04], [1.0, 1.0, 1.002, 1.004]))
    assert found.loss_db == pytest.approx({0.1: 0.2, 1.0: 0.01})
    assert found.mean_loss_db == pytest.approx(0.105)
    assert found.mean_shift == pytest.approx(0.003)


def test_a_model_beside_itself_loses_nothing(frames) -> None:
    made = [gate.answers(open_session(onnx_path("mcnn"), "cpu", 1), frames.judged)
            for _ in range(2)]  # fmt: skip
    found = verdict(*made)
    assert (found.mean_loss_db, found.mean_shift, found.refusal) == (0, 0, "")
    assert made[0]["gain_db"].mean() > 3


def test_frames_are_of_every_kind_at_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "LEVELS", (0.12, 1.2))
    made = testset.first_specimens(gate.LEVELS)
    assert [one.row["part"] for one in made[::2]] == list(testset.PARTS)
    monkeypatch.setattr(gate, "first_specimens", lambda levels: made)
    every = gate.samples()
    assert len(every) == len(made)
    assert {one.level for one in every} == {0.12, 1.2}
