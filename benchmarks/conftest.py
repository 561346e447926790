"""What benchmarks share, and the tables at the end of a run."""

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--file-seconds",
        type=float,
        default=1.5,
        help="seconds of computation that the file of test_boundaries holds (default: 1.5)",
    )


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    session = getattr(config, "_benchmarksession", None)
    if session is None or not any("table" in one.extra_info for one in session.benchmarks):
        return
    # Every run of the tests would pay for these.
    from benchmarks import engines, tables
    from emdn_deploy.bench import machine

    facts = machine.facts("torch", "openvino")
    for name, table in tables.collect(session.benchmarks).items():
        head = [machine.line(facts), *tables.notes(name, engines.absent())]
        terminalreporter.write_line(f"\n{name}")
        terminalreporter.write_line(tables.save(RESULTS, name, table, head))
    (RESULTS / "machine.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    terminalreporter.write_line(f"saved in {RESULTS}")


@pytest.fixture(scope="session")
def ring():
    """Noisy frames, (16, 256, 256) float32."""
    from emdn_deploy.bench.frames import noisy

    return noisy(16, 256, 256)


@pytest.fixture(scope="session")
def roof(tmp_path_factory):
    """Give the GFLOP/s of a 64 -> 64 convolution, on a device, by all threads."""
    from functools import cache

    from benchmarks import roofline
    from emdn_deploy.bench.frames import noisy
    from emdn_deploy.bench.rounds import in_turn, warm

    frame = noisy(1, roofline.SIDE, roofline.SIDE)

    @cache
    def measure(device: str) -> float:
        session = roofline.opened(roofline.conv(tmp_path_factory.mktemp("roof")), device)
        call = lambda: session.run(frame, 1.0, 0.0, 1.0)  # noqa: E731
        warm(call)
        times = sorted(in_turn({"": call}, 50, 2.0)[""])
        return roofline.conv_gflop() / times[len(times) // 2]

    return measure


@pytest.fixture(scope="session")
def gain(tmp_path_factory):
    """Give a model's gain in dB on the multislice part of the fixed test split, once."""
    from functools import cache

    from benchmarks import testset

    folder = tmp_path_factory.mktemp("testset")
    return cache(lambda case: testset.gain_db(case.open(), folder))
