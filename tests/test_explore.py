"""The page of `w2w explore`, driven in a real Chromium on the pico pipeline."""

import base64
import io
import json
import re
import shlex
import shutil
import socket
import struct
import time
import urllib.error
import urllib.request
import webbrowser
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from conftest import Ended
from w2wpp.base.model import BaseModel
from w2wpp.dataset.weights import WeightDataset
from w2wpp.exchange.formats.peft import read_peft
from w2wpp.lora.layout import Layout
from w2wpp.photos import faces
from w2wpp.photos.images import read_image, write_image
from w2wpp.spaces.pca import PcaSpace

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
if not CHROMIUM:
    pytest.skip("no Chromium: apt-get install chromium", allow_module_level=True)
pytest.importorskip("gradio", reason="no Gradio: pip install 'w2wpp[explore]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")

from w2wpp.explore import ROOT  # noqa: E402
from w2wpp.explore.page import build, launch  # noqa: E402
from w2wpp.explore.studio import Studio  # noqa: E402

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
)
PATIENCE = 120_000  # milliseconds, on a machine of any speed


class Recogniser:
    """A face in the middle of every picture that is not black, embedded as its mean colours: no network is loaded."""

    def detect(self, image: Any) -> list[faces.Face]:
        if not image.any():
            return []
        height, width = image.shape[:2]
        points = np.array([[0.35, 0.4], [0.65, 0.4], [0.5, 0.55], [0.4, 0.74], [0.6, 0.74]], np.float32) * (width, height)
        return [faces.Face((0, 0, width, height), 1.0, points.astype(np.float32))]

    def embed(self, image: Any, face: faces.Face) -> Any:
        colours = np.append(image.reshape(-1, 3).mean(0), 1).astype(np.float32)
        return colours / np.linalg.norm(colours)


