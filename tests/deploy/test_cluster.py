"""Many processes: the same frames as one, whatever ends in the middle of it."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from emdn_deploy import cluster, denoise_file, readers
from emdn_deploy.cluster import folders
from emdn_deploy.config import DenoiseOptions
from emdn_deploy.readers import Choice
from emdn_models.errors import EmdnError

distributed = pytest.importorskip("distributed")
FRAME = 40 * 44 * 4

# Sockets and loops that distributed closes late.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def workers():
    """Start two workers, each a process of its own, that are started again when they end."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0"
    ) as started:
        yield started.scheduler_address


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Make parts of four frames of `movie`."""
    monkeypatch.setattr(cluster, "SMALLEST_PART", 4 * FRAME)
    monkeypatch.setattr(cluster, "LARGEST_PART", 4 * FRAME)


@pytest.fixture
def movie(lattice, tmp_path):
    """Make 22 frames of counts in HDF5, with dropped frames and a hot pixel."""
    frames = lattice(20.0, (22, 40, 44)).astype("u2")
    frames[3:5], frames[17], frames[:, 5, 6] = 0, 0, 999
    with h5py.File(tmp_path / "movie.h5", "w") as file:
        data = file.create_dataset("scan/frames", data=frames, chunks=(1, 40, 44))
        data.attrs["note"] = "mine"
    return tmp_path / "movie.h5"


def pixels(path, dataset=None):
    with readers.open_frames(path, Choice(dataset)) as frames:
        return frames.read_block(0, frames.shape[0])


@pytest.fixture
def both(call, workers, tmp_path, movie_model):
    """Denoise by one process and by two workers, and return both outputs."""

    def denoise(source, target, *words):
        common = ["denoise", source, "--model", movie_model, "--device", "cpu", *words]
        made = [tmp_path / f"{name}{target}" for name in ("one", "many")]
        assert call(*[word for word in common if word != "--join"], "-o", made[0]) == 0
        assert call(*common, "-o", made[1], "--scheduler", workers) == 0
        return made

    return denoise


def records(paths):
    """Return the record of each output, but for what differs from run to run."""
    found = []
    for path in paths:
        with h5py.File(path) as file:
            own = ("date", "threads", "batch", "parts", "part_files")
            found.append({key: one for key, one in file["emdn"].attrs.items() if key not in own})
    return found


@pytest.mark.parametrize("join", [[], ["--join"]])
def test_frames_and_record_are_those_of_one_process(both, movie, join) -> None:
    one, many = both(movie, ".h5", *join)
    np.testing.assert_array_equal(pixels(many), pixels(one))
    first, second = records([one, many])
    assert second == {key: pytest.approx(value) for key, value in first.items()}
    with h5py.File(many) as file:
        assert file["scan/frames"].attrs["note"] == "mine"
        assert file["scan/frames"].is_virtual == (not join)
    (folder,) = folders(many) or [None]
    if join:
        assert folder is None
    else:
        names = [f"{start:09}-{min(22, start + 4):09}.h5" for start in range(0, 22, 4)]
        assert sorted(one.name for one in folder.iterdir()) == names
        moved = many.parent / "moved"
        moved.mkdir()
        for path in (many, folder):
            shutil.move(path, moved)
        np.testing.assert_array_equal(pixels(moved / many.name), pixels(one))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "words"),
    [
        (".h5", ["--sigma", "--dtype", "uint16", "--batch", "3"]),
        (".h5", ["--compress", "--frames", "1:20:2"]),
        (".h5", ["--sigma", "--compress", "--join"]),
        (".tif", ["--sigma", "--join"]),
    ],
)
def test_every_kind_of_output(both, movie, target, words) -> None:
    one, many = both(movie, target, *words)
    np.testing.assert_array_equal(pixels(many), pixels(one))
    if "--sigma" not in words:
        return
    if target == ".tif":
        one, many = (path.with_name(f"{path.stem}_sigma.tif") for path in (one, many))
        np.testing.assert_array_equal(tifffile.imread(many), tifffile.imread(one))
    else:
        both_sigma = [pixels(path, "/scan/frames_sigma") for path in (one, many)]
        np.testing.assert_array_equal(*both_sigma)


@pytest.mark.slow
def test_workers_of_this_machine_ignore_ctrl_c(movie, movie_model, expected, tmp_path) -> None:
    seen = []
    options = DenoiseOptions(output=tmp_path / "many.h5", model=str(movie_model), device="cpu")
    with cluster.connected(None, 1, 1, join=False) as elsewhere:
        ignored = elsewhere._client.run(lambda: signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
        denoise_file.run(movie, options, lambda *done: seen.append(done), elsewhere=elsewhere)
    assert list(ignored.values()) == [True]
    assert seen == [(done, 22) for done in (0, 4, 8, 12, 16, 20, 22)]
    np.testing.assert_array_equal(pixels(tmp_path / "many.h5"), expected)


def run(source, target, model, address, disturb=None, **options):
    """Denoise by workers, and disturb them once when the first frames are done."""

    def progress(done, count):
        nonlocal disturb
        if done and disturb:
            disturb, doing = None, disturb
            doing()

    with cluster.connected(address, None, None, join=False) as elsewhere:
        given = DenoiseOptions(output=target, model=str(model), device="cpu", **options)
        return denoise_file.run(source, given, progress, elsewhere=elsewhere)


@pytest.fixture
def expected(movie, movie_model):
    """Give the frames that one process makes."""
    options = DenoiseOptions(
        output=movie.with_name("expected.h5"), model=str(movie_model), device="cpu"
    )
    return pixels(denoise_file.run(movie, options).output)


@pytest.mark.slow
def test_a_killed_worker_costs_nothing(workers, movie, movie_model, expected) -> None:
    target = movie.with_name("many.h5")
    with distributed.Client(workers, set_as_default=False) as client:

        def kill():
            os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)

        report = run(movie, target, movie_model, workers, kill)
    np.testing.assert_array_equal(pixels(target), expected)
    assert report.resumed == 0
    (folder,) = folders(target)
    assert len(list(folder.glob("*.h5"))) == 6


def test_a_lost_part_is_made_again_by_the_same_command(
    workers, movie, movie_model, expected
) -> None:
    target = movie.with_name("many.h5")
    run(movie, target, movie_model, workers)
    (folder,) = folders(target)
    (folder / "000000008-000000012.h5").unlink()
    assert np.isnan(pixels(target)[8:12]).all()
    others = {one: one.stat().st_mtime_ns for one in folder.glob("*.h5")}
    report = run(movie, target, movie_model, workers)
    assert report.resumed == 18
    np.testing.assert_array_equal(pixels(target), expected)
    assert {one: one.stat().st_mtime_ns for one in others} == others
    with pytest.raises(EmdnError, match="exists already; add --overwrite"):
        run(movie, target, movie_model, workers)


@pytest.mark.slow
def test_a_part_that_goes_during_the_run(workers, movie, movie_model, expected) -> None:
    target = movie.with_name("many.h5")

    def lose():
        next(folders(target)[0].glob("*[0-9].h5")).unlink()

    with pytest.raises(EmdnError, match="was made and is gone; the same command makes it again"):
        run(movie, target, movie_model, workers, lose)
    assert not target.exists()
    assert run(movie, target, movie_model, workers).resumed >= 16
    np.testing.assert_array_equal(pixels(target), expected)


@pytest.fixture
def own_scheduler(tmp_path):
    """Start a scheduler and a worker by dask's commands, and again at the same address."""
    begun, address = [], []

    def start():
        for process in begun:
            process.kill()
        port = address[0].rsplit(":", 1)[1] if address else "0"
        file = tmp_path / f"scheduler{len(begun)}.json"
        dask = [sys.executable, "-m", "dask"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
        scheduler = [*dask, "scheduler", "--port", port, "--no-dashboard", "--host", "127.0.0.1"]
        begun.append(subprocess.Popen([*scheduler, "--scheduler-file", file], **quiet))
        worker = [*dask, "worker", "--no-dashboard", "--nthreads", "2", "--no-nanny"]
        begun.append(subprocess.Popen([*worker, "--scheduler-file", file], **quiet))
        with distributed.Client(scheduler_file=str(file), timeout=60, set_as_default=False) as one:
            one.wait_for_workers(1)
            address[:] = [one.scheduler.address]
        return begun[-2], address[0]

    yield start
    for process in begun:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_scheduler_that_restarts(own_scheduler, movie, movie_model, expected) -> None:
    scheduler, address = own_scheduler()
    target = movie.with_name("many.h5")
    with pytest.raises(EmdnError, match=r"scheduler is gone.* the same command goes on from there"):
        run(movie, target, movie_model, address, scheduler.kill)
    assert not target.exists()
    _, again = own_scheduler()
    report = run(movie, target, movie_model, again)
    assert report.resumed >= 4  # or more: the worker went on for a while
    np.testing.assert_array_equal(pixels(target), expected)


def test_a_file_that_workers_cannot_see(
    workers, call, movie, box_model, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(movie.parent)
    # Under this name each process sees its own working folder.
    here = Path("/proc/self/cwd")
    words = ["--scheduler", workers, "--model", box_model]
    assert call("denoise", here / "movie.h5", "-o", movie.parent / "many.h5", *words) == 1
    said = capsys.readouterr().err.strip()
    assert re.fullmatch(
        r"error: worker tcp\S+: sees no file /proc/self/cwd/movie.h5; every worker needs emdn "
        r"\S+, and must see input and output under these paths \(2 of 2 workers\)", said,
    )  # fmt: skip
    assert call("denoise", movie, "-o", here / "many.h5", *words) == 1
    said = capsys.readouterr().err
    assert re.search(r"error: worker \S+: \[Errno 2\] No .* '/proc/self/cwd/\S+'; every", said)
    assert [one.name for one in movie.parent.iterdir()] == ["movie.h5"]


def test_what_is_refused(workers, call, movie, box_model, capsys, tmp_path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((2, 40, 44), "u2"), photometric="minisblack")
    with h5py.File(movie) as file, h5py.File(tmp_path / "last.h5", "w") as last:
        last["data"] = np.moveaxis(file["scan/frames"][()], 0, -1)
    with h5py.File(tmp_path / "scan.h5", "w") as scan:
        scan["data"] = np.ones((2, 3, 40, 44), "u2")
    many = ["--scheduler", workers, "--model", box_model]
    for words, status, said in [
        (["a.tif", *many], 1, r"a_denoised.tif: cannot refer to parts \(frames qyx\); add --join"),
        (["last.h5", "--axes", "yxt", *many], 1, r"parts \(frames yxt\); add --join"),
        (["scan.h5", *many], 1, r"parts \(frames utyx\); add --join"),
        (["movie.h5", "--workers", 2, *many], 2, "give one of --scheduler and --workers"),
        (["movie.h5", "--join"], 2, "--join is for"),
    ]:
        assert call("denoise", tmp_path / words[0], *words[1:]) == status
        assert re.search(said, " ".join(re.sub("[│╭╮╯╰─]", " ", capsys.readouterr().err).split()))


def test_what_an_overwritten_output_referred_to_goes(workers, movie, box_model, call) -> None:
    target, many = movie.with_name("many.h5"), ["--scheduler", workers, "--model", box_model]
    for words in ([], ["--overwrite", "--gain", 1], ["--overwrite", "--join"]):
        assert call("denoise", movie, "-o", target, *words, *many) == 0
        assert len(folders(target)) == ("--join" not in words)


@pytest.mark.slow
def test_without_a_scheduler_or_workers(call, movie, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE", 1)
    assert call("denoise", movie, "--scheduler", "tcp://127.0.0.1:9") == 1
    assert "tcp://127.0.0.1:9: no dask scheduler with workers answers" in capsys.readouterr().err
    with distributed.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as empty:
        assert call("denoise", movie, "--scheduler", empty.scheduler_address) == 1
    assert "scheduler with workers answers" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert call("denoise", movie, "--workers", 2) == 1
    assert 'needs distributed; pip install ".[dask]"' in capsys.readouterr().err


@pytest.mark.slow
def test_what_a_worker_finds_wrong_is_one_line(workers, movie, movie_model) -> None:
    target = movie.with_name("many.h5")

    def change():
        os.utime(movie)

    with pytest.raises(EmdnError, match=r"movie.h5: was changed"):
        run(movie, target, movie_model, workers, change)
    assert not target.exists()
