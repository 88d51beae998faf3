"""Explorers in a real browser: exported pages alone, JupyterLab with a kernel, saved notebooks."""

import html
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch

from minibeit3 import build_backbone, preset
from minibeit3.explore import AttentionExplorer, MaskExplorer, RoutingExplorer
from minibeit3.explore.core import GREY, OUTLINE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-default-apps --no-default-browser-check"
)
PICTURE = np.full((64, 64, 3), 200, np.uint8)
WORDS = ["<s>", "<img src=x onerror=alert(1)>", "cat", "</s>"]
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EVERY = os.environ.get("MINIBEIT3_BROWSER") == "all"  # run every notebook, not one
INPUTS = torch.zeros(1, 3, 64, 64), torch.tensor([[0, 5, 6, 2]])

pytestmark = [pytest.mark.browser, pytest.mark.slow]

Page = Any


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One headless chromium; skips where it or Playwright is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[test]'")
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield opened
        opened.close()


def ours(error: Any) -> bool:
    """False for what the widgets' own extension throws where a notebook has no kernel."""
    upstream = "@jupyter-widgets/jupyterlab-manager" in (error.stack or "")
    return not (upstream and "null (reading 'kernel')" in str(error))


@contextmanager
def watched(browser: Any) -> Iterator[Page]:
    """A page that fails for console errors and for requests to anywhere else."""
    made = browser.new_page(viewport={"width": 1200, "height": 1100})
    made.set_default_timeout(60_000)
    wrong: list[str] = []
    made.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    made.on("pageerror", lambda error: wrong.append(str(error)) if ours(error) else None)
    made.on("request", lambda asked: wrong.append(asked.url) if outside(asked.url) else None)
    yield made
    made.close()
    assert wrong == []


@pytest.fixture
def page(browser: Any) -> Iterator[Page]:
    with watched(browser) as made:
        yield made


@pytest.fixture(scope="module")
def looks() -> AttentionExplorer:
    backbone = build_backbone(preset("tiny"), torch.Generator().manual_seed(0))
    for block in backbone.blocks:
        block.attn.qkv.weight.data.mul_(20)  # type: ignore[union-attr, operator]  # sharp patterns
    return AttentionExplorer(backbone, PICTURE, *INPUTS, WORDS, query=0)


