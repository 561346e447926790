"""Many processes: the same frames as one, whatever ends in the middle of it."""

import re
import shutil
import signal
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


def record(path):
    """Return the record of an output, but for what differs from run to run."""
    own = ("date", "threads", "batch", "parts", "part_files")
    with h5py.File(path) as file:
        return {key: one for key, one in file["emdn"].attrs.items() if key not in own}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (".h5", []),
        (".h5", ["--join"]),
        pytest.param(".h5", ["--sigma", "--dtype", "uint16"], marks=SLOW),
        pytest.param(".h5", ["--compress", "--frames", "1:20:2"], marks=SLOW),
        pytest.param(".tif", ["--sigma", "--join"], marks=SLOW),
    ],
)
def test_frames_and_record_are_those_of_one_process(
    call, workers, movie, movie_model, kind, words
) -> None:
    common = ["denoise", movie, "--model", movie_model, "--device", "cpu", *words]
    one, many = (movie.with_name(f"{name}{kind}") for name in ("one", "many"))
    assert call(*[word for word in common if word != "--join"], "-o", one) == 0
    assert call(*common, "-o", many, "--scheduler", workers) == 0
    np.testing.assert_array_equal(pixels(many), pixels(one))
    if "--sigma" in words:
        beside = [path.with_name(f"{path.stem}_sigma.tif") for path in (one, many)]
        places = [(one, "/scan/frames_sigma"), (many, "/scan/frames_sigma")]
        places = [(path, None) for path in beside] if kind == ".tif" else places
        np.testing.assert_array_equal(*(pixels(*place) for place in places))
    assert len(folders(many)) == ("--join" not in words)
    if kind == ".h5":
        assert record(many) == {key: pytest.approx(value) for key, value in record(one).items()}
    if not words:
        with h5py.File(many) as file:
            assert file["scan/frames"].attrs["note"] == "mine"
        (folder,) = folders(many)
        names = [f"{start:09}-{min(22, start + 4):09}.h5" for start in range(0, 22, 4)]
        assert sorted(one.name for one in folder.iterdir()) == names
        (moved := many.parent / "moved").mkdir()
        for path in (many, folder):
            shutil.move(path, moved)
        np.testing.assert_array_equal(pixels(moved / many.name), pixels(one))


@pytest.mark.slow
def test_workers_of_this_machine_ignore_ctrl_c(movie, movie_model, expected, tmp_path) -> None:
    options = DenoiseOptions(output=tmp_path / "many.h5", model=str(movie_model), device="cpu")
    with cluster.connected(None, 1, 1, join=False) as elsewhere:
        ignored = elsewhere._client.run(lambda: signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
        denoise_file.run(movie, options, elsewhere=elsewhere)
    assert list(ignored.values()) == [True]
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


def test_a_lost_part_alone_is_made_again(workers, movie, movie_model, expected) -> None:
    target = movie.with_name("many.h5")
    run(movie, target, movie_model, workers)
    (folder,) = folders(target)
    (folder / "000000008-000000012.h5").unlink()
    assert np.isnan(pixels(target)[8:12]).all()
    others = {one: one.stat().st_mtime_ns for one in folder.glob("*.h5")}
    with pytest.raises(EmdnError, match="exists already; add --overwrite"):
        run(movie, target, movie_model, workers)
    assert run(movie, target, movie_model, workers, overwrite=True).resumed == 18
    np.testing.assert_array_equal(pixels(target), expected)
    assert {one: one.stat().st_mtime_ns for one in others} == others


@pytest.mark.slow
def test_a_scheduler_that_ends(workers, movie, movie_model, expected) -> None:
    target = movie.with_name("many.h5")
    with distributed.LocalCluster(n_workers=1, dashboard_address="127.0.0.1:0") as own:
        said = r"scheduler is gone.* the same command goes on from there"
        with pytest.raises(EmdnError, match=said):
            run(movie, target, movie_model, own.scheduler_address, own.close)
    assert not target.exists()
    report = run(movie, target, movie_model, workers)
    assert report.resumed >= 4  # or more: the worker went on for a while
    np.testing.assert_array_equal(pixels(target), expected)


def test_a_file_that_workers_cannot_see(
    workers, call, movie, box_model, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(movie.parent)
    # Under this name each process sees its own working folder.
    here = Path("/proc/self/cwd")
    words = ["--scheduler", workers, "--model", box_model]
    for source, target, said in [
        (here / "movie.h5", movie.parent, "sees no file /proc/self/cwd/movie.h5; every worker"),
        (movie, here, r"\[Errno 2\] No .* '/proc/self/cwd/\S+'; every worker"),
    ]:
        assert call("denoise", source, "-o", target / "many.h5", *words) == 1
        assert re.match(rf"error: worker tcp\S+: {said}", capsys.readouterr().err.strip())
    assert [one.name for one in movie.parent.iterdir()] == ["movie.h5"]


def test_what_is_refused(workers, call, movie, box_model, capsys, tmp_path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((2, 40, 44), "u2"), photometric="minisblack")
    with h5py.File(tmp_path / "scan.h5", "w") as scan:
        scan["data"] = np.ones((2, 3, 40, 44), "u2")
    many = ["--scheduler", workers, "--model", box_model]
    for words, status, said in [
        (["a.tif", *many], 1, r"a_denoised.tif: cannot refer to parts \(frames qyx\); add --join"),
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
