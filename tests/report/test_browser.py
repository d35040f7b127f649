"""Tests of reports in a browser, opened from disk. They are skipped if Chromium is not installed."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from tests.report.fake_directories import NASTY, make_run, make_samples, make_sweep, report_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

BRIGHT = """canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
    .data.filter((value, at) => at % 4 == 0 && value > 50).length"""
"""JavaScript function: the number of pixels of a canvas whose red channel is above 50."""

OVERLAPS = """
const found = [];
for (const svg of document.querySelectorAll('[data-chart] svg')) {
    const texts = [...svg.querySelectorAll('text')]
        .filter(text => text.textContent && text.checkVisibility({opacityProperty: true}));
    const boxes = texts.map(text => [text.textContent, text.getBoundingClientRect()]);
    boxes.forEach(([text, a], at) => boxes.slice(at + 1).forEach(([other, b]) => {
        // Boxes contain the line height, so that they may touch without covering a character.
        const [width, height] = [Math.min(a.right, b.right) - Math.max(a.left, b.left),
                                 Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top)];
        if (width > 1 && height > 3) found.push(`${text} | ${other}`);
    }));
}
return found"""
"""JavaScript: pairs of texts of a plot that cover each other."""
FAINT = """
const numbers = color => color.match(/[\\d.]+/g).map(Number);
const light = color => numbers(color).slice(0, 3).map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
const behind = element => {
    for (let at = element; at; at = at.parentElement) {
        const color = getComputedStyle(at).backgroundColor;
        if ((numbers(color)[3] ?? 1) === 1) return color;
    }
    return 'rgb(255, 255, 255)';
};
const found = [];
for (const element of document.querySelectorAll('body *')) {
    const isText = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!isText || element.closest('script, style, noscript, .tag, :disabled') || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const isHeat = element.closest('[data-chart=heat]');
    const color = element instanceof SVGElement ? style.fill : style.color;
    if (isHeat || !color.startsWith('rgb')) continue;
    const [a, b] = [light(color), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push(`${element.tagName} ${element.className} ${color}: ${ratio.toFixed(2)}`);
}
return [...new Set(found)]"""
"""JavaScript: texts whose contrast with their background is below 4.5 (WCAG 2, level AA)."""

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Chromium and its driver (apt install chromium chromium-driver)"
)


@dataclass(frozen=True)
class Page:
    """A browser that shows a report."""

    driver: Any

    def run(self, script: str) -> Any:
        """Run JavaScript, and return the value that it returns."""
        return self.driver.execute_script(script)

    def wait(self, script: str, seconds: float = 15) -> Any:
        """Evaluate the expression `script` until its value is true, and return this value."""
        end_s = time.monotonic() + seconds
        while not (value := self.run(f"return {script}")):
            assert time.monotonic() < end_s, f"this did not become true in {seconds} s: {script}"
            time.sleep(0.02)
        return value

    def open(self, path: Path, width: int = 1200, dark: bool = False) -> Page:
        """Load a report from disk and wait for its plots."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(path.as_uri())
        self.wait("document.documentElement.dataset.charts === 'drawn'")
        return self

    def press(self, key: str, shift: bool = False) -> None:
        """Press and release a key."""
        codes = {"Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "ArrowUp": 38, "Enter": 13, "Tab": 9}
        event = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, 0), "modifiers": 8 if shift else 0}
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            extra = text if kind == "keyDown" else {}
            self.driver.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, **event, **extra})

    def mouse(self, kind: str, selector: str, x: float = 0.5, y: float = 0.5, **values: Any) -> None:
        """Send a mouse event at a place of an element; `x` and `y` are fractions of its size."""
        box = self.run(f"return document.querySelector({selector!r}).getBoundingClientRect()")
        place = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, **place, **values})

    def console(self) -> list[str]:
        """Messages in the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """URLs that the page requested since the last call, without data URIs."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith(("data:", "blob:"))]

    def shown(self) -> list[str]:
        """Prompts of the visible cards of the gallery, in their order."""
        prompts: list[str] = self.run("return [...document.querySelectorAll('.card .prompt')].map(p => p.textContent)")
        return prompts

    def choose(self, name: str, value: str) -> None:
        """Set a control of the gallery to `value`."""
        self.run(
            f"const c = document.getElementById('gallery-controls').elements[{name!r}]; c.value = {value!r};"
            "c.dispatchEvent(new Event('input', {bubbles: true}))"
        )


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("reports")
    samples = make_samples(8)
    run = make_run(root / "run", samples, prompts=NASTY, failed=1)
    sweep = make_sweep(root / "multirun", samples[:6], prompts=NASTY)
    return report_of(run), report_of(sweep)


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield Page(driver)
    driver.quit()


