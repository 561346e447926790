"""Fine-tuning on a stack without clean frames: what is learned, judged, saved and refused."""

import os
import signal

import numpy as np
import pytest
import torch

from emdn_deploy.config import DenoiseOptions
from emdn_deploy.preprocess import prepare
from emdn_deploy.readers import open_frames
from emdn_models import CheckpointError, FormatError, ModelError, checkpoint
from emdn_models.nets import build, load_state
from emdn_train import adapt as adapting
from emdn_train import cli, fit, results
from emdn_train.adapt import Movie, Neighbours, adapt, denoised, parts
from emdn_train.config import AdaptConfig
from emdn_train.export import weights_sha256
from emdn_train.patches import chance

CPU = torch.device("cpu")
COUNT, SIDE, GAIN, OFFSET = 24, 64, 3.0, 50.0


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr(results, "draw_losses", lambda *_: None)


def pattern(shift=0.0):
    """Atoms without order: a lattice would come out well without any learning."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    atoms = np.random.default_rng(7).uniform(-8, SIDE + 8, (90, 2))
    squares = ((y - row) ** 2 + (x + shift - column) ** 2 for row, column in atoms)
    return 4 + 6 * sum(np.exp(-square / 4.5) for square in squares)


def recorded(folder, shifts=(0.0,) * COUNT):
    """Write a stack of arbitrary units and return its path."""
    rng = np.random.default_rng(1)
    counts = np.stack([rng.poisson(pattern(shift)) for shift in shifts])
    np.save(folder / "stack.npy", (GAIN * counts + OFFSET).astype(np.float32))
    return folder / "stack.npy"


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A checkpoint of a U-Net as drawn: it returns the mean."""
    path = tmp_path_factory.mktemp("drawn") / checkpoint.FILE_NAME
    torch.manual_seed(0)
    state = {key: value.numpy() for key, value in build("unet").state_dict().items()}
    checkpoint.save(path, {"unet": checkpoint.Weights("shipped", state, {"recipe": {"steps": 7}})})
    return path


def config(stack, out, start, **changes):
    defaults = {
        "max_minutes": 0.0, "epochs": 16, "patch": 32, "device": "cpu", "lr": 4e-3,
        "options": DenoiseOptions(gain=GAIN, offset=OFFSET),
    }  # fmt: skip
    return AdaptConfig(stack=stack, out=out, start=start, **(defaults | changes))


@pytest.fixture(scope="module")
def tuned(stack, drawn, tmp_path_factory):
    """The result of a run that was not stopped."""
    out = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "draw_losses", lambda *_: None)
        return adapt(config(stack, out, drawn))


def numbered(frames=10):
    """A movie whose pixels tell frame and place."""
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(48.0), indexing="ij")
    stack = 1e4 * torch.arange(frames)[:, None, None] + 100 * y + x
    scale = type("Scale", (), {"scale": 5.0})()
    return Movie("m", tuple(stack.shape), scale, np.ones((40, 48), bool), stack.__getitem__, "")