@pytest.fixture(scope="module")
def exported(looks: AttentionExplorer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the page of `looks`."""
    file = tmp_path_factory.mktemp("page") / "looks.html"
    looks.export_html(file)
    return f"file://{file}"


def outside(url: str) -> bool:
    """True for an address beyond this machine."""
    here = r"(data|file|blob|about):|(http|ws)://127\.0\.0\.1[:/]"
    return re.match(here, url) is None


def pixel(page: Page, patch: int, at: float, grid: int = 8) -> list[int]:
    """Colour of the first canvas inside a patch, `at` of the way from its corner to its middle."""
    return page.evaluate(
        """([patch, at, grid]) => {
          const canvas = document.querySelector(".mb3 canvas"), step = canvas.width / grid;
          const x = (patch % grid + at / 2) * step, y = (Math.floor(patch / grid) + at / 2) * step;
          return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data].slice(0, 3);
        }""",
        [patch, at, grid],
    )


def middle(page: Page, patch: int, grid: int = 8) -> tuple[float, float]:
    """Where a patch of the first canvas is on the screen."""
    canvas = page.locator(".mb3 canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    step = box["width"] / grid
    return box["x"] + (patch % grid + 0.5) * step, box["y"] + (patch // grid + 0.5) * step


def ready(page: Page) -> None:
    page.wait_for_selector(".mb3[data-ready=true]")


def said(page: Page) -> str:
    return page.locator(".mb3 [aria-live]").first.inner_text()


def saying(page: Page) -> Any:
    """What is said, to wait for: a page that forbids eval refuses `wait_for_function`."""
    from playwright.sync_api import expect

    return expect(page.locator(".mb3 [aria-live]").first)


def test_hover_and_keys_of_an_exported_page_move_the_outline_and_the_spoken_line(
    page: Page, exported: str
) -> None:
    page.goto(exported)
    ready(page)
    assert said(page).startswith("[CLS] attends: ")
    page.mouse.move(*middle(page, 27))
    assert pixel(page, 27, 0.1) == list(OUTLINE) != pixel(page, 28, 0.1)
    assert said(page).startswith("patch row 4 column 4 attends: ")
    page.mouse.move(2, 2)
    assert pixel(page, 27, 0.1) != list(OUTLINE) and said(page).startswith("[CLS]")
    page.focus(".mb3 canvas")
    for key in ("ArrowRight", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    assert pixel(page, 17, 0.1) == list(OUTLINE) and "patch row 3 column 2" in said(page)
    page.focus(".mb3 .word >> nth=1")
    assert said(page).startswith(f"word '{WORDS[1]}' attends: ")
    page.keyboard.press("ArrowRight")
    assert said(page).startswith("word 'cat' attends: ")
    page.keyboard.press("-")
    page.keyboard.press("]")
    root = page.locator(".mb3")
    assert (root.get_attribute("data-layer"), root.get_attribute("data-head")) == ("5", "0")
    page.select_option(".mb3 select >> nth=0", "relevance")
    saying(page).to_contain_text(" owes: ")


def test_weights_in_an_exported_page_are_those_of_the_model(
    page: Page, looks: AttentionExplorer, exported: str
) -> None:
    page.goto(exported)
    ready(page)
    for _ in range(2):
        page.locator(".mb3 canvas").press("-")
    weights = looks.inside[0].patterns[3].mean(axis=0)[0]
    shown = page.locator(".mb3 .word small").all_inner_texts()
    found = [float(text.removesuffix("%")) / 100 for text in shown]
    assert np.ptp(weights[65:]) > 0.005  # else any page would do
    assert found == pytest.approx(weights[65:].tolist(), abs=0.001)


def test_a_drag_and_keys_on_an_exported_mask_hide_exactly_the_patches_on_their_way(
    page: Page, tmp_path: Path
) -> None:
    MaskExplorer(PICTURE, ratio=0.0, words=WORDS[1:3]).export_html(tmp_path / "page.html")
    page.goto(f"file://{tmp_path / 'page.html'}")
    ready(page)
    page.mouse.move(*middle(page, 16))
    page.mouse.down()
    page.mouse.move(*middle(page, 23), steps=2)  # faster than a patch a step
    page.mouse.up()
    page.mouse.move(2, 2)
    ready(page)
    assert page.locator(".mb3").get_attribute("data-hidden-bits") == "0" * 16 + "1" * 8 + "0" * 40
    assert pixel(page, 20, 1) == list(GREY) != pixel(page, 30, 1)
    page.focus(".mb3 canvas")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert "9 of 64 patches hidden" in said(page) and pixel(page, 0, 1) == list(GREY)
    page.click(".mb3 .word >> nth=1")
    assert "1 of 2 words hidden" in said(page)
    page.select_option(".mb3 select >> nth=0", "random")
    page.focus(".mb3 input >> nth=0")
    page.keyboard.press("ArrowRight")
    saying(page).to_have_text(re.compile("^3 of"))


def test_controls_of_an_exported_routing_page_change_picture_and_alt_text(
    page: Page, tmp_path: Path
) -> None:
    RoutingExplorer([], *INPUTS).export_html(tmp_path / "page.html", most=4)
    page.goto(f"file://{tmp_path / 'page.html'}")
    picture = page.locator("img")
    before, alt = picture.get_attribute("src"), picture.get_attribute("alt")
    page.focus("select >> nth=0")
    page.keyboard.press("ArrowDown")
    assert picture.get_attribute("src") != before and picture.get_attribute("alt") != alt
    assert said(page) == picture.get_attribute("alt")
    assert page.evaluate("document.querySelector('img').naturalWidth") > 300


# ---- JupyterLab

CODE = """import numpy as np, torch
from minibeit3 import build_backbone, preset
from minibeit3.explore import AttentionExplorer, MaskExplorer
backbone = build_backbone(preset("tiny"), torch.Generator().manual_seed(0))
picture = np.full((64, 64, 3), 200, np.uint8)
looks = AttentionExplorer(backbone, picture, torch.zeros(1, 3, 64, 64),
                          torch.tensor([[0, 5, 6, 2]]), ["<s>", "a", "cat", "</s>"], query=0)
