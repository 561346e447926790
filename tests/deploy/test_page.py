"""The page of a run: what it holds, how large it may be, and that a browser plays it."""

import base64
import json
import os
import re
import select
import shutil
import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emdn_deploy.dose import NO_NOISE, Intensity
from emdn_deploy.page import RunPage, Verdicts
from emdn_deploy.readers.frames import Axis, Frames

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
SCALE = Intensity(20.0, 2.0, 3.0, 2 * 20**0.5, "")
AXES = (Axis("time", "s", 0.5, 1.0), Axis("y", "nm", 0.02), Axis("x", "nm", 0.02))
FOUND = Verdicts("FAIL: 1 of 12 frames flagged", {9: "over-smoothed"}, [2])


def opened(count: int, *size: int, axes: tuple[Axis, ...] = AXES) -> Frames:
    def read(start: int, stop: int) -> np.ndarray:
        seeds = map(np.random.default_rng, range(start, stop))
        noise = [rng.standard_normal(size, np.float32) for rng in seeds]
        return 43 + np.float32(SCALE.sigma) * np.stack(noise)

    return Frames(
        Path("movie.h5"), "test", (count, *size), np.dtype("f4"), "tyx", (count, *size), axes,
        read, lambda: None,
    )  # fmt: skip


def page_of(frames: Frames, verdicts: Verdicts = FOUND, **changes: Any) -> str:
    page = RunPage(frames, changes.get("scale", SCALE))
    after = changes.get("after", lambda start, stop: np.full_like(frames.read(start, stop), 43))
    page.take(page.numbers, frames.read, after)
    page.take(page.more(verdicts), frames.read, after)
    return page.html(frames.path.name, verdicts, ["frames     12 <all>"], "<h2>More</h2>")


def data(text: str) -> dict[str, Any]:
    return json.loads(re.search(r'id="data">(.*?)</script>', text)[1])


def grey(picture: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(picture))), np.float64)


def test_the_page_holds_frames_verdicts_time_and_dose() -> None:
    frames = opened(12, 40, 64)
    text = page_of(frames)
    assert '<div class="verdict fail">FAIL: 1 of 12 frames flagged</div>' in text
    assert "frames     12 &lt;all&gt;" in text
    assert "<h2>More</h2>" in text
    assert not re.search(r"(src|href)=|url\(|@import|https?:|__[A-Z]+__", text)
    found = data(text)
    assert found["cells"] == "001000000200"
    assert [one["number"] for one in found["frames"]] == list(range(12))
    assert [one["words"] for one in found["frames"]][8:10] == ["within noise", "over-smoothed"]
    assert found["frames"][2]["words"] == "not judged"
    assert found["time"] == [1.0, 0.5, "s"]
    assert found["bar"] == [pytest.approx(0.2 / 0.02 / 64), "0.2 nm"]
    raw = frames.read(0, 12)
    np.testing.assert_allclose(found["means"][0], raw.mean(axis=(1, 2)), rtol=1e-4)
    electrons = (raw.mean(dtype=np.float64) - 3) / 2
    assert found["dose"][-1] == pytest.approx(12 * electrons / 0.04, rel=1e-4)  # e / Å²
    # White noise has as much power as there are electrons, at all frequencies but the lowest.
    power = 10 ** np.array([one["power"] for one in found["frames"]])
    np.testing.assert_allclose(power[:, 0, 4:].mean(axis=0), 20, rtol=0.25)
    assert found["frequency"][-1] == pytest.approx(0.5 / 0.02, rel=0.05)  # 1 / nm


