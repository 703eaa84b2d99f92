"""The report page: what is in it, and in a real browser: no requests, no errors, the keyboard."""

import json
import re
from functools import partial

import numpy as np
import pytest
from browsing import browser, opened
from small import random_photos

from tinyconv import Model, alexnet, save_model
from tinyconv.data.open_data import Data
from tinyconv.tools.command_line import main
from tinyconv.weights.report import history_of, page

NAMES = ["</script><b>", "class1", "class2"]


@pytest.fixture(scope="module")
def model():
    net = alexnet(3, 0.05, 64, "robust", seed=1)
    return Model(
        net, np.full((73, 73, 3), 120, np.float32), NAMES, 32.0, ["class0", "class1", "class2"]
    )


@pytest.fixture(scope="module")
def data():
    return Data.of_photos(random_photos(9, size=73), random_photos(13, size=73, seed=1), "drawn")


HISTORY = [
    {
        **{"epoch": i + 1, "lr": 0.01, "train_loss": 2.0 / (i + 1), "val_loss": 1.5},
        **{"train_top1": 0.1 * i, "val_top1": 0.05 * i, "val_top5": 0.5},
    }
    for i in range(6)
]


@pytest.fixture(scope="module")
def text(model, data):
    return page(model, data, HISTORY, "runs/001")


def content(text):
    found = re.search(r'id="data">(.*?)</script>', text, re.S)[1]
    return json.loads(found)


def test_the_page_has_what_the_net_says(text, model, data):
    found = content(text)
    expected = model.probabilities(data.val.images)
    for photo, row, label in zip(found["photos"], expected, data.val.labels, strict=True):
        assert photo["label"] == label and photo["p"] == pytest.approx(row[label], abs=1e-4)
        assert photo["top"][0][0] == row.argmax()
    right = expected.argmax(axis=1) == data.val.labels
    assert sum(row[1] for row in found["by_class"]) == right.sum()
    assert [len(part["image"]) > 50 for part in found["filters"]] == [True, True]  # two columns
    names = [row["name"] for row in found["layers"]]
    assert names[0] == "conv1+relu1" and names[-1] == "fc8"
    assert sum(row["parameters"] for row in found["layers"]) == sum(
        p.value.size for p in model.net.parameters()
    )
    stages = found["walks"][0]["stages"]
    assert [stage["name"] for stage in stages] == [layer.name for layer in model.net]
    model.net.forward(model.preprocess(data.val.images[:1]), train=False)
    assert stages[-1]["range"][2] == pytest.approx(model.net["fc8"].y.max(), rel=1e-3)


def test_neighbours_are_the_nearest_in_fc7(text, model, data):
    found = content(text)["neighbours"]
    pool, own = (model.features(x.images, "fc7") for x in (data.train, data.val))
    for each in found:
        distance = np.linalg.norm(pool - own[each["photo"]], axis=1)
        labels = data.train.labels[distance.argsort(kind="stable")[:6]]
        assert [label for _, label in each["nearest"]] == labels.tolist()


def test_the_page_needs_nothing_else_and_holds_no_tags_of_names(text):
    assert "__DATA__" not in text and "</script><b>" not in text
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:|//)|url\(|@import", text)
    assert len(text) < 5 * 2**20


def test_other_photos_are_refused(model, data):
    other = Data.of_photos(random_photos(6, size=75), random_photos(6, size=75), "x")
    with pytest.raises(ValueError, match="have 75 pixels, the net was trained on 73"):
        page(model, other, [], "x")
    four = Data.of_photos(random_photos(8, 4, size=73), random_photos(8, 4, size=73), "x")
    with pytest.raises(ValueError, match="its classes are not those of the net"):
        page(model, four, [], "x")


def test_the_command_without_photos(model, tmp_path, capsys):
    save_model(tmp_path / "weights.h5", model)
    lines = [json.dumps(each) for each in HISTORY]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"epoch": 7, "lr')
    assert len(history_of(str(tmp_path))) == 6
    assert main(["report", str(tmp_path)]) == 0
    assert "photos" not in content((tmp_path / "report.html").read_text("utf-8"))
    assert main(["report", str(tmp_path), "--data", str(tmp_path / "no")]) == 2
    assert "there is no such file or folder" in capsys.readouterr().err


# --- in a browser

__all__ = ["browser", "opened"]  # fixtures


@pytest.fixture
def open_page(opened, text, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    return partial(opened, file.as_uri())


def script(browser, text):
    return browser.execute_script(f"return {text}")


def test_every_control_works_by_keyboard(open_page, model):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser = open_page()
    assert browser.find_element(By.TAG_NAME, "h1").text == "runs/001"
    slider = browser.find_element(By.ID, "epoch")
    read = browser.find_element(By.ID, "read")
    assert read.text.startswith("epoch 6")
    slider.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert read.text.startswith("epoch 4") and "loss 0.500, top-1 30.0 %" in read.text
    cells = browser.find_elements(By.CSS_SELECTOR, ".matrix button")
    assert len(cells) == 9
    cell = max(cells, key=lambda each: int(each.text) if each.text.isdigit() else 0)
    cell.send_keys(Keys.ENTER)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#cell-photos figure")) == int(cell.text)
    assert cell.get_attribute("aria-label") == browser.find_element(By.ID, "cell").text
    select = browser.find_element(By.ID, "walk")
    before = script(browser, "document.querySelector('#stages figure img').src")
    select.send_keys(Keys.ARROW_DOWN)
    assert script(browser, "document.querySelector('#stages figure img').src") != before
    stages = len(model.net)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#stages .stage")) == stages
    order = script(browser, "[...document.querySelectorAll('input,button,select,[tabindex]')]"
                   ".every(each => each.tabIndex >= 0)")  # fmt: skip
    assert order


def test_hovering_reads_the_curve(open_page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    browser = open_page()
    svg = browser.find_elements(By.TAG_NAME, "svg")[1]
    ActionChains(browser).move_to_element(svg).perform()
    assert browser.find_element(By.ID, "read").text[:7] in ("epoch 3", "epoch 4")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_and_is_legible(open_page, width, scheme):
    browser = open_page(width, scheme=scheme)
    assert script(browser, "document.documentElement.scrollWidth") <= width
    ink = script(browser, "getComputedStyle(document.body).color")
    card = script(browser, "getComputedStyle(document.querySelector('section')).backgroundColor")
    channels = [[int(x) for x in re.findall(r"\d+", colour)[:3]] for colour in (ink, card)]
    assert abs(sum(channels[0]) - sum(channels[1])) > 450
    assert (sum(channels[1]) > 382) == (scheme == "light")
    broken = script(browser, "[...document.images].filter(each => !each.naturalWidth).length")
    assert broken == 0