looks"""
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
}


def notebook(code: str, outputs: list[Any]) -> Any:
    made = nbformat.v4.new_notebook()
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    made.cells = [nbformat.v4.new_code_cell(code, outputs=outputs)]
    return made


@pytest.fixture(scope="module")
def lab(
    browser: Any, looks: AttentionExplorer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    """A page of a JupyterLab of its own, with live.ipynb, saved.ipynb and the lab's notebooks."""
    root = tmp_path_factory.mktemp("lab")
    folders = {}
    for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
        folders[f"JUPYTER_{name}"] = str(root / name)
    for name in ("SETTINGS", "WORKSPACES"):
        folders[f"JUPYTERLAB_{name}_DIR"] = str(root / name)
    folders["IPYTHONDIR"] = str(root / "ipython")
    for name, values in SETTINGS.items():
        file = root / "SETTINGS" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    work = root / "work"
    work.mkdir()
    bundle = looks._repr_mimebundle_()
    output = nbformat.v4.new_output("display_data", data=bundle)
    for lesson in NOTEBOOKS:
        shutil.copy(lesson, work)
    nbformat.write(notebook(CODE, []), work / "live.ipynb")
    nbformat.write(notebook("looks", [output]), work / "saved.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [
        *(sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"),
        *("--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"),
        *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={work}"),
        *("--expose-app-in-browser", "--LabApp.extension_manager=readonly", "--LabApp.news_url="),
        "--ServerApp.terminals_enabled=False",
    ]
    with (root / "log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | folders, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=5).read()
                break
            except OSError:
                assert server.poll() is None, (root / "log").read_text()
                time.sleep(0.25)
        with watched(browser) as page:
            page.goto(f"{address}/lab/tree/saved.ipynb?token={token}")
            page.wait_for_selector(".jp-NotebookPanel")
            page.evaluate("window.jupyterapp.restored.then(() => null)")
            yield page
    finally:
        server.terminate()
        server.wait(30)


def run(page: Page, code: str) -> None:
    """Append a cell with this code and run it."""
    page.evaluate(
        """code => {
          const { content } = window.jupyterapp.shell.currentWidget, at = content.widgets.length;
          content.model.sharedModel.insertCell(at, { cell_type: "code", source: code });
          content.activeCellIndex = at;
          window.jupyterapp.commands.execute("notebook:run-cell");
        }""",
        code,
    )


def test_a_saved_notebook_that_nobody_ran_shows_figure_and_alt_text(lab: Page) -> None:
    figure = lab.wait_for_selector(".jp-OutputArea-output figure img")
    assert figure.get_attribute("alt").startswith("[CLS] attends ")
    assert lab.evaluate("document.querySelector('figure img').naturalWidth") > 300


def test_in_jupyterlab_hover_keys_and_kernel_answer_and_the_explorer_follows_python(
    lab: Page,
) -> None:
    page = lab
    opened = "window.jupyterapp.commands.execute('docmanager:open', { path: 'live.ipynb' })"
    page.evaluate(f"{opened}.then(() => null)")
    page.wait_for_function("window.jupyterapp.shell.currentWidget?.sessionContext?.isReady")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells'); undefined")
    ready(page)
    page.mouse.move(*middle(page, 27))
    assert pixel(page, 27, 0.1) == list(OUTLINE) and "patch row 4 column 4" in said(page)
    page.focus(".mb3 .word >> nth=2")
    assert said(page).startswith("word 'cat' attends: ")
    page.keyboard.press("-")  # a layer that only the kernel has
    page.wait_for_selector(".mb3[data-layer='5'][data-ready=true]")
    page.keyboard.press("ArrowRight")  # which JupyterLab would take for itself
    assert said(page).startswith("word '</s>' attends: ")
    code = "masks = MaskExplorer(picture, ratio=0.0)\nlooks.layer.value = 3\nmasks"
    run(page, code)
    page.wait_for_selector(".mb3[data-layer='3'][data-ready=true]")
    page.wait_for_selector(".mb3[data-hidden-bits][data-ready=true]")
    canvas = page.locator(".mb3[data-hidden-bits] canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    step = box["width"] / 8
    page.mouse.move(box["x"] + step / 2, box["y"] + step / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 3.5 * step, box["y"] + step / 2, steps=9)
    page.mouse.up()
    bits = "1111" + "0" * 60
    page.wait_for_selector(f".mb3[data-hidden-bits='{bits}'][data-ready=true]")
    check = "assert masks.twin.state.brushed == '1111' + '0' * 60\nprint('kernel', 'saw it')"
    run(page, check)
    page.wait_for_selector(".jp-OutputArea-output >> text=kernel saw it")


@contextmanager
def opened(page: Page, path: str, kernel: bool) -> Iterator[None]:
    """The notebook in front, afterwards closed. kernel: True = started, afterwards stopped."""
    page.evaluate(
        """async ([path, kernel]) => {
          const off = { kernelPreference: { shouldStart: false, canStart: false } };
          const panel = await window.jupyterapp.commands.execute(
            "docmanager:open", { path, ...(kernel ? {} : off) });
          await panel.context.ready;
          await panel.revealed;
          if (kernel) await panel.sessionContext.ready;
        }""",
        [path, kernel],
    )
    yield
    page.evaluate(
        """async kernel => {
          const panel = window.jupyterapp.shell.currentWidget;
          if (kernel) await panel.sessionContext.shutdown();
          panel.dispose();
        }""",
        kernel,
    )


def pictures_of(path: Path) -> list[str]:
    """Alt text of every picture that a notebook has saved, "" where it has none."""
    found: list[str] = []
    for cell in nbformat.read(path, as_version=4).cells:
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            shown = re.search('<img alt="([^"]*)"', data.get("text/html", ""))
            explorer = "application/vnd.jupyter.widget-view+json" in data
            if shown or explorer or "image/png" in data:
                found.append(html.unescape(shown[1]) if shown else "")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_that_is_opened_and_not_run_shows_its_pictures_and_alt_texts(
    lab: Page, path: Path
) -> None:
    with opened(lab, path.name, kernel=False):
        pictures = "[...window.jupyterapp.shell.currentWidget.node.querySelectorAll" + (
            "('.jp-OutputArea-output img')]"
        )
        expected = pictures_of(path)
        assert "" not in expected
        lab.wait_for_function(
            f"n => {pictures}.filter((i) => i.complete && i.naturalWidth > 50).length === n",
            arg=len(expected),
        )
        told = lab.evaluate(f"{pictures}.map((i) => i.alt)")
        assert told == expected


@pytest.mark.parametrize(
    "path",
    [p for p in NOTEBOOKS if EVERY or p.stem.startswith("00")],
    ids=lambda path: path.stem,
)
def test_a_lesson_runs_in_jupyterlab_to_its_end(lab: Page, path: Path) -> None:
    with opened(lab, path.name, kernel=True):
        lab.evaluate(
            """() => {
              window.ended = null;
              window.jupyterapp.commands.execute("notebook:run-all-cells").then(
                (good) => { window.ended = [good]; });
            }"""
        )
        lab.wait_for_function("window.ended !== null", timeout=900_000)
        cells = lab.evaluate(
            """window.jupyterapp.shell.currentWidget.content.widgets
              .filter((cell) => cell.model.type === "code")
              .map((cell) => [cell.model.executionCount,
                cell.model.outputs.toJSON().map((output) => output.output_type)])"""
        )
        assert [count for count, _ in cells] == list(range(1, len(cells) + 1))
        assert not [at for at, (_, kinds) in enumerate(cells) if "error" in kinds]
