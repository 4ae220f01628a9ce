"""The explorer in a real browser: what a reader does changes what is drawn, and the numbers are those of the npz.

It needs Chromium (Debian's, for example) and `pip install .[browser]`.
"""

import re
import shutil

import numpy as np
import pytest

from tests.analysis.looks.pages import SIZE, make_page, offsets_in

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]
PIXEL = (50, 30)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as player:
        started = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    return folder, make_page(folder, "--pixel", f"[{PIXEL[0]},{PIXEL[1]}]", "--threshold", "0.0", refinement=True)[2]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    make_page(folder, "--compare", "other/best.pth", "--threshold", "0.0", refinement=True)
    return folder


@pytest.fixture
def opened(browser):
    """Opens the page of a folder; afterwards nothing may have gone wrong or asked for another file."""
    troubles, contexts = [], []

    def open_page(folder, width=1280, height=900, motion="reduce", **options):
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion=motion, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: troubles.append(message.text))
        page.on("dialog", lambda dialog: (troubles.append("a dialog"), dialog.dismiss()))
        file = (folder / "explorer.html").as_uri()
        page.on(
            "request",
            lambda asked: None if asked.url in (file,) or asked.url.startswith("data:") else troubles.append(asked.url),
        )
        page.goto(file)
        page.wait_for_selector(".strongest tbody tr")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not troubles


def place(page, x, y, stage=0):
    """Where a pixel of the picture is on the screen."""
    return page.evaluate(
        """([x, y, i]) => {
          const svg = document.querySelectorAll(".stage")[i];
          svg.scrollIntoView({ block: "nearest" });
          const at = svg.getScreenCTM();
          return [at.a * x + at.e, at.d * y + at.f];
        }""",
        [x, y, stage],
    )


def click(page, x, y, stage=0):
    page.mouse.click(*place(page, x, y, stage))


def number(text):
    return float(text.replace("\N{MINUS SIGN}", "-"))


def table(page):
    rows = page.locator(".strongest tbody tr").all()
    return [[number(cell) for cell in row.locator("th, td").all_inner_texts()] for row in rows]


def assert_true(rows, numbers, kind, layer, row):
    """Weights and offsets of the table against `sampling.npz`, to the digits that are shown."""
    weights = numbers[f"{kind}.{layer}.weights"].astype(float)
    levels = numbers[f"{kind}.{layer}.levels"].tolist()
    offsets = offsets_in(numbers, kind, layer).reshape(*weights.shape, 2)
    assert rows
    for weight, head, level, k, dx, dy in rows:
        point = [i for i, of in enumerate(levels) if of == level][int(k)]
        assert abs(weight - weights[row, int(head), point]) <= 0.5001e-4
        np.testing.assert_allclose([dx, dy], offsets[row, int(head), point], rtol=0, atol=0.05001)
    strongest = np.sort(weights[row].ravel())[::-1][: len(rows)]
    np.testing.assert_allclose([r[0] for r in rows], strongest, rtol=0, atol=0.5001e-4)


def drawn(page):
    return page.locator(".points").first.evaluate("group => group.innerHTML")


def test_a_click_on_a_box_shows_its_points(opened, single):
    folder, numbers = single
    page = opened(folder)
    boxes = numbers["boxes_cxcywh"][-1] * np.tile(SIZE, 2)
    inside = [q for q in range(len(boxes)) if 5 < boxes[q, 0] < 90 and 5 < boxes[q, 1] < 60]
    seen = []
    for query in inside[:3]:
        x, y = boxes[query, :2].tolist()
        holding = [q for q, (cx, cy, w, h) in enumerate(boxes) if abs(x - cx) <= w / 2 and abs(y - cy) <= h / 2]
        smallest = min(holding, key=lambda q: boxes[q, 2] * boxes[q, 3])
        click(page, x, y)
        assert f"query {smallest};" in page.locator(".details header").inner_text()
        listed = [int(b.get_attribute("data-query")) for b in page.locator(".candidates li button").all()]
        scores = 1 / (1 + np.exp(-numbers["logits"][-1].max(-1)))
        assert listed == sorted(holding, key=lambda q: -scores[q])[:8]
        for layer in (0, 1, 2):
            page.locator("#switch-layer label").nth(layer).click()
            assert_true(table(page), numbers, "decoder", layer, smallest)
            score = page.locator(".layers tr.current td").first.inner_text()
            label = numbers["logits"][-1, smallest].argmax()
            assert abs(number(score) - 1 / (1 + np.exp(-numbers["logits"][layer, smallest, label]))) <= 0.005001
            seen.append(drawn(page))
    assert len(set(seen)) == len(set(map(str, seen))) > 3


def test_a_place_shows_its_token(opened, single):
    folder, numbers = single
    page = opened(folder)
    page.get_by_label("the encoder token at the place").check(force=True)
    click(page, *PIXEL)
    for level in (0, 1):
        page.locator("#switch-own label").nth(level).click()
        assert f"token {numbers['tokens'][level]}," in page.locator(".details header").inner_text()
        for layer in (0, 1):
            page.locator("#switch-layer label").nth(layer).click()
            assert_true(table(page), numbers, "encoder", layer, level)