def test_pairs_are_neighbours_at_the_same_place():
    source = Neighbours(numbered(), 7, 16, CPU)
    assert len(source) == 7
    seen, places = set(), set()
    for seed in range(8):
        indices = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
        batch = source.batch(indices, torch.Generator().manual_seed(seed))
        assert batch.noisy.shape == batch.target.shape == (7, 1, 16, 16)
        assert batch.scale.flatten().tolist() == [5.0] * 7
        step = (batch.target - batch.noisy) / 1e4
        assert (step == step[:, :, :1, :1]).all()  # the same place in the same orientation
        assert set(step.flatten().tolist()) == {-1.0, 1.0}
        frame = (batch.noisy[:, 0, 0, 0] // 1e4).long()
        assert torch.equal(frame, indices)
        seen |= set((batch.target // 1e4).flatten().tolist())
        places |= set((batch.noisy[:, 0, 0, 0] % 1e4).tolist())
    batches = [source.batch(torch.arange(7), chance(3)) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*(one[:3] for one in batches), strict=True))
    assert seen == set(range(7))  # and never the frames from 7 on
    assert len(places) > 40


def test_a_movie_is_what_a_deployment_sees(stack, monkeypatch):
    """Hot pixels filled, units to electrons; in memory or read as needed."""
    frames = np.load(stack)
    frames[:, 5, 7] = 1e5
    np.save(stack.with_name("hot.npy"), frames)
    movies = []
    for limit in (4 << 30, 0):
        monkeypatch.setattr(adapting, "CACHE_BYTES", limit)
        with open_frames(stack.with_name("hot.npy")) as opened:
            movie = Movie.of(opened, DenoiseOptions())
            prepared = prepare(opened, DenoiseOptions())
            expected = (prepared.read(3, 5) - prepared.scale.offset) / prepared.scale.gain
            np.testing.assert_allclose(movie.read(torch.tensor([3, 4])), expected, rtol=1e-6)
            movies.append(movie)
    assert movies[0].digest == movies[1].digest
    assert movies[0].scale == prepared.scale
    assert not movies[0].valid[5, 7]
    assert movies[0].valid.sum() == SIDE**2 - 1


def test_it_learns_without_clean_frames(tuned, stack, drawn):
    """The error against the truth, which it never saw, falls; uMSE says so."""
    counts = (torch.from_numpy(np.load(stack)) - OFFSET) / GAIN
    scale = float(counts.mean())
    errors = []
    for path in (drawn, tuned.path):
        net = build("unet")
        load_state(net, "unet", checkpoint.load(path)["unet"])
        errors.append(
            np.square(denoised(net, counts[-6:].double().numpy(), scale) - pattern()).mean()
        )
    assert tuned.outcome == "gained"
    assert errors[1] < 0.95 * errors[0]  # 16 steps, from a good start
    found = tuned.verdict
    assert found.before.error.value == pytest.approx(errors[0], abs=4 * found.before.error.se)
    assert found.after.error.value == pytest.approx(errors[1], abs=4 * found.after.error.se)
    assert found.fell.value == pytest.approx(errors[0] - errors[1], abs=4 * found.fell.se)
    # The same frames, before and after: less uncertain than of different ones.
    assert found.fell.se < np.hypot(found.before.error.se, found.after.error.se)
    assert found.mean_ratio == pytest.approx(1, abs=0.03)

    weights = checkpoint.load(tuned.path)["unet"]
    recipe = weights.metadata["recipe"]
    assert (recipe["start"], recipe["recipe_details"]["loss"]) == ({"steps": 7}, "mse")
    known = recipe["adapted"]
    assert known["stack"]["path"] == str(stack)
    assert known["stack"]["held_out"] == 6
    assert known["stack"]["intensity"]["gain"] == GAIN
    assert known["held_out"]["after"]["error"]["value"] == found.after.error.value
    start = checkpoint.load(drawn)["unet"].state
    assert known["stack"]["start_sha256"] == weights_sha256(start)
    assert not (tuned.path.parent / "fit_state.h5").exists()


def test_the_last_frames_are_held_out(stack):
    assert parts(16, stack) == (range(10), range(10, 16))
    assert parts(100, stack) == (range(85), range(85, 100))
    assert parts(1000, stack) == (range(968), range(968, 1000))
    with pytest.raises(FormatError, match="has 11 frames, expected 12 or more"):
        parts(11, stack)


@pytest.mark.parametrize("outcome", ["nothing gained", "diverged"])
def test_what_does_not_help_leaves_the_start(tuned, stack, tmp_path, caplog, monkeypatch, outcome):
    """A learning rate that ruins the weights, and a loss that is not finite."""
    if outcome == "diverged":
        broken = torch.tensor(torch.nan, requires_grad=True)
        monkeypatch.setattr(fit, "loss", lambda *_: broken)
    found = adapt(config(stack, tmp_path, tuned.path, lr=0.3, epochs=1))
    assert found.outcome == outcome
    assert found.verdict is None if outcome == "diverged" else found.verdict.fell.value < 0
    assert "the starting weights are saved" in caplog.text
    start, end = (checkpoint.load(path)["unet"] for path in (tuned.path, found.path))
    for key, array in start.state.items():
        np.testing.assert_array_equal(end.state[key], array)
    assert end.metadata["status"] == "fitted"
    assert end.metadata["recipe"]["adapted"]["outcome"] == outcome


@pytest.mark.parametrize(("speed", "warned"), [(0.0, False), (1.5, True)])
def test_motion_is_told(speed, warned, drawn, tmp_path, caplog):
    path = recorded(tmp_path, speed * np.arange(COUNT))
    found = adapt(config(path, tmp_path / "out", drawn, lr=1e-30, epochs=1))
    assert ("moves" in caplog.text) is warned
    assert found.outcome == "nothing gained"  # by no change


@pytest.mark.slow
def test_a_stopped_run_goes_on(tuned, stack, drawn, tmp_path, monkeypatch):
    original, calls = Neighbours.batch, []

    def batch(self, indices, generator):
        calls.append(1)
        if len(calls) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, indices, generator)

    monkeypatch.setattr(Neighbours, "batch", batch)
    with pytest.raises(KeyboardInterrupt):
        adapt(config(stack, tmp_path, drawn))
    assert not (tmp_path / checkpoint.FILE_NAME).exists()
    with pytest.raises(CheckpointError, match="seed 0 and not 1"):
        adapt(config(stack, tmp_path, drawn, seed=1))
    found = adapt(config(stack, tmp_path, drawn))
    assert len(calls) == found.steps == tuned.steps == 48
    expected, end = (checkpoint.load(path)["unet"].state for path in (tuned.path, found.path))
    for key, array in expected.items():
        np.testing.assert_array_equal(end[key], array)


def test_a_stack_without_noise_is_refused(drawn, tmp_path):
    np.save(tmp_path / "flat.npy", np.full((12, 64, 64), 7.0, np.float32))
    with pytest.raises(FormatError, match="no noise found"):
        adapt(AdaptConfig(stack=tmp_path / "flat.npy", out=tmp_path, start=drawn, epochs=1))
    with pytest.raises(ModelError, match="or it never ends"):
        AdaptConfig(stack=tmp_path / "flat.npy", max_minutes=0)


@pytest.mark.slow
def test_from_the_command_line_to_a_deployed_model(stack, tmp_path, capfd):
    """Shipped weights, adapted, exported: an ordinary checkpoint and graph."""
    with pytest.raises(SystemExit) as left:
        cli.main(
            f"adapt {stack} --out {tmp_path} --model ffdnet --epochs 1 --patch 32 --device cpu "
            f"--gain {GAIN} --offset {OFFSET} --max-minutes 0 --lr 0.05".split()
        )
    printed = capfd.readouterr()
    assert not left.value.code, printed.err
    assert "nothing gained: the starting weights are saved (3 steps)" in printed.out
    assert printed.out.count("uMSE") == 2
    with pytest.raises(SystemExit) as left:
        cli.main(["export", str(tmp_path / checkpoint.FILE_NAME)])
    assert not left.value.code, capfd.readouterr().err
    from emdn_deploy.denoiser import Denoiser

    before = Denoiser("ffdnet").denoise(np.load(stack), gain=GAIN, offset=OFFSET)
    after = Denoiser(tmp_path / "onnx" / "ffdnet.onnx").denoise(
        np.load(stack), gain=GAIN, offset=OFFSET
    )
    np.testing.assert_allclose(after, before, rtol=1e-4)


def test_a_model_that_sees_its_targets_is_not_adapted(stack, tmp_path):
    with pytest.raises(ModelError, match="sees the neighbours that it would be fitted to"):
        adapt(AdaptConfig(stack=stack, out=tmp_path, preset="movie"))