@pytest.fixture
def run(browser: Page, reports: tuple[Path, Path]) -> Page:
    return browser.open(reports[0])


@pytest.fixture
def sweep(browser: Page, reports: tuple[Path, Path]) -> Page:
    return browser.open(reports[1])


@pytest.mark.parametrize("which", [0, 1], ids=["run", "sweep"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_every_plot_is_drawn_without_requests_console_messages_overflow_or_overlap(
    browser: Page, reports: tuple[Path, Path], which: int, width: int, dark: bool
) -> None:
    browser.console(), browser.requests()  # drop older messages
    page = browser.open(reports[which], width, dark=dark)
    empty = """return [...document.querySelectorAll('[data-chart]')].filter(container =>
        !container.querySelector('svg .mark-rect path, svg .mark-symbol path, svg .mark-line path')
    ).map(container => container.dataset.chart)"""
    assert page.run(empty) == []
    assert page.run("return document.querySelectorAll('[data-chart]').length") >= 5
    assert page.run("return document.documentElement.scrollWidth") <= width
    assert page.run(OVERLAPS) == [], "texts in a plot cover each other"
    assert page.run(FAINT) == [], "texts have a contrast below 4.5"
    assert page.requests() == [reports[which].as_uri()]
    page.run("document.querySelector('.card .open, .xy .cell').click()")
    assert page.run("return document.getElementById('viewer').scrollWidth") <= width
    page.wait("document.getElementById('after').dataset.state === 'original'")
    assert page.run(FAINT) == []
    assert page.console() == []
    runs = reports[which].parent.parent.as_uri()
    assert all(url.startswith(f"{runs}/") and "/images/" in url for url in page.requests()), "only results are read"


@pytest.mark.parametrize("which", [0, 1], ids=["run", "sweep"])
def test_links_point_to_existing_files(browser: Page, reports: tuple[Path, Path], which: int) -> None:
    page = browser.open(reports[which])
    hrefs = page.run("""
        document.querySelector('.card .open, .xy .cell').click();
        return [...document.querySelectorAll('a[href]')].map(a => a.href)""")
    targets = {urlparse(href) for href in hrefs}
    assert any(target.path.endswith(".png") for target in targets)
    assert {target.scheme for target in targets} == {"file"}
    assert all(Path(unquote(target.path)).exists() for target in targets)


def test_user_text_is_shown_unchanged(run: Page) -> None:
    prompts = run.shown()
    assert prompts[:5] == list(NASTY[:5])
    assert "{{ 7 * 7 }} ${7 * 7}" in prompts[5]
    assert run.run("return document.querySelector('.prompt').dir") == "auto"
    assert run.run("return getComputedStyle(document.querySelectorAll('.prompt')[3]).direction") == "rtl"
    assert "<b>out</b>" in run.run("return document.getElementById('failures').textContent")
    assert run.run("return document.querySelectorAll('main script, main img:not(.picture)').length") == 0


def test_the_gallery_can_be_searched_filtered_and_sorted(run: Page) -> None:
    everything = run.shown()
    run.choose("text", "SUNSET mountains")
    assert run.shown() == [NASTY[2]]
    run.choose("text", "")
    run.choose("status", "failed")
    assert run.shown() == everything[-1:]
    run.choose("status", "")
    run.choose("rank", "1")
    assert run.shown() == everything[1::2]
    run.choose("rank", "")
    run.choose("sort", "ssim_hole")
    assert run.shown() == [*everything[-2::-1], everything[-1]], "results without a score come last"
    run.choose("order", "best")
    assert run.shown() == everything
    run.choose("low", "0.88")
    assert run.shown() == everything[:3]
    assert run.run("return document.getElementById('gallery-count').textContent") == "3 of 8 results"
    run.choose("low", "")
    run.choose("sort", "home_made")
    assert run.shown() == [*everything[1:7], everything[0], everything[7]]


def test_the_slider_moves_the_divider_and_escape_restores_the_focus(run: Page) -> None:
    run.run("document.querySelectorAll('.card .open')[1].focus()")
    run.press("Enter")
    run.wait("document.getElementById('viewer').open")
    run.wait("document.getElementById('stage').clientHeight > 100")
    assert run.run("return getComputedStyle(document.getElementById('after')).clipPath") == "inset(0px 0px 0px 50%)"
    run.run("document.getElementById('slider').focus()")
    run.press("ArrowRight")
    assert run.run("return getComputedStyle(document.getElementById('after')).clipPath") == "inset(0px 0px 0px 51%)"
    run.run("document.querySelector('[data-step=\"1\"]').focus()")
    run.press("ArrowRight")
    assert run.run("return document.getElementById('viewer-title').textContent") == NASTY[2]
    run.press("Escape")
    run.wait("!document.getElementById('viewer').open")
    assert run.run("return [...document.querySelectorAll('.card .open')].indexOf(document.activeElement)") == 1


def test_mask_and_difference_cover_the_result(run: Page) -> None:
    run.run("""
        document.querySelectorAll('.card .open')[0].click();
        for (const id of ['show-mask', 'show-difference']) document.getElementById(id).click()""")
    assert run.run("return getComputedStyle(document.getElementById('mask')).maskImage").startswith('url("data:image')
    canvas = "document.getElementById('difference')"
    assert run.wait(f"!{canvas}.hidden && ({BRIGHT})({canvas})") > 10


def test_the_viewer_shows_the_error_of_a_failed_result(run: Page) -> None:
    run.run("[...document.querySelectorAll('.card .open')].at(-1).click()")
    assert "<b>out</b> of memory" in run.run("return document.getElementById('viewer-problem').textContent")
    assert run.run("return document.getElementById('stage').checkVisibility()") is False


def _heads(page: Page) -> list[str]:
    heads = page.run("return [...document.querySelectorAll('#grid thead th')].map(th => th.innerText)")
    return [str(head).split("\n")[0].replace("\u00a0", " ") for head in heads]


def _choose_setting(page: Page, number: int, value: str) -> None:
    """Set a control of the grid: 0 are the columns, 1 the rows, and then one control for each setting."""
    page.run(f"""
        const select = document.querySelectorAll('#grid-settings select')[{number}];
        select.value = {value!r};
        select.dispatchEvent(new Event('input', {{bubbles: true}}))""")


def test_the_grid_has_one_setting_per_side_and_the_pictures_of_the_sample(sweep: Page) -> None:
    assert _heads(sweep) == ["Input", "Mask", "Truth", "steps 1", "steps 4"]
    rows = "return [...document.querySelectorAll('#grid tbody .row-name')].map(th => th.innerText)"
    assert sweep.run(rows) == ["guidance 1", "guidance 30"] * 6
    assert sweep.run("return document.querySelectorAll('#grid tbody').length") == 6
    assert sweep.run("return document.querySelectorAll('#grid button.cell img').length") == 24
    assert sweep.run("return document.querySelectorAll('#grid td.part img').length") == 18
    assert sweep.run("return document.querySelectorAll('#grid .is-chosen .cell').length") == 6, "steps 4, guidance 1"
    shown = "return [...document.querySelectorAll('#grid-settings label')].filter(l => !l.hidden).length"
    assert sweep.run(shown) == 2


def test_the_user_chooses_the_settings_of_columns_and_rows(sweep: Page) -> None:
    _choose_setting(sweep, 1, "")  # a row per sample: steps as columns, and a control for guidance
    assert sweep.run("return document.querySelectorAll('#grid tbody button.cell').length") == 12
    label = "return document.querySelector('#grid button.cell').getAttribute('aria-label').replaceAll('\u00a0', ' ')"
    assert sweep.run(label).startswith("Open steps 1 · guidance 1:"), "first the guidance of the answer"
    _choose_setting(sweep, 3, "1")
    assert sweep.run(label).startswith("Open steps 1 · guidance 30:")
    _choose_setting(sweep, 0, "1")  # guidance as columns, and a control for steps
    assert _heads(sweep) == ["Input", "Mask", "Truth", "guidance 1", "guidance 30"]
    _choose_setting(sweep, 0, "")
    assert _heads(sweep)[3:] == [
        "steps 1 · guidance 1", "steps 1 · guidance 30", "steps 4 · guidance 1", "steps 4 · guidance 30",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [1400, 390])
def test_labels_of_the_plot_cover_no_marks(browser: Page, reports: tuple[Path, Path], width: int) -> None:
    page = browser.open(reports[1], width)
    counts = page.run("""
        const svg = document.querySelector('[data-chart=pareto] svg');
        const boxes = selector => [...svg.querySelectorAll(selector)]
            .filter(element => element.checkVisibility({opacityProperty: true}))
            .map(element => element.getBoundingClientRect());
        const labels = boxes('.labels_marks text');
        const marks = boxes('.mark-symbol.role-mark path');
        const covers = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
            && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
        return [labels.length, marks.length, labels.filter(label => marks.some(mark => covers(label, mark))).length]""")
    assert counts[0] >= 2
    assert counts[1:] == [4, 0]


def _crowded(report: Path, path: Path) -> Path:
    """The same report with 15 points in the plot, 14 of them on the front, in columns with nearly the same cost."""
    before, data, after = re.split(
        r'(?<=id="data">)(.*?)(?=</script>)', report.read_text(), maxsplit=1, flags=re.DOTALL
    )
    page = json.loads(data)
    rows = [
        {"point": at, "cost": 0.1 + 0.05 * steps, "cost_low": 0.09 + 0.05 * steps, "cost_high": 0.11 + 0.05 * steps}
        | {"mean": 0.8 + 0.02 * (at // 3) + 0.004 * (at % 3), "low": 0.78 + 0.02 * (at // 3), "front": True}
        | {"high": 0.83 + 0.02 * (at // 3), "answer": False, "group": None, "label": f"steps {steps}"}
        | {"name": f"steps {steps} · guidance {guidance}"}
        for at, (steps, guidance) in enumerate(product((1, 2, 4, 8, 16), (1, 4, 30)))
    ]
    rows[2] |= {"front": False, "name": None}  # a layer of the plot is for such points
    text = json.dumps(page["charts"]["pareto"])
    for old in _lists_of_rows(page["charts"]["pareto"]):
        text = text.replace(json.dumps(old), json.dumps(rows))
    page["charts"]["pareto"] = json.loads(text)
    path.write_text(before + json.dumps(page).replace("<", "\\u003c") + after)
    return path


def _lists_of_rows(spec: Any) -> list[Any]:
    if isinstance(spec, list) and spec and isinstance(spec[0], dict) and "cost" in spec[0]:
        return [spec]
    inside = spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else ()
    return [rows for each in inside for rows in _lists_of_rows(each)]


def test_a_wide_plot_has_room_for_the_labels_of_all_points(
    browser: Page, reports: tuple[Path, Path], tmp_path: Path
) -> None:
    page = browser.open(_crowded(reports[1], tmp_path / "report.html"), 1400)
    page.wait("document.querySelectorAll('[data-chart=pareto] .mark-symbol.role-mark path').length === 15")
    visible = """return [...document.querySelectorAll('[data-chart=pareto] .labels_marks text')]
        .filter(text => text.checkVisibility({opacityProperty: true})).length"""
    assert page.run(visible) == 14
    assert page.run(OVERLAPS) == []


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with originals that are larger than thumbnails. One of them is missing."""
    run = make_run(tmp_path_factory.mktemp("large") / "run", make_samples(3, side=512))
    report = report_of(run)
    sorted((run / "images").iterdir())[2].unlink()
    return report


def _scale(page: Page) -> float:
    matrix = page.run("return getComputedStyle(document.getElementById('after')).transform")
    return 1.0 if matrix == "none" else float(matrix.removeprefix("matrix(").split(",")[0])


def test_the_viewer_shows_the_original_and_without_it_the_thumbnail(browser: Page, large: Path) -> None:
    page = browser.open(large)
    after, state = "document.getElementById('after')", "document.getElementById('picture-state').textContent"
    assert page.run("return document.querySelector('.card .image img').naturalWidth") == 384
    page.run("document.querySelector('.card .open').click()")
    page.wait(f"{after}.naturalWidth === 512")
    assert page.wait(f"{state}.startsWith('Original') && {state}") == "Original, 512 \u00d7 512 px"
    page.press("ArrowLeft")
    page.wait(f"{state}.includes('not beside this page')")
    assert page.run(f"return {after}.naturalWidth") == 384
    assert page.run("return document.getElementById('original').hidden") is True


def test_the_viewer_zooms_and_pans(browser: Page, large: Path) -> None:
    page = browser.open(large, 1400)
    page.run("document.querySelector('.card .open').click()")
    page.wait("document.getElementById('after').dataset.state === 'original'")
    page.mouse("mouseWheel", "#stage", 0.25, 0.25, deltaX=0, deltaY=-400)
    page.wait("document.getElementById('stage').classList.contains('is-zoomed')")
    zoom = _scale(page)
    assert 2 < zoom < 3
    corner = (
        "const i = document.getElementById('after').getBoundingClientRect(), "
        "s = document.getElementById('stage').getBoundingClientRect(); return (s.x - i.x) / s.width"
    )
    at = page.run(corner)
    assert at == pytest.approx(0.25 * (zoom - 1), abs=0.01), "the place under the pointer stays"
    clip = page.run("return getComputedStyle(document.getElementById('after')).clipPath")
    left = float(clip.split("%")[0].rpartition(" ")[2])
    assert left == pytest.approx(100 * (0.5 + at) / zoom, abs=0.5), "the divider stays at the slider"
    page.press("ArrowRight", shift=True)
    assert page.run(corner) == pytest.approx(at + 0.15, abs=0.01)
    for kind, x in (("mousePressed", 0.9), ("mouseMoved", 0.8), ("mouseReleased", 0.8)):
        page.mouse(kind, "#stage", x, 0.5, button="left", buttons=1, clickCount=1)
    assert page.run(corner) == pytest.approx(at + 0.25, abs=0.01), "a drag moves the picture"
    page.press("0")
    assert _scale(page) == 1
    page.press("+")
    assert _scale(page) == 1.5
    page.press("ArrowRight")
    assert _scale(page) == 1, "another sample begins without zoom"
    for clicks in (1, 2):
        for kind in ("mousePressed", "mouseReleased"):
            page.mouse(kind, "#stage", button="left", clickCount=clicks)
    assert _scale(page) == 3
    page.press("Escape")
    page.wait("!document.getElementById('viewer').open")


def test_the_grid_shows_differences_and_masks(sweep: Page) -> None:
    sweep.run("""
        document.getElementById('grid').scrollIntoView();
        const form = document.getElementById('grid-controls').elements;
        form.against.value = 'point 3'; form.mask.checked = true;
        form.mask.dispatchEvent(new Event('input', {bubbles: true}))""")
    assert sweep.run("return document.querySelectorAll('#grid .overlay').length") == 24
    sweep.wait("document.querySelector('#grid canvas').width !== 300")
    same, other = sweep.run(f"return [3, 0].map(n => document.querySelectorAll('#grid canvas')[n]).map({BRIGHT})")
    assert same == 0, "the difference of a point from itself is zero"
    assert other > 10


def test_a_click_on_a_point_of_the_plot_opens_its_images(sweep: Page) -> None:
    center: Callable[[], Any] = lambda: sweep.run("""
        const mark = document.querySelector('[data-chart=pareto] .mark-symbol path');
        mark.scrollIntoView({block: 'center', behavior: 'instant'});
        const box = mark.getBoundingClientRect();
        return {x: box.x + box.width / 2, y: box.y + box.height / 2}""")  # noqa: E731
    position = {**center(), "button": "left", "clickCount": 1}
    for kind in ("mousePressed", "mouseReleased"):
        sweep.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, **position})
    sweep.wait("document.getElementById('viewer').open")
    assert "steps\u00a0" in sweep.run("return document.getElementById('viewer-facts').textContent")
    options = sweep.run("return [...document.getElementById('against').options].map(o => o.value)")
    assert {"input", "truth", "mask"} < set(options)


def test_plots_follow_dark_and_light_mode(run: Page) -> None:
    ink = "getComputedStyle(document.querySelector('[data-chart=speed] svg text')).fill"
    light = run.run(f"return {ink}")
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    run.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    run.wait(f"document.querySelector('[data-chart=speed] svg text') && {ink} !== {light!r}")


def test_the_policy_refuses_every_script_but_the_page_s_own(browser: Page, tmp_path: Path) -> None:
    """Prompts, keys and files with code do not run. Not even code that already is in the page would."""
    evil = "x' onload='document.title=1' <script>document.title='ran'</script>"
    samples = make_samples(len(NASTY))
    run = make_run(tmp_path / "fill-0123456789abcdef", samples, prompts=(evil, *NASTY[1:]))
    manifest = run / "manifest" / "a.jsonl"
    first, *rest = manifest.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    values = json.loads(first) | {"sample_key": "javascript:document.title='ran'", "file": "javascript:alert(1)//.png"}
    manifest.write_text("\n".join([json.dumps(values), *rest]) + "\n", encoding="utf-8", errors="surrogateescape")
    browser.console()  # drop older messages
    page = browser.open(report_of(run))
    policy = page.run("return document.querySelector('meta[http-equiv=Content-Security-Policy]').content")
    assert "unsafe" not in policy
    assert page.console() == []
    title = page.run("return document.title")
    links = page.run("return [...document.querySelectorAll('a[href]')].map(link => link.getAttribute('href'))")
    assert not [link for link in links if str(link).strip().lower().startswith("javascript:")]
    page.run("""
        const script = document.createElement('script');
        script.textContent = "document.title = 'ran'";
        document.body.append(script);
        const image = document.createElement('div');
        image.innerHTML = `<img src="data:," onerror="document.title = 'ran'"><style>body { display: none }</style>`;
        document.body.append(image);
        const link = document.createElement('a');
        link.href = "javascript:document.title = 'ran'";
        document.body.append(link);
        link.click();
    """)
    time.sleep(0.3)
    assert page.run("return document.title") == title
    assert page.run("return getComputedStyle(document.body).display") == "block"
    assert len([text for text in page.console() if "Content Security Policy" in text]) >= 3


def test_tooltips_of_plots_have_the_style_of_the_page(browser: Page, tmp_path: Path) -> None:
    """The policy refuses the style of the plotting library, so the page has its own."""
    browser.console()  # drop older messages
    page = browser.open(report_of(make_run(tmp_path / "fill-0123456789abcdef", make_samples(4))))
    box = page.run("""
        const mark = [...document.querySelectorAll('[data-chart] svg path[aria-roledescription]')]
            .find(path => path.getBoundingClientRect().width > 2);
        if (!mark) return null;
        mark.scrollIntoView({block: 'center'});
        const box = mark.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
    """)
    assert box is not None
    for shift in (0, 1):
        event = {"type": "mouseMoved", "x": box[0] + shift, "y": box[1]}
        page.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)
    page.wait("document.querySelector('#vg-tooltip-element.visible')")
    style = "getComputedStyle(document.getElementById('vg-tooltip-element'))"
    assert page.run(f"return [{style}.position, {style}.visibility]") == ["fixed", "visible"]
    assert page.console() == []


def test_fingers_zoom_the_viewer(browser: Page, large: Path) -> None:
    page = browser.open(large, 390)
    page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})
    try:
        page.run("document.querySelector('.card .open').click()")
        page.wait("document.getElementById('after').dataset.state === 'original'")
        box = page.run("return document.getElementById('stage').getBoundingClientRect()")
        middle = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}

        def touch(kind: str, *shifts: float) -> None:
            points = [{"x": middle["x"] + shift, "y": middle["y"], "id": n} for n, shift in enumerate(shifts)]
            page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", -20, 20)
        for shift in (25, 30, 40):
            touch("touchMove", -shift, shift)
        touch("touchEnd")
        assert _scale(page) == pytest.approx(2, abs=0.1)
        assert page.run("return document.getElementById('slider').value") == "50", "two fingers leave the divider"
    finally:
        page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
