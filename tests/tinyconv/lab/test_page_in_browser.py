"""The page of `draw-kernel` in a real browser: what lights up, what the keys do, how it fits."""

from collections import defaultdict

import pytest
from browsing import browser, opened
from simulated import line_of

from layers.simulator.arrays import WARP
from tinyconv.lab.cases import CASES
from tinyconv.lab.picture import page
from tinyconv.lab.picture_command import launches

pytest.importorskip("selenium")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

__all__ = ["browser", "opened"]  # fixtures


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """By name: the launches, and the address of their page."""
    folder, made = tmp_path_factory.mktemp("pages"), {}
    for name, shape in (("max_pool", (2, 5, 7, 6)), ("conv", (1, 3, 4, 2))):
        drawn = launches(name, shape)
        file = folder / f"{name}.html"
        file.write_text(page(name, drawn), encoding="utf-8")
        made[name] = drawn, file.as_uri()
    return made


@pytest.fixture
def open_page(opened, pages):
    """Opens a page, as large and as dark as wanted; returns its launches."""

    def open_it(name="max_pool", at="", **screen):
        launches, address = pages[name]
        opened(f"{address}#{at}", **screen)
        return launches

    return open_it


def lit(browser, array, kind):
    """Cell -> classes, of the cells of `array` that are `kind` (read, write, ...) now."""
    return {
        int(cell): set(classes.split())
        for cell, classes in browser.execute_script(
            "return [...document.querySelectorAll("
            f"`[data-array='{array}'] .cell.{kind}`)].map(c => [c.dataset.cell, c.className])"
        )
    }