@pytest.fixture(scope="module")
def studio(base: BaseModel, layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """A PCA of sixteen random adapters, half of them labelled as smiling and half as young, whose weights follow the labels."""
    folder = tmp_path_factory.mktemp("explore")
    data = WeightDataset.create(folder / "dataset", layout, base.id)
    smiling, young = torch.arange(16) % 2, torch.arange(16) // 2 % 2
    weights = 0.02 * torch.randn(16, layout.d, generator=torch.Generator().manual_seed(0))
    weights[:, :200] += 0.1 * smiling[:, None]
    weights[:, 200:400] += 0.1 * young[:, None]
    labels = [{"person": f"person-{i}", "smiling": int(s), "young": int(y)} for i, (s, y) in enumerate(zip(smiling, young, strict=True))]
    data.append(weights, [f"person-{i}" for i in range(16)], labels)
    PcaSpace.fit(data, m=6).save(folder / "space.safetensors")
    return Studio(base, PcaSpace.load(folder / "space.safetensors"), str(folder / "space.safetensors"), None, data)


@pytest.fixture(scope="module")
def address(studio: Studio) -> Iterator[str]:
    """Where the page is served."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faces, "MtcnnFaceNet", Recogniser)
        faces.default_recogniser.cache_clear()
        page = build(studio)
        yield launch(page, "127.0.0.1", None, browser=False, auth=None, share=False)
        page.close(verbose=False)
    faces.default_recogniser.cache_clear()


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def visitor(browser: Any, address: str) -> Iterator[Callable[[], Any]]:
    """Open the page as somebody else; it asks nobody but this machine for anything."""
    contexts, strangers = [], []

    def come() -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda asked: strangers.append(asked.url) if re.match(r"(http|ws)s?://(?!127\.0\.0\.1)", asked.url) else None)
        page.goto(address)
        page.wait_for_selector("#sheet img")
        return page

    yield come
    for context in contexts:
        context.close()
    assert not strangers


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def becomes(page: Any, name: str) -> None:
    """Wait until the current person is called so."""
    sync_api.expect(page.locator("#now figcaption")).to_have_text(name, timeout=PATIENCE)


def says(page: Any, where: str, text: str) -> None:
    """Wait until a part of the page holds a text, given as a pattern."""
    sync_api.expect(page.locator(where)).to_contain_text(re.compile(text), timeout=PATIENCE)


def commands(page: Any, where: str, text: str) -> str:
    """What the page offers as command, as soon as it holds a text, given as a pattern."""
    sync_api.expect(page.locator(f"{where} textarea")).to_have_value(re.compile(text), timeout=PATIENCE)
    return page.locator(f"{where} textarea").input_value()


def refused(page: Any, why: str) -> None:
    """Wait until the page says in one line why something was refused, and take that away."""
    toast = page.locator(".toast-body", has_text=re.compile(why))
    toast.wait_for()
    assert "\n" not in toast.locator(".toast-message-text").inner_text().strip()
    page.locator(".toast-close").first.click()
    toast.wait_for(state="detached")


def nothing_is_left() -> None:
    """Wait until no file of any visitor is on this machine."""
    eventually(lambda: not any(path.is_file() for path in ROOT.rglob("*")))


def noise(path: Path, seed: int = 0) -> Path:
    """A photo of nobody."""
    write_image(path, np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8))
    return path


def send(page: Any, where: str, *files: Path) -> None:
    page.locator(f"{where} input[type=file]").set_input_files(files)


def pixels(page: Any, where: str, row: int = 0) -> list[Any]:
    """The pictures of a row, as the page holds them."""
    urls = page.locator(f"{where} figure").nth(row).locator("img").evaluate_all("images => images.map(image => image.src)")
    return [np.array(PILImage.open(io.BytesIO(base64.b64decode(url.split(",")[1])))) for url in urls]


def pick(page: Any, i: int) -> None:
    page.locator("#sheet button").nth(i).click()
    becomes(page, f"sample-0-{i}")


def run_commands(text: str, w2w: Callable[..., Ended], name: str) -> list[Any]:
    """Run what the page says; the pictures of somebody in the last result."""
    ended = [w2w(*shlex.split(line)[1:], "--json") for line in text.splitlines() if line.startswith("w2w ")]
    folder = Path(ended[-1].json()["out"]) / "pictures" / name
    return [read_image(file) for file in sorted(folder.glob("*.png"), key=lambda file: int(file.stem))]


def same(ones: list[Any], others: list[Any]) -> bool:
    """Whether rows of pictures are the same, but for one of 255: a sum differs by a bit with its threads and its place in memory."""
    return len(ones) == len(others) > 0 and all(near(a, b) for a, b in zip(ones, others, strict=True))


def near(a: Any, b: Any) -> bool:
    return a.shape == b.shape and int(np.abs(a.astype(int) - b.astype(int)).max()) <= 1


def eventually(true: Callable[[], bool]) -> None:
    """Wait until something holds: parts of the page change one after the other."""
    end = time.monotonic() + PATIENCE / 1000
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def fill(field: Any, text: str) -> None:
    """Type into a field, and wait until it holds that."""
    field.fill(text)
    sync_api.expect(field).to_have_value(text, timeout=PATIENCE)


def choose(page: Any, where: str, name: str) -> None:
    """Choose from a list by typing, as with the keyboard."""
    box = page.locator(f"{where} input")
    fill(box, name)
    box.press("Enter")


def test_a_kept_sample_is_undone_and_redone_and_its_command_draws_the_same_pixels(
    visitor: Callable[[], Any], w2w: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = visitor()
    pick(page, 3)
    page.get_by_role("button", name="Undo").click()
    becomes(page, "sample-0-0")
    page.get_by_role("button", name="Redo").click()
    becomes(page, "sample-0-3")
    page.get_by_role("button", name="Add to favourites").click()
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # and again, over what the first run left
        drawn = run_commands(commands(page, "#command", "sample-0-3"), w2w, "sample-0-3")
        eventually(lambda: same(drawn, pixels(page, "#now")))  # noqa: B023
    pick(page, 1)
    choose(page, "#favourites", "sample-0-3")
    becomes(page, "sample-0-3")


def test_the_prompt_and_all_beside_it_draw_what_the_command_draws_and_the_seed_is_locked(
    visitor: Callable[[], Any], w2w: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = visitor()
    before = pixels(page, "#now")
    assert page.locator("#prompt textarea").count() == 1  # before its tab is chosen: mounting it later would lose what is typed
    tab(page, "Prompt")
    fill(page.locator("#prompt textarea"), "photo of a person")
    fill(page.locator("#negative textarea"), "person")
    fill(page.locator("#guidance input[type=number]"), "3.5")
    fill(page.locator("#image-seed input"), "7")
    page.get_by_role("button", name="Draw", exact=True).click()
    told = commands(page, "#command", "photo of a person.* 3.5 .*--seed 7 --negative-prompt person")
    eventually(lambda: not same(before, pixels(page, "#now")))
    monkeypatch.chdir(tmp_path)
    drawn = run_commands(told, w2w, "sample-0-0")
    eventually(lambda: same(drawn, pixels(page, "#now")))
    page.locator("#lock input").uncheck()
    page.get_by_role("button", name="Draw", exact=True).click()
    commands(page, "#command", r"--seed (?!7 )\d+ --neg")
    sync_api.expect(page.locator("#image-seed input")).not_to_have_value("7", timeout=PATIENCE)
    fill(page.locator("#image-seed input"), "")
    page.get_by_role("button", name="Draw", exact=True).click()
    refused(page, "should hold a number is empty")
    fill(page.locator("#image-seed input"), "0")
    fill(page.locator("#prompt textarea"), "photo of a person smiling and smiling and smiling")
    page.get_by_role("button", name="Draw", exact=True).click()
    refused(page, "Write a shorter one|does not know")


def test_two_visitors_never_see_each_others_person_though_both_undo_at_once(visitor: Callable[[], Any]) -> None:
    ada, grace = visitor(), visitor()
    for i in (5, 6, 7):
        pick(ada, i)
    for i in (1, 2, 3):
        pick(grace, i)
    for hers, the_others in ((6, 2), (5, 1)):
        for page in (ada, grace):
            page.get_by_role("button", name="Undo").click()
        becomes(ada, f"sample-0-{hers}")
        becomes(grace, f"sample-0-{the_others}")
    for page, mine in ((ada, 7), (grace, 3)):
        for _ in range(2):  # at once: each click counts
            page.get_by_role("button", name="Redo").click()
        becomes(page, f"sample-0-{mine}")


def test_overtaken_changes_of_a_slider_are_dropped(visitor: Callable[[], Any], studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    page = visitor()
    tab(page, "Edit")
    says(page, "#edited", "move a slider")
    begun, go, drawn, draw = Event(), Event(), [], Studio.draw_edited

    def held(*given: Any) -> Any:
        drawn.append(1)
        begun.set()
        assert go.wait(2 * PATIENCE / 1000)  # all keys are pressed meanwhile
        return draw(*given)

    monkeypatch.setattr(Studio, "draw_edited", held)
    slider = page.locator("input[type=range]:visible").first
    slider.press("ArrowRight")
    assert begun.wait(PATIENCE / 1000)
    for _ in range(19):
        slider.press("ArrowRight")
    sync_api.expect(slider).to_have_value("2", timeout=PATIENCE)
    go.set()
    commands(page, "#edit-command", "smiling=2 ")
    assert len(drawn) == 2  # the first, and the last


def test_an_edit_at_the_same_seeds_and_its_command_draw_the_same_pixels_and_it_can_be_kept(
    visitor: Callable[[], Any], w2w: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = visitor()
    pick(page, 4)
    tab(page, "Edit")
    says(page, "#edited", "sample-0-4: move a slider")
    numbers = page.locator("#edit-sliders input[type=number]")
    fill(numbers.nth(0), "2")
    commands(page, "#edit-command", "smiling=2 ")
    page.get_by_label("young", exact=True).check()
    commands(page, "#edit-command", "--debias young")
    fill(page.locator("#inject input[type=number]"), "0.5")
    told = commands(page, "#edit-command", "smiling=2 --debias young --inject-at 0.5")
    eventually(lambda: same(pixels(page, "#edited", 0), pixels(page, "#now")))
    eventually(lambda: not same(pixels(page, "#edited", 0), pixels(page, "#edited", 1)))
    monkeypatch.chdir(tmp_path)
    drawn = run_commands(told, w2w, "sample-0-4-edited")
    eventually(lambda: same(drawn, pixels(page, "#edited", 1)))
    page.get_by_role("button", name="Keep as current person").locator("visible=true").click()
    becomes(page, "sample-0-4-edited")
    drawn = run_commands(commands(page, "#command", "sample-0-4-edited"), w2w, "sample-0-4-edited")
    eventually(lambda: same(drawn, pixels(page, "#now")))
    says(page, "#edited", "sample-0-4-edited: move a slider")
    sync_api.expect(numbers.nth(0)).to_have_value("0", timeout=PATIENCE)
    page.get_by_role("button", name="Undo").click()
    says(page, "#edited", "sample-0-4: move a slider")


def test_a_principal_direction_moves_a_person_whose_exported_point_draws_the_same_pixels(
    visitor: Callable[[], Any], w2w: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = visitor()
    tab(page, "Edit")
    fill(page.locator("#edit-sliders input[type=number]").nth(2), "1.5")
    commands(page, "#edit-command", "no command moves along principal directions")
    eventually(lambda: not same(pixels(page, "#edited", 0), pixels(page, "#edited", 1)))
    page.get_by_role("button", name="Keep as current person").locator("visible=true").click()
    becomes(page, "sample-0-0-edited")
    told = commands(page, "#command", "# first export the point as sample-0-0-edited.safetensors")
    exported(page, "point", tmp_path)
    monkeypatch.chdir(tmp_path)
    drawn = run_commands(told, w2w, "sample-0-0-edited")
    eventually(lambda: same(drawn, pixels(page, "#now")))


def exported(page: Any, form: str, folder: Path) -> list[str]:
    """Write the current person as files and download them to a folder; their names."""
    page.locator("#files ul").evaluate_all("lists => lists.map(list => list.remove())")
    page.get_by_label(form, exact=True).check()
    page.get_by_role("button", name="Write files").click()
    page.locator("#files a").first.wait_for()
    names = []
    for link in page.locator("#files a").all():
        with page.expect_download() as coming:
            link.click()
        names.append(coming.value.suggested_filename)
        coming.value.save_as(folder / names[-1])
    nothing_is_left()
    return names


def test_an_export_in_each_format_is_read_again_by_peft_and_by_the_page(visitor: Callable[[], Any], studio: Studio, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    page = visitor()
    files = {form: exported(page, form, tmp_path / form) for form in ("peft", "diffusers", "kohya", "point")}
    assert files["point"] == ["sample-0-0.safetensors"] and "adapter_config.json" in files["peft"]
    layout, weights = read_peft(tmp_path / "peft")
    z = studio.space.sample(8, seed=0)[:1]
    assert layout == studio.space.layout and torch.allclose(weights, studio.decoded(z)[0])
    assert len(peft.utils.load_peft_weights(str(tmp_path / "peft"), device="cpu")) == len(layout.matrices)
    tab(page, "Adapter")
    send(page, "#adapter", *(tmp_path / "peft" / name for name in ("adapter_config.json", "adapter_model.safetensors")))
    becomes(page, "adapter")
    page.get_by_text("keeps 100%").wait_for()
    for form in ("kohya", "diffusers"):
        file = (tmp_path / form / "sample-0-0.safetensors").rename(tmp_path / f"{form}-file.safetensors")
        page.locator("#adapter").get_by_label("Clear").first.click()
        send(page, "#adapter", file)
        becomes(page, f"{form}-file")
    nothing_is_left()
    choose(page, "#row", "person-5")
    becomes(page, "person-5")


def test_a_photo_is_inverted_before_the_visitors_eyes_and_its_command_finds_the_same_person(
    visitor: Callable[[], Any], w2w: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, each = Event(), Studio.each

    def held(*given: Any) -> Any:
        if len(given[1]) == 1:  # a preview, and no sheet
            assert go.wait(PATIENCE / 1000)
            go.clear()
        return each(*given)

    page = visitor()
    tab(page, "Photo")
    send(page, "#photo", noise(tmp_path / "me.png"))
    page.wait_for_selector("#aligned canvas")
    nothing_is_left()
    monkeypatch.setattr(Studio, "each", held)
    page.get_by_role("button", name="Invert").click()
    says(page, "#inverted", "the inversion begins")
    for step in (1, 2, 3):
        go.set()
        says(page, "#inverted", rf"step {step} of 10: loss \d\.\d+")
        assert len(pixels(page, "#inverted")) == 2  # the photo, and what the point so far draws
        assert len(page.locator("#inverted polyline").get_attribute("points").split()) == step
        sync_api.expect(page.locator("#now figcaption")).to_have_text("sample-0-0")
    monkeypatch.setattr(Studio, "each", each)
    go.set()
    becomes(page, "me")
    says(page, "#inverted", r"before, where the inversion starts: ID Score .*after: ID Score")
    assert len(pixels(page, "#inverted", 1)) == len(pixels(page, "#inverted", 2)) == 4
    monkeypatch.chdir(tmp_path)
    made = run_commands(commands(page, "#command", "w2w invert"), w2w, "me")
    for mine, theirs in zip(pixels(page, "#now"), made, strict=True):  # threads may sum in another order
        assert np.abs(mine.astype(int) - theirs.astype(int)).max() <= 1


def test_a_mask_is_painted_and_cleared_and_what_it_leaves_out_does_not_count(visitor: Callable[[], Any], tmp_path: Path) -> None:
    page = visitor()
    tab(page, "Photo")
    send(page, "#photo", noise(tmp_path / "me.png"))
    box = page.locator("#aligned canvas").bounding_box()
    found = []
    for paint in (True, False):
        if paint:
            page.mouse.move(box["x"] + 60, box["y"] + 60)
            page.mouse.down()
            page.mouse.move(box["x"] + 120, box["y"] + 120, steps=4)
            page.mouse.up()
        else:
            page.get_by_role("button", name="Clear the mask").click()
        page.get_by_role("button", name="Invert").click()
        says(page, "#inverted", "after: ID Score")
        commands(page, "#command", "# first export the point as me" if paint else "w2w invert .* me.png")
        found.append(pixels(page, "#inverted", 2))
        page.locator("#inverted figure").evaluate_all("figures => figures.map(figure => figure.remove())")
    assert not same(*found)


def test_the_camera_gives_a_photo(visitor: Callable[[], Any]) -> None:
    page = visitor()
    tab(page, "Photo")
    page.locator("#photo").get_by_label("Capture from camera").click()
    page.locator("#photo").get_by_text(re.compile("access", re.I)).click()
    page.wait_for_function("() => { const v = document.querySelector('#photo video'); return v && v.videoWidth && v.currentTime > 0.5 }")
    page.locator("#photo").get_by_label("capture photo").click()
    page.wait_for_selector("#aligned canvas")
    nothing_is_left()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is of some size, and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")


def test_what_is_no_photo_is_refused_in_one_line_and_does_not_stay(visitor: Callable[[], Any], tmp_path: Path) -> None:
    page = visitor()
    tab(page, "Photo")
    (tmp_path / "script.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/owned) (w) file\n")
    (tmp_path / "huge.png").write_bytes(png_header(30_000, 30_000))
    (tmp_path / "large.jpg").write_bytes(bytes(33 * 2**20))
    write_image(tmp_path / "black.png", np.zeros((32, 32, 3), np.uint8))
    for name, why in (
        ("script.jpg", "script.jpg is not a readable picture"),
        ("huge.png", "900,000,000|huge.png is not a readable picture"),
        ("black.png", "no face was found"),
        ("large.jpg", "maximum|exceeds|size"),
    ):
        send(page, "#photo", tmp_path / name)
        refused(page, why)
        nothing_is_left()
    page.get_by_role("button", name="Invert").click()
    refused(page, "there is no photo")
    assert page.locator("#now figcaption").inner_text() == "sample-0-0"


def test_what_is_no_adapter_is_refused_in_one_line_and_does_not_stay(visitor: Callable[[], Any], tmp_path: Path) -> None:
    page = visitor()
    tab(page, "Adapter")
    (tmp_path / "noise.safetensors").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "long.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04\x95cposix\nsystem\n")
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    for names, why in (
        (["noise.safetensors"], "noise.safetensors: it does not begin as a safetensors file does"),
        (["long.safetensors"], "long.safetensors: it does not begin as a safetensors file does"),
        (["pickle.safetensors"], "pickle.safetensors is a pickle under another name"),
        (["adapter_config.json"], "give one .safetensors file"),
        (["adapter_config.json", "noise.safetensors"], "adapter_model.safetensors: it does not begin as a safetensors file does"),
    ):
        send(page, "#adapter", *(tmp_path / name for name in names))
        refused(page, why)
        nothing_is_left()
        page.locator("#adapter").get_by_label("Clear").first.click()
    assert page.locator("#now figcaption").inner_text() == "sample-0-0"


def test_a_forged_request_reads_no_file_of_this_machine_and_writes_none(visitor: Callable[[], Any], address: str, tmp_path: Path) -> None:
    page = visitor()
    secret = noise(tmp_path / "secret.png")
    for name in (str(secret), "../../../../../../../.." + str(secret), f"{ROOT}/../..{secret}"):
        for route in (f"file={name}", f"stream/{name}"):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(f"{address}gradio_api/{route}")
    config = json.load(urllib.request.urlopen(f"{address}config"))
    photo = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "photo")
    call = next(one["id"] for one in config["dependencies"] if [photo, "input"] in [list(target) for target in one["targets"]])
    answer, sent = page.evaluate(
        """async ([call, path]) => {
          const body = JSON.stringify({
            data: [null, {path, meta: {_type: 'gradio.FileData'}}], fn_index: call, session_hash: 'forged'
          })
          await fetch('gradio_api/queue/join', {method: 'POST', body, headers: {'Content-Type': 'application/json'}})
          const answer = await fetch('gradio_api/queue/data?session_hash=forged')
          const form = new FormData()
          form.append('files', new File(['x'], '../../../../../../tmp/w2w-owned.txt'))
          const sent = await fetch('gradio_api/upload', {method: 'POST', body: form})
          return [await answer.text(), (await sent.json())[0]]
        }""",
        [call, str(secret)],
    )
    assert '"success":false' in answer and "canvas" not in answer
    assert Path(sent).resolve().is_relative_to(ROOT.resolve())
    Path(sent).unlink()


def test_two_people_are_blended_and_the_ends_are_the_people(visitor: Callable[[], Any]) -> None:
    page = visitor()
    tab(page, "Blend")
    choose(page, "#to", "person-3")
    page.wait_for_selector("#strip img")
    eventually(lambda: len(pixels(page, "#strip")) == 7)
    page.locator("#share input[type=range]").press("Home")
    sync_api.expect(page.locator("#blended figcaption")).to_have_text("sample-0-0-0-person-3", timeout=PATIENCE)
    eventually(lambda: same(pixels(page, "#blended"), pixels(page, "#now")))
    page.locator("#share input[type=range]").press("End")
    sync_api.expect(page.locator("#blended figcaption")).to_have_text("sample-0-0-100-person-3", timeout=PATIENCE)
    mine = pixels(page, "#blended")
    page.get_by_role("button", name="Keep as current person").locator("visible=true").click()
    becomes(page, "sample-0-0-100-person-3")
    eventually(lambda: same(mine, pixels(page, "#now")))


def test_a_dot_of_the_map_loads_its_person_and_a_picture_one_of_the_nearest(visitor: Callable[[], Any]) -> None:
    page = visitor()
    tab(page, "Map")
    page.wait_for_selector("#near img")
    assert page.locator("#map circle[data-i]").count() == 16
    page.locator("#map circle").nth(7).dispatch_event("click")
    becomes(page, "person-7")
    says(page, "#near", r"person-7 \(0\.0\)")
    near = page.locator("#near figcaption").inner_text().split(", ")[2].split(" ")[0]
    page.locator("#near button").nth(1).press("Enter")
    becomes(page, near)
    says(page, "#near", rf"{near} \(0\.0\)")


def test_one_column_on_a_phone_with_every_tab_in_sight_by_day_and_by_night(browser: Any, address: str) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("#sheet img", timeout=PATIENCE)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        lefts = [page.locator(place).bounding_box()["x"] for place in (".w2w-now", ".w2w-tabs", ".w2w-more")]
        assert max(lefts) - min(lefts) < 1
        for name in ("Sample", "Photo", "Adapter", "Blend", "Edit", "Map", "Prompt"):
            tab(page, name)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator("#now img").first.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        context.close()
    assert grounds[0] != grounds[1]


def test_a_browser_that_does_not_know_has_shows_every_panel(visitor: Callable[[], Any]) -> None:
    page = visitor()
    names = ("sample", "photo", "adapter", "blend", "edit", "map", "prompt")
    assert [name for name in names if page.locator(f"#panel-{name}").is_visible()] == ["sample"]
    taken = page.evaluate(
        """() => { let n = 0  // such a browser drops each rule whose selectors it does not know
          for (const sheet of document.styleSheets)
            for (let i = sheet.cssRules.length - 1; i >= 0; i--)
              if (sheet.cssRules[i].selectorText?.includes(':has(')) { sheet.deleteRule(i); n++ }
          return n }"""
    )
    assert taken >= 2
    assert [name for name in names if page.locator(f"#panel-{name}").is_visible()] == list(names)


def test_the_keyboard_reaches_what_the_mouse_does(visitor: Callable[[], Any]) -> None:
    page = visitor()
    reached: dict[str, Any] = {}
    for _ in range(60):
        page.keyboard.press("Tab")
        at = page.evaluate(
            """() => { const e = document.activeElement, s = getComputedStyle(e), b = getComputedStyle(e.closest('button') || e)
              return [e.getAttribute('aria-label') || e.innerText || e.id, e.closest('[id]').id,
                      s.outlineStyle != 'none' || s.boxShadow != 'none' || b.borderTopColor != 'rgba(0, 0, 0, 0)'] }"""
        )
        reached.setdefault(at[0].strip(), at[2])
        if at[0].startswith("8 people of seed 0, picture 6"):
            page.keyboard.press("Enter")
            becomes(page, "sample-0-5")
            break
    else:
        pytest.fail(f"the sheet was not reached: {list(reached)}")
    assert {"Add to favourites", "Sample", "Draw new people"} <= reached.keys()
    page.get_by_role("tab", name="Sample", exact=True).focus()
    page.keyboard.press("Tab")
    page.get_by_role("tab", name="Edit", exact=True).press("Enter")
    page.locator("#edit-sliders input[type=range]").first.press("ArrowLeft")
    commands(page, "#edit-command", "smiling=-0.1")


def test_it_listens_on_this_machine_alone_opens_the_browser_and_asks_for_the_password(
    studio: Studio, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    socket.create_connection(("127.0.0.1", port), 60).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), 60)  # as from another machine, without asking its network
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    page = build(studio)
    mine = launch(page, "127.0.0.1", None, browser=True, auth=("ada", "secret"), share=False)
    try:
        assert [url.rstrip("/") for url in opened] == [mine.rstrip("/")]
        for route in ("config", "gradio_api/info", f"gradio_api/file={ROOT}"):
            with pytest.raises(urllib.error.HTTPError) as refusal:
                urllib.request.urlopen(mine + route)
            assert refusal.value.code in (401, 403)
    finally:
        page.close(verbose=False)


def test_share_is_refused_without_a_password(w2w: Callable[..., Ended]) -> None:
    ended = w2w("explore", "--share", "--no-browser")
    assert ended.code == 2 and "--auth" in ended.err and len(ended.err.splitlines()) == 1
    assert w2w("explore", "--auth", "ada:", "--no-browser").code == 2
