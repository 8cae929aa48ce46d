"""The page in a real browser: the whole way, by mouse and by keyboard alone, wide and narrow."""

import json
import re
import shutil

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from tests.gallery.fake_searcher import FakeSearcher
from tests.server.inputs import index, png
from tests.server.process import running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium (apt install chromium)")
WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    index(folder, FakeSearcher())
    (folder / "query.png").write_bytes(png(9, 1))
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with running(folder) as (_, address, log):
        yield address, log


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(server, browser):
    """``open_page(**context)``: the page. Nothing may fail in it, nor be asked of other hosts."""
    address, _ = server
    problems, contexts = [], []

    def look(**options):
        context = browser.new_context(**{"viewport": WIDE, "locale": "en-GB", **options})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: _same_host(r.url, address) or problems.append(r.url))
        # The browser writes a line for every answer of 4xx too.
        page.on("console", lambda m: "Security Policy" in m.text and problems.append(m.text))
        page.goto(address)
        return page

    yield look
    for context in contexts:
        context.close()
    assert problems == []


def _same_host(url, address):
    return url.startswith((address, f"blob:{address}", "data:"))


def drop(page, folder):
    """Drop the query picture onto the page, as somebody who drags it from a folder."""
    content = list((folder / "query.png").read_bytes())
    transfer = page.evaluate_handle(
        """(content) => {
            const transfer = new DataTransfer();
            const bytes = new Uint8Array(content);
            transfer.items.add(new File([bytes], "query.png", {type: "image/png"}));
            return transfer;
        }""",
        content,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def results(page):
    """Ids of the results that are shown."""
    return page.locator("#results > li").evaluate_all("list => list.map(x => x.dataset.id)")


def no_serious_problem(page):
    found = Axe().run(page)
    serious = [v for v in found.response["violations"] if v["impact"] in ("serious", "critical")]
    assert not serious, [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in serious]
    assert found.response["passes"]


def test_the_whole_way(open_page, folder, tmp_path):
    page = open_page(accept_downloads=True)
    expect(page.locator("#facts")).to_have_text(re.compile("8 people · 2 cameras · .*calibrated"))
    no_serious_problem(page)
    drop(page, folder)
    expect(page.locator("#stage .box")).to_have_count(2)
    expect(page.locator("#status")).to_have_text("2 people were found: choose one.")
    page.locator("#stage .box").nth(1).click()
    cards = page.locator("#results > li")
    expect(cards).to_have_count(5)
    expect(page.locator("#status")).to_have_text("5 scenes found.")
    assert page.locator(".verdict").all_text_contents()[:3] == ["likely"] * 3
    # Every picture is loaded and has a text, and the box is where the person is.
    for image in page.locator("#results img").all():
        image.scroll_into_view_if_needed()
        expect(image).to_have_attribute("src", re.compile("^blob:"))
        assert image.get_attribute("alt")
    plain = results(page)
    no_serious_problem(page)

    # Filters: a camera, then a range of the timeline.
    page.locator("#cameras label", has_text="gate").click()
    expect(cards).to_have_count(2)
    page.locator("#cameras label", has_text="gate").click()
    expect(cards).to_have_count(5)
    page.fill("#from", "2026-11-02T00:00:00")
    page.locator("#from").blur()
    expect(cards).to_have_count(4)
    page.click("#all-times")
    expect(cards).to_have_count(5)
    area = page.locator("#timeline").bounding_box()
    page.mouse.move(area["x"] + 0.7 * area["width"], area["y"] + 10)
    page.mouse.down()
    page.mouse.move(area["x"] + 0.9 * area["width"], area["y"] + 10, steps=4)
    page.mouse.up()
    expect(cards).to_have_count(1)
    page.click("#all-times")
    expect(cards).to_have_count(5)
    # A folder, and the score of the detector, which everybody has 90 % of.
    assert page.locator("#folder option").all_text_contents() == ["all", "door (5)", "gate (3)"]
    page.select_option("#folder", label="gate (3)")
    expect(cards).to_have_count(2)
    page.select_option("#folder", label="all")
    expect(cards).to_have_count(5)
    expect(page.locator("#score-shown")).to_have_text("any")
    page.focus("#score")
    page.keyboard.press("End")
    expect(page.locator("#score-shown")).to_have_text("95 %")
    expect(page.locator("#found-title")).to_have_text("Nobody like this")
    page.keyboard.press("ArrowLeft")
    expect(cards).to_have_count(5)
    page.keyboard.press("Home")
    expect(page.locator("#score-shown")).to_have_text("any")
    page.select_option("#per", "camera")
    expect(cards).to_have_count(2)
    page.select_option("#per", "picture")
    expect(cards).to_have_count(5)

    # Marks: two of them, refined, and taken back one after the other.
    cards.nth(0).locator(".wrong").click()
    cards.nth(1).locator(".right").click()
    assert results(page) == plain
    expect(cards.nth(0)).to_have_class(re.compile("is-wrong"))
    page.click("#refine")
    expect(page.locator("#status")).to_have_text(re.compile("refined by 2 marks"))
    assert plain[0] not in results(page)
    page.click("#undo")
    page.click("#undo")
    expect(page.locator("#undo")).to_be_hidden()
    expect(page.locator("#status")).to_have_text("5 scenes found.")
    assert results(page) == plain

    # Files.
    with page.expect_download() as download:
        page.click("#save-json")
    download.value.save_as(tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())["results"]
    assert [r["id"] for r in found] == plain
    with page.expect_download() as download:
        page.click("#save-page")
    download.value.save_as(tmp_path / "found.html")
    assert (tmp_path / "found.html").read_text().count("data:image/jpeg") == 2 * 6

    # Somebody of a scene instead.
    cards.nth(4).get_by_role("button", name="Search for this one").click()
    expect(page.locator(f'#results > li[data-id="{plain[4]}"]')).to_have_count(0)
    expect(page.locator("#chosen li")).to_have_count(1)


def test_the_keyboard_alone(open_page, folder):
    page = open_page()
    expect(page.locator("#facts")).not_to_be_empty()

    def tab_to(selector):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("#file")
    page.set_input_files("#file", folder / "query.png")  # what the dialog of the system gives
    expect(page.locator("#stage .box").nth(0)).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    cards = page.locator("#results > li")
    expect(cards).to_have_count(5)
    expect(page.locator("#stage .box").nth(1)).to_have_attribute("aria-pressed", "true")
    tab_to("#cameras input")
    page.keyboard.press("Space")
    expect(cards).to_have_count(3)
    page.keyboard.press("Space")
    expect(cards).to_have_count(5)
    tab_to("#from-handle")
    handle = page.locator("#from-handle")
    before = handle.get_attribute("aria-valuetext")
    for _ in range(2):
        page.keyboard.press("PageUp")  # a sixth of the time, most of the first day
    expect(cards).to_have_count(4)
    assert handle.get_attribute("aria-valuetext") != before
    page.keyboard.press("Home")
    expect(cards).to_have_count(5)
    page.keyboard.press("End")
    assert handle.get_attribute("aria-valuenow") == "120"
    expect(cards).to_have_count(1)
    page.keyboard.press("Home")
    expect(cards).to_have_count(5)

    tab_to("#results .scene")
    page.keyboard.press("w")
    expect(cards.nth(0)).to_have_class(re.compile("is-wrong"))
    page.keyboard.press("Control+z")
    expect(cards.nth(0)).not_to_have_class(re.compile("is-wrong"))
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    expect(viewer).to_be_visible()
    title = page.locator("#viewer-title")
    shown = title.text_content
    expect(viewer.locator("img")).to_have_attribute("src", re.compile("^blob:"))
    expect(viewer.locator(".box[aria-pressed=true]")).to_have_count(1)
    page.keyboard.press("r")
    expect(page.locator("#viewer-right")).to_have_attribute("aria-pressed", "true")
    assert "1 Nov" in shown()
    page.keyboard.press("ArrowRight")
    expect(title).to_have_text(re.compile("door · 2 Nov"))
    expect(page.locator("#viewer-right")).to_be_disabled()
    page.keyboard.press("ArrowRight")
    expect(title).to_have_text(re.compile("door · 5 Nov"))
    page.keyboard.press("ArrowRight")  # there is no later one
    page.keyboard.press("ArrowLeft")
    expect(title).to_have_text(re.compile("door · 2 Nov"))
    page.keyboard.press("ArrowUp")
    no_serious_problem(page)
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(page.locator("#results .scene").first).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(open_page, folder, scheme):
    page = open_page(viewport=PHONE, color_scheme=scheme, has_touch=True, is_mobile=True)
    expect(page.locator("#facts")).not_to_be_empty()
    page.set_input_files("#file", folder / "query.png")
    page.locator("#stage .box").nth(1).tap()
    cards = page.locator("#results > li")
    expect(cards).to_have_count(5)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= PHONE["width"]
    no_serious_problem(page)
    # Fingers can place, drag and size a box, which they cannot draw.
    page.locator(".place-box").tap()
    page.evaluate("scrollTo(0, 0)")
    area = page.locator("#stage .picture").bounding_box()
    scale = area["width"] / 100
    with page.expect_request("**/api/search") as asked:
        page.mouse.move(area["x"] + 50 * scale, area["y"] + 20 * scale)
        page.mouse.down()
        page.mouse.move(area["x"] + 35 * scale, area["y"] + 10 * scale, steps=3)
        page.mouse.up()
    assert asked_box(asked.value) == pytest.approx([22.5, 0, 47.5, 20], abs=0.5)
    with page.expect_request("**/api/search") as asked:
        page.mouse.move(area["x"] + 47.5 * scale, area["y"] + 20 * scale)
        page.mouse.down()
        page.mouse.move(area["x"] + 37.5 * scale, area["y"] + 18 * scale, steps=3)
        page.mouse.up()
    assert asked_box(asked.value) == pytest.approx([22.5, 0, 37.5, 18], abs=0.5)
    expect(cards).to_have_count(5)
    no_serious_problem(page)
    cards.nth(0).locator(".scene").tap()
    expect(page.locator("#viewer img")).to_have_attribute("src", re.compile("^blob:"))
    for name in ("#earlier", "#later", "#viewer-right", "#viewer-search", "#close"):
        box = page.locator(name).bounding_box()
        assert 0 <= box["x"] and box["x"] + box["width"] <= PHONE["width"], name
        assert box["y"] + box["height"] <= PHONE["height"] and box["height"] >= 40, name
    no_serious_problem(page)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(17, 21, 30)" if scheme == "dark" else "rgb(244, 245, 248)")


def test_a_box_that_is_drawn_and_a_picture_of_another_kind(open_page, folder, tmp_path):
    from PIL import Image

    page = open_page()
    expect(page.locator("#facts")).not_to_be_empty()
    picture = Image.open(folder / "query.png")
    picture.save(tmp_path / "query.webp", lossless=True)
    page.set_input_files("#file", tmp_path / "query.webp")
    area = page.locator("#stage .picture")
    expect(area).to_be_visible()
    bounds = area.bounding_box()
    page.mouse.move(bounds["x"] + 0.21 * bounds["width"], bounds["y"] + 0.02 * bounds["height"])
    page.mouse.down()
    page.mouse.move(
        bounds["x"] + 0.6 * bounds["width"], bounds["y"] + 0.9 * bounds["height"], steps=5
    )
    page.mouse.up()
    expect(page.locator("#stage .drawn")).to_have_count(1)
    expect(page.locator(".edges input").nth(1)).to_have_value("1")
    expect(page.locator("#results > li")).to_have_count(5)
    assert page.locator(".verdict").first.text_content() == "likely"
    (tmp_path / "words.txt").write_text("no picture")
    page.set_input_files("#file", tmp_path / "words.txt")
    expect(page.locator("#status")).to_have_text("words.txt is no picture.")


def asked_box(request):
    """The box of a search that the page asks for."""
    return request.post_data_json["query"][0]["box"]


def test_a_box_by_the_keyboard_alone(open_page, folder, tmp_path):
    from PIL import Image

    Image.new("RGB", (100, 40)).save(tmp_path / "nobody.png")
    page = open_page()
    expect(page.locator("#facts")).not_to_be_empty()
    page.set_input_files("#file", tmp_path / "nobody.png")
    expect(page.locator("#status")).to_have_text(re.compile("^Nobody was found"))
    expect(page.locator(".place-box")).to_be_focused()
    page.set_input_files("#file", folder / "query.png")
    expect(page.locator("#stage .box").nth(0)).to_be_focused()
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.locator(".place-box")).to_be_focused()
    page.keyboard.press("Enter")
    drawn = page.locator("#stage .drawn")
    expect(drawn).to_be_focused()
    no_serious_problem(page)
    # From the middle (37.5, 10, 62.5, 30) to the upper left, and smaller, without being searched
    # for on the way.
    with page.expect_request("**/api/search") as asked:
        for key, times in (
            ("ArrowLeft", 8),
            ("ArrowUp", 15),
            ("Shift+ArrowLeft", 2),
            ("Shift+ArrowUp", 3),
            ("ArrowDown", 1),
        ):
            for _ in range(times):
                page.keyboard.press(key)
    assert asked_box(asked.value) == [21.5, 1, 42.5, 18]
    expect(drawn).to_have_attribute("aria-pressed", "true")
    cards = page.locator("#results > li")
    expect(cards).to_have_count(5)
    assert page.locator(".verdict").first.text_content() == "likely"
    no_serious_problem(page)
    # The same by numbers, which are limited to the picture.
    fields = page.locator(".edges input")
    shown = fields.evaluate_all("list => list.map(x => x.value)")
    assert shown == ["22", "1", "43", "18"]
    fields.nth(2).focus()
    with page.expect_request("**/api/search") as asked:
        page.keyboard.press("Control+a")
        page.keyboard.type("900")
        page.keyboard.press("Tab")
    assert asked_box(asked.value) == [21.5, 1, 100, 18]
    drawn.focus()
    page.keyboard.press("Escape")
    expect(drawn).to_have_count(0)
    expect(page.locator(".place-box")).to_be_focused()


