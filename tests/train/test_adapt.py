"""Fine-tuning on a stack without clean frames: what is learned, judged, saved and refused."""

import numpy as np
import pytest
import torch

from emdn_deploy.config import DenoiseOptions
from emdn_deploy.denoiser import Denoiser
from emdn_deploy.preprocess import prepare
from emdn_deploy.readers import open_frames
from emdn_models import FormatError, checkpoint
from emdn_models.nets import build, load_state
from emdn_train import adapt as adapting
from emdn_train import cli, fit
from emdn_train.adapt import adapt, denoised, electrons, pairs
from emdn_train.config import AdaptConfig
from emdn_train.dataset import chance

CPU = torch.device("cpu")
COUNT, SIDE, GAIN, OFFSET = 24, 64, 3.0, 50.0


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
    """The result of a run that was not stopped, and its checkpoint."""
    out = tmp_path_factory.mktemp("tuned")
    return adapt(config(stack, out, drawn)), out / checkpoint.FILE_NAME


def test_pairs_are_neighbours_at_the_same_place():
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(48.0), indexing="ij")
    frames = 1e4 * torch.arange(7)[:, None, None] + 100 * y + x  # whose pixels tell frame and place
    indices, places = torch.arange(7), set()
    for seed in range(8):
        batch = pairs(frames, 5.0, 16, CPU, indices, chance(seed))
        assert batch.noisy.shape == batch.target.shape == (7, 1, 16, 16)
        assert (batch.scale == 5.0).all()
        step = (batch.target - batch.noisy) / 1e4
        assert (step == step[:, :, :1, :1]).all()  # the same place in the same orientation
        assert set(step.flatten().tolist()) == {-1.0, 1.0}
        assert torch.equal((batch.noisy[:, 0, 0, 0] // 1e4).long(), indices)
        places |= set((batch.noisy[:, 0, 0, 0] % 1e4).tolist())
    assert len(places) > 40


def test_a_movie_is_what_a_deployment_sees(stack, monkeypatch):
    """Hot pixels filled, units to electrons, and of a large stack the first frames."""
    frames = np.load(stack)
    frames[:, 5, 7] = 1e5
    np.save(stack.with_name("hot.npy"), frames)
    with open_frames(stack.with_name("hot.npy")) as opened:
        found, valid, scale = electrons(opened, DenoiseOptions())
        prepared = prepare(opened, DenoiseOptions())
        expected = (prepared.read(3, 5) - prepared.scale.offset) / prepared.scale.gain
        monkeypatch.setattr(adapting, "CACHE_BYTES", 18 * SIDE**2 * 4)
        assert len(electrons(opened, DenoiseOptions())[0]) == 18
    np.testing.assert_allclose(found[3:5], expected, rtol=1e-6)
    assert scale == prepared.scale
    assert not valid[5, 7]
    assert valid.sum() == SIDE**2 - 1


def test_it_learns_without_clean_frames(tuned, stack, drawn):
    """The error against the truth, which it never saw, falls; uMSE says so."""
    found, path = tuned
    counts = (torch.from_numpy(np.load(stack)) - OFFSET) / GAIN
    errors = []
    for one in (drawn, path):
        net = build("unet")
        load_state(net, "unet", checkpoint.load(one)["unet"])
        clean = denoised(net, counts[-6:].double().numpy(), float(counts.mean()))
        errors.append(np.square(clean - pattern()).mean())
    assert found.gained
    assert errors[1] < 0.95 * errors[0]  # 16 steps, from a good start
    assert found.before.error.value == pytest.approx(errors[0], abs=4 * found.before.error.se)
    assert found.after.error.value == pytest.approx(errors[1], abs=4 * found.after.error.se)
    assert found.fell.value == pytest.approx(errors[0] - errors[1], abs=4 * found.fell.se)
    recipe = checkpoint.load(path)["unet"].metadata["recipe"]
    assert (recipe["start"], recipe["recipe_details"]["loss"]) == ({"steps": 7}, "mse")
    known = recipe["adapted"]
    assert (known["stack"], known["held_out"]) == (str(stack), 6)
    assert known["intensity"]["gain"] == GAIN
    assert known["after"]["error"]["value"] == found.after.error.value
    assert not (path.parent / "fit_state.h5").exists()


@pytest.mark.parametrize("diverged", [False, True])
def test_what_does_not_help_leaves_the_start(tuned, stack, tmp_path, monkeypatch, diverged):
    """A learning rate that ruins the weights, and a loss that is not finite."""
    if diverged:
        broken = torch.tensor(torch.nan, requires_grad=True)
        monkeypatch.setattr(fit, "loss", lambda *_: broken)
    found = adapt(config(stack, tmp_path, tuned[1], lr=0.3, epochs=1))
    assert not found.gained
    assert found.fell.value == 0 if diverged else found.fell.value < 0
    assert "the starting weights are saved" in str(found)
    start, end = (
        checkpoint.load(path)["unet"] for path in (tuned[1], tmp_path / checkpoint.FILE_NAME)
    )
    for key, array in start.state.items():
        np.testing.assert_array_equal(end.state[key], array)
    assert not end.metadata["recipe"]["adapted"]["gained"]


@pytest.mark.parametrize(("speed", "warned"), [(0.0, False), (1.5, True)])
def test_motion_is_told(speed, warned, drawn, tmp_path, caplog):
    path = recorded(tmp_path, speed * np.arange(COUNT))
    found = adapt(config(path, tmp_path / "out", drawn, lr=1e-30, epochs=1))
    assert ("moves" in caplog.text) is warned
    assert not found.gained  # by no change


def test_what_cannot_be_adapted_is_refused(stack, drawn, tmp_path):
    np.save(tmp_path / "flat.npy", np.full((12, 64, 64), 7.0, np.float32))
    with pytest.raises(FormatError, match="no noise found"):
        adapt(AdaptConfig(stack=tmp_path / "flat.npy", out=tmp_path, start=drawn, epochs=1))
    np.save(tmp_path / "short.npy", np.load(stack)[:11])
    with pytest.raises(FormatError, match="has 11 frames, expected 12 or more"):
        adapt(AdaptConfig(stack=tmp_path / "short.npy", out=tmp_path, start=drawn))


@pytest.mark.slow
def test_from_the_command_line_to_a_deployed_model(stack, tmp_path, capfd):
    """Shipped weights, adapted, exported: an ordinary checkpoint and graph."""
    given = f"--gain {GAIN} --offset {OFFSET} --epochs 1 --patch 32 --device cpu --lr 0.05"
    for command in (
        f"adapt {stack} --out {tmp_path} --model ffdnet {given}",
        f"export {tmp_path / checkpoint.FILE_NAME}",
    ):
        with pytest.raises(SystemExit) as left:
            cli.main(command.split())
        printed = capfd.readouterr()
        assert not left.value.code, printed.err
        if command.startswith("adapt"):
            assert "nothing gained: the starting weights are saved (3 steps)" in printed.out
            assert printed.out.count("uMSE") == 2
    before, after = (
        Denoiser(model).denoise(np.load(stack), gain=GAIN, offset=OFFSET)
        for model in ("ffdnet", tmp_path / "onnx" / "ffdnet.onnx")
    )
    np.testing.assert_allclose(after, before, rtol=1e-4)
