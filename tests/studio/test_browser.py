"""The studio as a visitor uses it, in headless Chromium: `make browser`."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.support import cogvideox_twins

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
WIDTH, HEIGHT = 1280, 720
STEPS = 6


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[str]:
    """The address of a studio; whatever visitors gave and got is removed at its end."""
    command = [sys.executable, str(ROOT / "scripts" / "studio.py"), "--no-browser", *arguments]
    environment = os.environ | {"TMPDIR": str(folder), "XLA_FLAGS": ""}
    with (folder / "log").open("w") as log:
        page = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=folder
        )
        try:
            assert page.stdout is not None
            found = re.search(r"http://\S+", page.stdout.readline())
            assert found, (folder / "log").read_text()
            yield found.group()
        finally:
            page.send_signal(signal.SIGINT)
            code = page.wait(60)
    assert code in (0, 130), (folder / "log").read_text()
    assert not list(folder.glob("tora2_studio*"))


@contextmanager
def visiting(address: str, downloads: Path) -> Iterator["Visitor"]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--window-size={WIDTH},{HEIGHT}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.get(address)
        visitor = Visitor(driver, downloads)
        visitor.wait(lambda: visitor.all(".editor[data-checked]"))
        yield visitor
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("studio"), "--steps", str(STEPS)) as address:
        yield address


@pytest.fixture
def visitor(address, tmp_path) -> Iterator["Visitor"]:
    with visiting(address, tmp_path) as visitor:
        yield visitor


class Visitor:
    """A person at the page."""

    def __init__(self, driver: webdriver.Chrome, downloads: Path):
        self.driver, self.downloads = driver, downloads

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        (found,) = self.all(selector)
        return found

    def wait(self, condition, seconds: float = 120):
        """Until a condition holds; what the page has painted anew is looked for again."""
        redone = (StaleElementReferenceException,)
        waiting = WebDriverWait(self.driver, seconds, 0.1, ignored_exceptions=redone)
        return waiting.until(lambda _: condition())

    def click(self, selector: str, number: int = 0) -> None:
        def pressed() -> bool:
            button = self.all(selector)[number]
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
            button.click()
            return True

        self.wait(pressed)

    def drawing(self) -> dict:
        """As the page would send it."""
        return self.driver.execute_script("return document.querySelector('.editor').drawing()")

    def write(self, prompt: str) -> None:
        field = self.one('[data-role="prompt"]')
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(prompt)

    def forget_entities(self) -> None:
        while self.all(".card"):
            self.click('.card [data-key^="remove"]')

    def at(self, x: float, y: float) -> tuple[int, int]:
        """A place of the canvas, in fractions of it, from its middle in screen pixels."""
        size = self.one("svg[data-role=canvas]").size
        return round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"])

    def press(self, *places: tuple[float, float], hold: bool = False) -> None:
        """Clicks at each place, or drags from the first through the others."""
        canvas = self.one("svg[data-role=canvas]")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        actions = ActionChains(self.driver, duration=40)
        for index, place in enumerate(places):
            actions.move_to_element_with_offset(canvas, *self.at(*place))
            if not hold:
                actions.click().pause(0.6)  # two clicks in a row are no double click
            elif index == 0:
                actions.click_and_hold()
        if hold:
            actions.release()
        actions.perform()

    def focus(self, selector: str) -> None:
        self.driver.execute_script("document.querySelector(arguments[0]).focus()", selector)

    def type(self, key: str) -> None:
        """To whatever has the focus."""
        ActionChains(self.driver).send_keys(key).perform()

    def undo(self) -> None:
        """By the keyboard, wherever the focus is."""
        keys = ActionChains(self.driver).key_down(Keys.CONTROL).send_keys("z")
        keys.key_up(Keys.CONTROL).perform()

    def points(self, entity: int) -> list[list[float]]:
        """Fractions of the canvas, and times, of the points that are visible."""
        drawn = self.drawing()
        width, height = drawn["canvas"]
        path = drawn["entities"][entity]["trajectory"] or []
        return [[x / width, y / height, moment] for x, y, moment in filter(None, path)]

    def status(self) -> str:
        return self.one("#status").text

    def problems(self) -> str:
        return "\n".join(place.text for place in self.all(".editor .problem")).strip()

    def picture(self, name: str) -> None:
        if folder := os.environ.get("SCREENSHOTS"):
            self.driver.set_window_size(WIDTH, 1100)
            self.driver.execute_script("window.scrollTo(0, 0)")
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))
            self.driver.set_window_size(WIDTH, HEIGHT)


def draw_two(visitor: Visitor) -> None:
    """Two entities with a picture each, whose paths cross."""
    visitor.forget_entities()
    visitor.write("A kite and a man in a meadow.")
    for word in ("man", "kite"):
        visitor.click(f'.chip[data-word="{word}"]')
        card = visitor.all(".card")[-1]
        card.find_element(By.CSS_SELECTOR, 'input[type="file"]').send_keys(
            str(ROOT / "examples" / f"{word}.png")
        )
        visitor.wait(lambda: visitor.all(".card")[-1].find_elements(By.CSS_SELECTOR, "img[src]"))
    visitor.click('.chip[data-word="man"]')
    visitor.press((0.2, 0.3), (0.35, 0.4), (0.8, 0.7))
    visitor.click('.chip[data-word="kite"]')
    visitor.press((0.2, 0.7), (0.4, 0.56), (0.6, 0.44), (0.8, 0.3), hold=True)


def test_from_a_prompt_to_a_video_and_back_from_its_request(visitor):
    draw_two(visitor)
    man, kite = visitor.points(0), visitor.points(1)
    assert [point[:2] for point in man] == [
        pytest.approx(place, abs=0.02) for place in ([0.2, 0.3], [0.35, 0.4], [0.8, 0.7])
    ]
    assert kite[0][:2] == pytest.approx([0.2, 0.7], abs=0.03)
    assert kite[-1][:2] == pytest.approx([0.8, 0.3], abs=0.03)

    # Where the paths cross, a click selects the one above and the next one that below.
    visitor.click('[data-tool="select"]')
    visitor.press((0.5, 0.5))
    selected = visitor.one(".card.active").get_attribute("data-entity")
    visitor.press((0.5, 0.5))
    below = visitor.one(".card.active").get_attribute("data-entity")
    assert {selected, below} == {"0", "1"}
    visitor.click('.chip[data-word="man"]')
    visitor.press((0.8, 0.7), (0.85, 0.85), hold=True)
    assert visitor.points(0)[-1][:2] == pytest.approx([0.85, 0.85], abs=0.02)
    visitor.press((0.35, 0.4))
    visitor.click('[data-action="pause"]')
    times = [moment for _, _, moment in visitor.points(0)]
    assert len(times) == 4 and times[2] - times[1] == pytest.approx(0.2, abs=0.01)
    visitor.picture("studio_drawing")

    visitor.click("#generate")
    visitor.wait(lambda: re.search(r"Step \d+ of", visitor.status()), 300)
    visitor.wait(lambda: "Done, seed 0" in visitor.status(), 300)
    visitor.wait(lambda: visitor.all("#video video"))
    playing = (
        "const v = document.querySelector('#video video'); return v.readyState > 2 && v.videoWidth"
    )
    visitor.wait(lambda: visitor.driver.execute_script(playing))
    visitor.picture("studio_video")

    package = downloaded(visitor, ".zip")
    with zipfile.ZipFile(package) as archive:
        saved = json.loads(archive.read("request.json"))
    before = visitor.drawing()
    assert saved == before
    visitor.forget_entities()
    visitor.write("Nothing.")
    assert visitor.drawing()["entities"] == []
    visitor.one("input[type=file][accept*=zip]").send_keys(str(package))
    visitor.wait(lambda: visitor.all(".card"))
    assert visitor.drawing()["entities"] == before["entities"]
    visitor.wait(lambda: len(visitor.all(".card img[src]")) == 2)


def downloaded(visitor: Visitor, suffix: str) -> Path:
    """The file of a link of the list of downloads."""
    (link,) = [
        link for link in visitor.all("#files a[href]") if suffix in link.get_attribute("href")
    ]
    visitor.driver.execute_script("arguments[0].click()", link)
    visitor.wait(lambda: list(visitor.downloads.glob(f"*{suffix}")))
    return next(visitor.downloads.glob(f"*{suffix}"))


def test_a_run_is_stopped_within_two_steps(visitor):
    visitor.driver.execute_script("arguments[0].scrollIntoView()", visitor.one("#seed"))
    number = visitor.one("#seed input")
    number.send_keys(Keys.CONTROL, "a")
    number.send_keys("5\t")
    visitor.click("#generate")
    visitor.wait(lambda: re.search(r"Step [1-9]", visitor.status()), 300)
    visitor.click("#stop")
    status = visitor.status()  # when the button was pressed
    visitor.wait(lambda: "stopped after step" in visitor.status())
    step, stopped = (int(re.search(r"tep (\d+)", text)[1]) for text in (status, visitor.status()))
    assert stopped <= step + 2


def test_undo_keyboard_presets_and_time(visitor):
    draw_two(visitor)
    before = visitor.drawing()
    visitor.click('[data-action="clear"]')
    assert visitor.drawing()["entities"][1]["trajectory"] is None
    visitor.click('[data-action="undo"]')
    assert visitor.drawing() == before
    visitor.click('[data-action="redo"]')
    assert visitor.drawing()["entities"][1]["trajectory"] is None
    visitor.one('[data-role="shape"]').send_keys("circle")
    assert len(visitor.points(1)) == 17
    visitor.click('.chip[data-word="man"]')
    visitor.focus('circle[data-point="1"]')
    x = visitor.points(0)[1][0]
    visitor.type(Keys.ARROW_RIGHT)
    assert visitor.points(0)[1][0] == pytest.approx(x + 1 / 256, abs=1e-4)
    time.sleep(1)  # the answer of the check paints anew; the point keeps the focus
    visitor.type(Keys.ARROW_RIGHT)
    assert visitor.points(0)[1][0] == pytest.approx(x + 2 / 256, abs=1e-4)
    visitor.type(Keys.DELETE)
    assert len(visitor.points(0)) == 2
    mark = visitor.all(".bar")[0].find_elements(By.CSS_SELECTOR, ".mark")[-1]
    track = visitor.all(".track")[0].size["width"]
    ActionChains(visitor.driver).drag_and_drop_by_offset(mark, -track // 2, 0).perform()
    assert [moment for _, _, moment in visitor.points(0)] == pytest.approx([0, 0.5], abs=0.03)
    visitor.click(".bar:first-child .part", -1)
    assert visitor.drawing()["entities"][0]["trajectory"][-1] is None
    hidden = visitor.drawing()
    visitor.undo()
    assert visitor.drawing()["entities"][0]["trajectory"][-1] is not None
    visitor.one('[data-role="speed"]').send_keys("slow start")
    times = [moment for _, _, moment in visitor.points(0)]
    assert len(times) > 8 and times[1] - times[0] > 2 * (times[-1] - times[-2])
    assert hidden["prompt"] == visitor.drawing()["prompt"]


def test_nothing_comes_from_another_place(visitor, address):
    named = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    loaded = visitor.driver.execute_script(named)
    assert loaded and all(name.startswith((address, "data:", "blob:")) for name in loaded), loaded


def test_what_is_wrong_stands_beside_its_field(visitor):
    visitor.write("A dog.")
    visitor.wait(lambda: '"kite" is not in the prompt' in visitor.problems())
    card = visitor.all(".card")[1].find_element(By.CSS_SELECTOR, ".problem")
    assert '"kite" is not in the prompt' in card.text
    visitor.click("#generate")
    visitor.wait(lambda: "cannot be generated" in visitor.status())
    assert "entities[1].word" in visitor.status()
    broken = visitor.downloads / "broken.png"
    broken.write_bytes(b"no picture")
    visitor.all('.card input[type="file"]')[0].send_keys(str(broken))
    visitor.wait(lambda: "broken.png" in visitor.problems())


def test_a_model_that_starts_from_a_picture_shows_it_to_draw_on(tmp_path):
    _, converted = cogvideox_twins.convert("cogvideox_1_5_5b_i2v", tmp_path)
    picture = tmp_path / "first.png"
    Image.fromarray(np.full((40, 60, 3), [10, 120, 200], np.uint8)).save(picture)
    with (
        served(tmp_path, "--checkpoint", str(converted)) as address,
        visiting(address, tmp_path) as visitor,
    ):
        visitor.write("A dog runs.")
        visitor.wait(lambda: "starts from an image" in visitor.problems())
        visitor.one('[data-role="image"]').send_keys(str(picture))
        visitor.wait(lambda: visitor.all("svg image[href^='data:image/png']"))
        visitor.wait(lambda: "starts from an image" not in visitor.problems())
        visitor.click('.chip[data-word="dog"]')
        visitor.press((0.3, 0.4), (0.6, 0.4))
        assert [point[:2] for point in visitor.points(0)] == [
            pytest.approx(place, abs=0.02) for place in ([0.3, 0.4], [0.6, 0.4])
        ]
        assert visitor.drawing()["image"]


def test_why_shows_a_panel_of_each_entity(visitor):
    visitor.click("#generate")
    visitor.wait(lambda: "Done" in visitor.status(), 300)
    visitor.click("#why")
    visitor.wait(lambda: "man" in visitor.one("#reasons").text, 300)
    reasons = visitor.one("#reasons").text
    assert "kite" in reasons and "fine:" in reasons
    visitor.wait(lambda: len(visitor.all("#panels img")) >= 2)
    visitor.picture("studio_why")


def test_control_c_ends_it_while_a_page_is_open(tmp_path):
    leaving = ExitStack()
    with leaving, served(tmp_path) as address:
        visitor = leaving.enter_context(visiting(address, tmp_path))
        visitor.click("#generate")
        visitor.wait(lambda: re.search("Step|Preparing", visitor.status()), 300)
    # `served` has ended it within a minute, and the browser was open until now.
