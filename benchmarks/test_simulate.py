"""What simulated data costs: pairs per second, and noise against the step that it feeds."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from emdn_models.nets import build
from emdn_train import noise
from emdn_train.simulate import SimulateConfig, hrtem, shard
from emdn_train.simulate.optics import draw_optics
from emdn_train.simulate.scene import make_scene


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Processor time: what one core does, whatever else the machine is at.
@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("kind", ["graphene", "mixed", "stem"])
def test_pairs(benchmark: BenchmarkFixture, tmp_path: Path, kind: str) -> None:
    """Whole pairs of 256 x 256 on one core, four images an exit wave, written to HDF5."""
    frames = 48
    config = SimulateConfig(tmp_path, kind=kind)
    jobs = iter(
        shard.Job(config, "train", 1000 * k, frames, tmp_path / f"{k}.h5") for k in range(99)
    )
    benchmark.pedantic(lambda: shard.run(next(jobs)), rounds=3, iterations=1, warmup_rounds=1)
    benchmark.extra_info["pairs_per_second"] = round(frames / benchmark.stats["min"], 1)


def test_image_of_an_exit_wave(benchmark: BenchmarkFixture) -> None:
    """One more image of a graphene exit wave."""
    rng = np.random.default_rng(0)
    scene = make_scene("graphene", 256, (0.012, 0.012), rng)
    wave = hrtem.exit_wave(scene.structure, scene.field, 80.0)
    benchmark(lambda: hrtem.image(wave, scene.field, draw_optics(rng, 80.0)))


@pytest.mark.parametrize("detector", noise.DETECTORS)
def test_noise(benchmark: BenchmarkFixture, detector: str) -> None:
    """A training batch of noise: 32 patches of 64 x 64."""
    clean, electrons = torch.ones(32, 1, 64, 64), torch.full((32,), 80.0)
    generator = torch.Generator().manual_seed(0)
    benchmark(lambda: noise.draw(clean, electrons, detector, generator, field=256))


def test_training_step_that_noise_feeds(benchmark: BenchmarkFixture) -> None:
    """Forward and backward of the fastest shipped net on the same batch, no optimiser."""
    net = build("unet", "shipped")
    batch = torch.ones(32, 1, 64, 64)

    def step() -> None:
        net.zero_grad()
        net(batch).square().mean().backward()

    benchmark(step)