def test_switches_say_what_is_drawn(opened, single):
    page = opened(single[0])
    points = page.locator(".point")
    assert points.count() == 8 * 4
    page.locator("#switch-head label").nth(3).click()
    assert points.count() == 4 and {row[1] for row in table(page)} == {2}
    page.locator("#switch-level label").nth(2).click()
    assert points.count() == 3 and {row[2] for row in table(page)} == {1}
    page.locator("#switch-head label").first.click()
    page.locator("#switch-level label").first.click()
    page.locator("#slider-weakest").fill("0.5")
    assert 0 < points.count() < 32
    least = min(row[0] for row in table(page))
    assert least >= 0.5 * number(page.locator(".weights > span").nth(1).inner_text())
    assert page.locator(".box").count() == 6
    page.locator("#slider-threshold").fill("1")
    assert page.locator(".box").count() == 3 and "none, so the best 3" in page.locator("#controls").inner_text()


def test_a_pointer_on_a_point_gets_its_numbers(opened, single):
    page = opened(single[0])
    page.locator("#switch-head label").nth(1).click()
    x, y = map(float, re.findall(r"[\d.-]+", page.locator(".where .reference").inner_text()))
    for *_, dx, dy in table(page)[:3]:
        page.mouse.move(*place(page, x + dx, y + dy))
        shown = re.match(r"weight (\S+)\noffset (\S+), (\S+) px\nlayer 2, ", page.locator(".tip").inner_text())
        order = re.search(r"head (\d), level (\d), k (\d)$", page.locator(".tip").inner_text())
        assert [number(v) for v in (shown[1], *order.groups(), shown[2], shown[3])] in table(page)  # or a neighbour's
    page.mouse.move(2, 2)
    assert page.locator(".tip").is_hidden()


def test_the_keyboard_is_enough(opened, single):
    page = opened(single[0])
    page.keyboard.press("Escape")
    assert page.locator(".point").count() == 0 and "Click a box" in page.locator("#details").inner_text()
    playwright.expect(page.locator("#said")).to_have_text("Nothing is chosen.")
    while "box" not in (page.evaluate("document.activeElement.getAttribute('class')") or ""):
        page.keyboard.press("Tab")
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("Tab")
    second = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert re.match(r"query \d, .*, score 0\.\d\d$", second, re.DOTALL) and second != label
    page.keyboard.press("Enter")
    query = re.match(r"query (\d)", second)[1]
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert f"query {query};" in page.locator(".details header").inner_text()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".layers tr.current").inner_text().startswith("1")
    playwright.expect(page.locator("#said")).to_contain_text("decoder layer 1")
    page.keyboard.press("h")
    assert page.locator(".point").count() == 4
    page.keyboard.press("Shift+H")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.locator("#letters").uncheck()
    page.keyboard.press("Escape")
    assert page.locator("#help").is_hidden() and page.locator(".point").count() == 32
    page.keyboard.press("h")
    assert page.locator(".point").count() == 32
    page.locator(".strongest button").first.focus()
    assert page.locator(".tip").is_visible()


def test_layers_move_unless_motion_is_unwanted(opened, single):
    def frames(motion):
        page = opened(single[0], motion=motion)
        page.locator("#switch-layer label").first.click()
        page.wait_for_timeout(700)
        return page.evaluate(
            """async () => {
              const seen = new Set(), cross = document.querySelector(".cross");
              document.querySelectorAll("#switch-layer input")[2].click();
              const until = performance.now() + 800;
              while (performance.now() < until) {
                seen.add(cross.getAttribute("transform"));
                await new Promise(requestAnimationFrame);
              }
              return seen.size;
            }"""
        )

    assert frames("reduce") == 1 and frames("no-preference") > 4


def test_layers_play(opened, single):
    page = opened(single[0])
    page.get_by_role("button", name="Play layers").click()
    assert page.locator(".layers tr.current").inner_text().startswith("0")
    page.get_by_role("button", name="Play layers").wait_for()  # again, at the end
    assert page.locator(".layers tr.current").inner_text().startswith("2")


def test_zoom_keeps_places(opened, single):
    page = opened(single[0])
    before = page.locator(".stage").get_attribute("viewBox")
    page.get_by_role("button", name="Zoom in").click()
    playwright.expect(page.locator(".stage")).not_to_have_attribute("viewBox", before)
    page.get_by_label("the encoder token at the place").check(force=True)
    x, y = map(float, re.findall(r"[\d.]+", page.locator(".where .reference").inner_text()))
    click(page, x, y)
    cell = list(map(float, re.findall(r"[\d.-]+", page.locator(".where .corners").inner_text())))
    assert cell[0] <= x <= cell[2] and cell[1] <= y <= cell[3]


def test_two_detectors_answer_together(opened, pair):
    page = opened(pair, width=1400)
    titles = page.locator("#stages .side-title").all_inner_texts()
    assert titles == ["untrained", "other/best.pth"] and page.locator(".details").count() == 2

    def both():
        return [page.locator(".points").nth(i).evaluate("group => group.innerHTML") for i in (0, 1)]

    first = both()
    assert all(first) and first[0] != first[1]
    page.locator("#details article").nth(1).locator(".candidates li button").last.click()
    page.locator("#switch-layer label").first.click()
    second = both()
    assert second[0] != first[0] and second[1] != first[1]
    page.get_by_label("the encoder token at the place").check(force=True)
    click(page, 20, 20, stage=1)
    assert page.locator(".details h2").all_inner_texts() == ["Token of level 0"] * 2


def test_a_phone(opened, single, pair):
    for folder in (single[0], pair):
        page = opened(folder, width=390, height=844, has_touch=True, color_scheme="dark")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 19, 24)"
        page.get_by_role("button", name="Light or dark").tap()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(244, 245, 247)"
        small = page.evaluate(
            """() => [...document.querySelectorAll("button, .segments span, summary")]
              .filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 24).length"""
        )
        assert small == 0
        page.keyboard.press("Escape")
        page.touchscreen.tap(*place(page, *PIXEL))
        assert page.locator(".point").count() > 0