def test_the_token(browser, folder, tmp_path):
    file = tmp_path / "token.txt"
    with running(folder, "--token-file", str(file)) as (_, address, log):
        token = file.read_text().strip()
        page = browser.new_page()
        page.goto(address)
        expect(page.locator("#login")).to_be_visible()
        no_serious_problem(page)
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#login-problem")).to_have_text("That is not the token.")
        page.fill("#token", token)
        page.keyboard.press("Enter")
        expect(page.locator("#facts")).not_to_be_empty()
        page.set_input_files("#file", folder / "query.png")
        page.locator("#stage .box").nth(1).click()
        expect(page.locator("#results img").first).to_have_attribute("src", re.compile("^blob:"))
        page.close()
        page = browser.new_page()  # another tab asks again, or is given it by the address
        page.goto(f"{address}#token={token}")
        expect(page.locator("#facts")).not_to_be_empty()
        assert page.url == address and token not in log()
        page.close()


def test_a_server_that_has_forgotten_the_picture(open_page, folder, server):
    page = open_page()
    expect(page.locator("#facts")).not_to_be_empty()
    page.set_input_files("#file", folder / "query.png")
    page.locator("#stage .box").nth(1).click()
    expect(page.locator("#results > li")).to_have_count(5)
    asked = []

    def forget(route):
        asked.append(route.request.post_data)
        if len(asked) > 1:
            return route.continue_()
        error = {"code": "picture-gone", "message": "gone", "request": "1"}
        return route.fulfill(status=404, json={"error": error})

    page.route("**/api/search", forget)
    page.locator("#cameras label", has_text="gate").click()
    expect(page.locator("#results > li")).to_have_count(2)
    assert len(asked) == 2 and asked[0] != asked[1]