def test_the_frames_of_a_page_are_those_of_the_stack() -> None:
    frames = opened(3, 32, 48)
    ramp = np.linspace(40, 46, 48, dtype=np.float32)
    found = data(page_of(frames, Verdicts(), after=lambda a, b: np.tile(ramp, (b - a, 32, 1))))
    one, (slope, offset, least, levels) = found["frames"][1], found["noise"]
    clean = one["low"] + grey(one["after"]) / 255 * (one["high"] - one["low"])
    np.testing.assert_allclose(clean, np.tile(ramp, (32, 1)), atol=0.05)
    noise = np.sqrt(np.maximum(slope * (clean - offset), least))
    noisy = clean + (grey(one["difference"]) - 128) / levels * noise
    np.testing.assert_allclose(noisy, frames.read(1, 2)[0], atol=0.2 * 9)  # a fifth of the noise
    assert found["cells"] == "111"
    assert grey(found["slices"][1]).shape == (3, 48)


@pytest.mark.parametrize(
    ("count", "size", "flagged"),
    [
        (3000, (32, 48), 40),
        (16, (512, 512), 16),
        (2, (2100, 1500), 1),
        (1, (1, 1), 1),
        (4, (3, 9), 0),
    ],
)
def test_the_page_is_small_for_any_stack(count: int, size: tuple[int, int], flagged: int) -> None:
    bad = dict.fromkeys(range(count - flagged, count), "noise left in")
    frames = opened(count, *size)

    def uneven(start: int, stop: int) -> np.ndarray:  # which no file compresses
        return 100 * np.random.default_rng(start).random((stop - start, *size), np.float32)

    text = page_of(frames, Verdicts("WARN: some", bad), after=uneven)
    assert len(text) < 10_000_000
    found = data(text)
    shown = [one["number"] for one in found["frames"]]
    assert shown[0] == 0
    assert max(np.diff([*shown, count])) <= max(1, count // 2)
    assert bad.keys() & shown or not flagged
    assert len(found["cells"]) == min(count, 1000)
    assert grey(found["frames"][0]["after"]).size <= 512**2


def test_frames_without_values_noise_or_calibration_can_be_shown() -> None:
    bare = opened(3, 16, 16, axes=(Axis(), Axis(), Axis()))
    empty = Intensity(1.0, 1.0, 4.0, 0.0, NO_NOISE)
    gone = lambda start, stop: np.full((stop - start, 16, 16), np.nan)  # noqa: E731
    found = data(page_of(bare, Verdicts(), scale=empty, after=gone))
    assert (found["time"], found["bar"], found["dose"]) == (None, None, [])


def test_no_name_breaks_the_page() -> None:
    frames = opened(1, 8, 8)
    text = RunPage(frames, SCALE)
    text.take([0], frames.read, frames.read)
    name = "</script><b>__DATA__"
    words = Verdicts("FAIL: </script>", {0: name})
    page = text.html(name, words)
    assert page.count("</script>") == 2
    assert "<h1>&lt;/script&gt;&lt;b&gt;__DATA__</h1>" in page
    assert data(page)["frames"][0]["words"] == name


def test_a_run_says_what_its_check_flagged(tmp_path, lattice, dimming, run) -> None:
    np.save(tmp_path / "movie.npy", lattice(40.0, (8, 64, 64)).astype(np.uint16))
    done = run(tmp_path / "movie.npy", model=str(dimming), report=tmp_path / "run.html")
    text = done.pictures["report"].read_text(encoding="utf-8")
    assert '<div class="verdict fail">FAIL: 8 of 8 frames flagged' in text
    assert data(text)["cells"] == "2" * 8
    assert "the model&#x27;s" in text
    assert re.search("the model's mean out / mean in 0.9", data(text)["frames"][3]["words"])


class Browser:
    """A headless browser, asked through its pipe in the DevTools protocol."""

    def __init__(self, page: Path) -> None:
        (from_here, self.to), (self.back, from_there) = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,2000"]
        command = [f'exec "$@" 3<&{from_here} 4>&{from_there}', "bash", str(BROWSER), *flags]
        self.process = subprocess.Popen(
            ["bash", "-c", *command, "--remote-debugging-pipe", "about:blank"],
            pass_fds=(from_here, from_there), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(from_here), os.close(from_there)
        self.count, self.buffer, self.complaints = 0, b"", list[str]()
        self.session = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Page.navigate", url=page.as_uri())

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        own = {"sessionId": self.session} if self.session else {}
        os.write(self.to, json.dumps(message | own).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                ready = select.select([self.back], [], [], 60)[0]
                got = os.read(self.back, 1 << 20) if ready else b""
                assert got, f"no answer to {method}"
                self.buffer += got
            text, self.buffer = self.buffer.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("id") == self.count:
                return answer["result"]
            self.note(answer["method"], answer.get("params", {}))

    def note(self, method: str, params: dict[str, Any]) -> None:
        if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(json.dumps(params))
        elif method == "Network.requestWillBeSent":
            address = params["request"]["url"]
            if not address.startswith(("data:", "file:")):
                self.complaints.append(address)

    def value(self, code: str) -> Any:
        """Return what an expression is when the page has drawn."""
        done = "new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))"
        code = f"{done}.then(() => ({code}))"
        found = self.ask("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        return found["result"].get("value")

    def pixels(self, name: str) -> str:
        return self.value(f"document.getElementById('{name}').toDataURL()")

    def mouse(self, kind: str, name: str, share: float, pressed: int = 1) -> None:
        box = self.value(f"document.getElementById('{name}').getBoundingClientRect().toJSON()")
        self.ask(
            "Input.dispatchMouseEvent", type=kind, x=box["x"] + share * box["width"],
            y=box["y"] + box["height"] / 3, button="left", buttons=pressed, clickCount=1,
        )  # fmt: skip

    def click(self, name: str, share: float) -> None:
        self.mouse("mousePressed", name, share)
        self.mouse("mouseReleased", name, share, 0)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.to), os.close(self.back)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    (tmp_path / "run.html").write_text(page_of(opened(12, 40, 64)), encoding="utf-8")
    found = Browser(tmp_path / "run.html")
    yield found
    found.close()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_plays_the_page(browser: Browser) -> None:
    where = "document.getElementById('where').textContent"
    names = ("strip", "wipe", "difference", "power", "slice", "course", "dose")
    for _ in range(50):
        if browser.value(where):
            break
    assert browser.value(where) == "frame 9 of 12, 5.5 s: over-smoothed"  # the flagged one
    first = {name: browser.pixels(name) for name in names}
    assert all(len(one) > 1000 for one in first.values())
    # The slider changes frame, strip, spectra and the marks in time.
    browser.value("(slider => { slider.value = 8; slider.oninput(); })(at('slider'))")
    assert browser.value(where).startswith("frame 8 of 12")
    assert all(browser.pixels(name) != first[name] for name in names)
    # Dragging wipes: all the way to the left nothing is left of the frame before.
    before = browser.pixels("wipe")
    browser.mouse("mousePressed", "wipe", 0.5)
    browser.mouse("mouseMoved", "wipe", 0.25)
    quarter = browser.pixels("wipe")
    browser.mouse("mouseMoved", "wipe", 0.001)
    browser.mouse("mouseReleased", "wipe", 0.001, 0)
    assert len({before, quarter, browser.pixels("wipe")}) == 3
    sides = "at('wipe').getContext('2d').getImageData(40, 60, 200, 1).data"
    assert browser.value(f"new Set({sides}).size") <= 2  # flat grey, and opaque
    # A click on the strip goes to the frame, and says what was found in it.
    browser.click("strip", 9.5 / 12)
    assert browser.value(where) == "frame 9 of 12, 5.5 s: over-smoothed"
    assert browser.value("at('where').className") == "flagged"
    browser.click("slice", 0.5)
    assert re.match("frame [34] of 12", browser.value(where))
    browser.click("same", 0.5)
    assert browser.value("at('same').checked")
    assert browser.complaints == []