def at_turn(launch, block, line, turn):
    """Cell -> warps, of the `turn`-th access of each thread on a line: from the trace alone."""
    trace, turns, cells = launch.trace, defaultdict(int), defaultdict(set)
    for access in trace.accesses:
        segment = trace.segments[access["segment"]]
        if trace.instructions[access["instruction"]].line == line and segment["block"] == block:
            thread = int(segment["thread"])
            if turns[thread] == turn:
                cells[int(access["offset"])].add(thread // WARP)
            turns[thread] += 1
    return dict(cells)


def step_now(browser):
    return int(browser.find_element(By.ID, "step").get_attribute("value"))


def press(browser, *keys):
    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def test_the_right_cells_light_up_in_their_warps_colours(browser, open_page):
    forward = open_page(at="launch=0&block=0&step=0")[0]
    line = line_of(CASES["max_pool_forward_kernel"].kernel, "value = x[n, h, w, c]")
    for turn in (0, 4, 8):  # the first step reads `best`, the next nine are the window
        browser.execute_script(
            "const s = document.getElementById('step'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input', {bubbles: true}))",
            1 + turn,
        )
        now = lit(browser, "x", "read")
        expected = at_turn(forward, 0, line, turn)
        assert set(now) == set(expected)
        for cell, warps in expected.items():
            assert now[cell] & {f"c{i}" for i in range(8)} <= {f"c{warp}" for warp in warps}
    assert lit(browser, "y", "read") == {} and lit(browser, "y", "write") == {}


def test_a_write_looks_different_from_a_read(browser, open_page):
    open_page(at="launch=0&step=10")
    line = line_of(CASES["max_pool_forward_kernel"].kernel, "y[n, p, q, c] = best")
    current = browser.find_element(By.CSS_SELECTOR, "#source .now")
    assert current.get_attribute("data-line").endswith(f":{line}")
    written = lit(browser, "y", "write")
    assert len(written) == 2 * 2 * 3 * 6 and lit(browser, "x", "read") == {}
    assert all("read" not in classes for classes in written.values())
    frame = browser.execute_script(
        "return getComputedStyle(document.querySelector('.array .write')).boxShadow"
    )
    assert "inset" in frame


def test_the_keys_walk_through_the_steps(browser, open_page):
    forward = open_page()[0]
    last = len(forward.block(0).steps) - 1
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert step_now(browser) == 1
    press(browser, Keys.END)
    assert step_now(browser) == last
    press(browser, Keys.ARROW_RIGHT)  # no further
    assert step_now(browser) == last
    assert f"Step {last + 1} of {last + 1}" in browser.find_element(By.ID, "now").text
    press(browser, Keys.HOME)
    assert step_now(browser) == 0
    # The slider itself, with the focus on it, goes one step for one key.
    slider = browser.find_element(By.ID, "step")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert step_now(browser) == 1
    assert "read x" in slider.get_attribute("aria-valuetext")
    assert f"step={step_now(browser)}" in browser.current_url


def test_play_goes_on_by_itself_until_it_is_stopped(browser, open_page):
    open_page(at="step=3")
    button = browser.find_element(By.ID, "play")
    button.click()
    assert button.text == "Stop"
    WebDriverWait(browser, 10).until(lambda _: step_now(browser) > 3)
    button.click()
    assert button.text == "Play"


def test_tab_comes_by_every_control_and_shows_where_it_is(browser, open_page):
    open_page()
    seen = []
    for _ in range(8):
        press(browser, Keys.TAB)
        name, style = browser.execute_script(
            "const e = document.activeElement; return [e.id, getComputedStyle(e).outlineStyle]"
        )
        assert style == "solid", f"no focus to be seen on {name}"
        seen.append(name)
    assert seen[:7] == ["launch", "block", "thread", "play", "forth", "step", "source"]


def test_choosers(browser, open_page):
    launches = open_page()
    backward = launches[1]
    browser.execute_script(
        "const s = document.getElementById('launch'); s.value = 1;"
        "s.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    assert browser.find_element(By.ID, "kernel").text == "max_pool_backward_kernel"
    blocks = browser.find_elements(By.CSS_SELECTOR, "#block option")
    assert len(blocks) == backward.trace.blocks > 1
    blocks[2].click()
    press(browser, Keys.TAB)  # leave the chooser, or it takes the keys
    browser.execute_script("document.activeElement.blur()")
    press(browser, Keys.HOME)
    line = line_of(CASES["max_pool_backward_kernel"].kernel, "if winner[")
    assert set(lit(browser, "winner", "read")) == set(at_turn(backward, 2, line, 0))
    press(browser, "]", "]")  # round to the first block again
    assert set(lit(browser, "winner", "read")) == set(
        at_turn(backward, (2 + 2) % backward.trace.blocks, line, 0)
    )


def test_barriers_are_marks_on_the_slider_and_shared_memory_is_drawn(browser, open_page):
    launches = open_page("conv", "launch=3&block=1&step=4")
    launch = launches[3]
    assert launch.trace.kernel == "conv_bias_gradient_kernel"
    marks = browser.execute_script(
        "return [...document.querySelectorAll('#marks i')].map(m => +m.dataset.after)"
    )
    assert marks == [mark.after for mark in launch.block(1).marks] and len(marks) > 3
    barriers = browser.find_elements(By.CSS_SELECTOR, "#source .barrier")
    assert all("syncthreads" in row.text for row in barriers) and len(barriers) == 2
    step = launch.step(1, 4)
    cells = {cell for request in step.requests for cell in request.cells}
    assert set(lit(browser, "partial", "write" if step.write else "read")) == cells


def test_scattered_requests_are_red_and_say_so(browser, open_page):
    launch = open_page("conv", "launch=3")[3]
    (request,) = launch.step(0, 0).requests
    assert request.bad
    assert set(lit(browser, "dy", "bad")) == set(request.cells)
    text = browser.find_element(By.ID, "now").text
    assert "not coalesced" in text
    requests = browser.find_element(By.ID, "requests").text
    assert f"{request.sectors} sectors, {request.ideal} would do" in requests


def test_one_warp_can_be_hidden_and_one_thread_followed(browser, open_page):
    open_page(at="launch=1&step=0")
    browser.find_element(By.CSS_SELECTOR, "#requests .request").click()
    assert all("c0" not in classes for classes in lit(browser, "winner", "read").values())
    browser.find_element(By.ID, "thread").send_keys("33")
    assert len(lit(browser, "winner", "followed")) == 1


def test_a_cell_tells_what_it_holds(browser, open_page):
    forward = open_page(at="step=1")[0]
    grid = browser.find_element(By.CSS_SELECTOR, "[data-array='x'] .scroll")
    grid.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    text = browser.find_element(By.CSS_SELECTOR, "[data-array='x'] .info").text
    value = float(f"{forward.arrays[0].values[None][1]:.4g}")
    assert text.startswith(f"x[0, 0, 0, 1] = {value:g} after the launch; read by warp 0, lane 1")
    assert step_now(browser) == 1  # the arrows walked in the array, not in time


@pytest.mark.parametrize("name", ["max_pool", "conv"])
def test_a_phone_scrolls_arrays_not_the_page(name, browser, open_page):
    open_page(name, width=360, height=740)
    for launch in range(2):
        browser.execute_script(
            "const s = document.getElementById('launch'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('change', {bubbles: true}))",
            launch,
        )
        wide, room = browser.execute_script(
            "return [document.documentElement.scrollWidth, innerWidth]"
        )
        assert wide <= room == 360


def test_dark_is_dark_and_readable(browser, open_page):
    def colours():
        return browser.execute_script(
            "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        )

    def light_of(colour):
        red, green, blue = (int(n) for n in colour[4:-1].split(","))
        return (0.299 * red + 0.587 * green + 0.114 * blue) / 255

    open_page()
    paper, ink = map(light_of, colours())
    assert paper > 0.9 and ink < 0.25
    open_page(scheme="dark")
    paper, ink = map(light_of, colours())
    assert paper < 0.15 and ink > 0.8
