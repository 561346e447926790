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
        help="seconds of computation that the file of test_boundaries takes (default: 1.5)",
    )


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    session = getattr(config, "_benchmarksession", None)
    if session is None or not any("table" in one.extra_info for one in session.benchmarks):
        return
    # Every run of the tests would pay for these.
    from benchmarks import peers, tables
    from emdn_deploy import bench

    facts = bench.machine("torch", "openvino")
    for name, table in tables.collect(session.benchmarks).items():
        by = "By `make bench`, with the shipped weights."
        head = [by, bench.machine_line(facts), *tables.notes(name, peers.absent())]
        terminalreporter.write_line(f"\n{name}")
        terminalreporter.write_line(tables.save(RESULTS, name, table, head))
    (RESULTS / "machine.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    terminalreporter.write_line(f"saved in {RESULTS}")


@pytest.fixture(scope="session")
def ring():
    """Noisy frames, (16, 256, 256) float32."""
    from emdn_deploy.bench import noisy

    return noisy(16, 256, 256)
