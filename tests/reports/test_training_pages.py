"""The page of runs in a browser: it shows the real numbers, and asks for nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from selenium.webdriver import ActionChains, Keys

from gpt.reports import report
from gpt.runs.history import read_history
from gpt.shards import read_manifest
from tests.browser import in_the_way, needs_axe, needs_chromium
from tests.written_runs import END, evaluation, step, write_run

pytestmark = needs_chromium


class Opened:
    """A page in a browser."""

    def __init__(self, browser, file, dark=False, width=1200):
        self.browser = browser
        browser.set_window_size(width, 1000)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
        browser.get_log("performance"), browser.get_log("browser")
        browser.get(f"file://{file}")
        self.run("sessionStorage.clear()")
        browser.refresh()

    def run(self, script, *given):
        return self.browser.execute_script(script, *given)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def chart(self, title):
        return next(one for one in self.all(".chart")
                    if one.find_element("css selector", "figcaption").text.startswith(title))

    def drawn(self, title):
        """The numbers that a chart has drawn: what uPlot was given, and the labels."""
        return self.run("const plot = arguments[0].plot; return [plot.data.map((column) => "
                        "[...column]), plot.series.map((one) => one.label)]", self.chart(title))

    def legend(self, title):
        return {row.find_element("css selector", "th").text.rstrip(":"):
                row.find_element("css selector", ".u-value").text
                for row in self.chart(title).find_elements("css selector", ".u-legend .u-series")
                if row.is_displayed()}

    def choose(self, axis):
        self.browser.find_element("css selector", f"input[value={axis}]").click()

    def requests(self):
        messages = [json.loads(entry["message"])["message"]
                    for entry in self.browser.get_log("performance")]
        return {message["params"]["request"]["url"].partition(":")[0] for message in messages
                if message["method"] == "Network.requestWillBeSent"}


@pytest.fixture
def two(tmp_path):
    folders = [write_run(tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b"))]
    report(folders).write(tmp_path / "x.html")
    return tmp_path / "x.html"


@pytest.fixture
def page(browser, tmp_path):
    write_run(tmp_path / "a", samples=[{"step": 100, "prompt": "Once", "text": " upon"}])
    report(tmp_path / "a").write(tmp_path / "x.html")
    yield Opened(browser, tmp_path / "x.html")
    assert browser.get_log("browser") == []


def test_the_charts_draw_what_was_logged(page):
    (steps, raw, mean, validation), labels = page.drawn("Loss")
    losses = np.array([step(n)["loss"] for n in range(1, 201)])
    assert labels == ["steps", "training, each step", "training, running mean", "validation"]
    assert steps == [*range(1, 201)] and raw == pytest.approx(losses, rel=1e-5)
    weights = np.exp(-np.arange(200) / 4.0)  # of steps before: a fiftieth of the run counts
    assert mean[150] == pytest.approx(
        np.average(losses[150::-1], weights=weights[:151]), rel=1e-5)
    assert {place: value for place, value in enumerate(validation) if value} == {
        99: 2.9, 199: 2.8}
    norms, labels = page.drawn("Gradient norm")
    assert labels[1:] == ["all", "matrices", "embeddings"]
    for column, name in zip(norms[1:], ("grad_norm", "grad_norm_matrices", "grad_norm_embeddings"),
                            strict=True):
        assert column == pytest.approx([step(n)[name] for n in range(1, 201)], rel=1e-5)
    for title, expected in (("Throughput", 2048), ("Utilisation", 25), ("Memory", 1)):
        assert page.drawn(title)[0][1] == [expected] * 200
    waited = page.drawn("Waiting for data")[0][1]
    assert waited == pytest.approx([1000 * step(n)["data_seconds"] for n in range(1, 201)], 1e-5)


def test_against_tokens_flops_and_hours_it_is_the_same(page):
    before = page.drawn("Loss")[0]
    for axis, of_a_step in (("tokens", 512), ("FLOPs", 512_000), ("hours", 0.25 / 3600)):
        page.choose(axis)
        for title in ("Loss", "Memory"):
            data, labels = page.drawn(title)
            assert labels[0] == axis
            assert data[0] == pytest.approx([n * of_a_step for n in range(1, 201)], rel=1e-5)
        assert page.drawn("Loss")[0][1:3] == before[1:3]
        at = {data: value for data, value in zip(*(page.drawn("Loss")[0][i] for i in (0, 3)),
                                                 strict=True) if value}
        assert [*at.values()] == [2.9, 2.8]
        assert [*at] == pytest.approx([100 * of_a_step, 200 * of_a_step], rel=1e-5)


def test_the_pointer_and_the_arrow_keys_tell_the_numbers_of_a_step(page):
    plot = page.chart("Loss").find_element("css selector", ".plot")
    page.run("arguments[0].focus()", plot)
    for _ in range(3):
        plot.send_keys(Keys.ARROW_RIGHT)
    shown = page.legend("Loss")
    assert shown["steps"] == "3" and shown["training, each step"] == f"{step(3)['loss']:.5g}"
    plot.send_keys(Keys.END)
    assert page.legend("Loss")["steps"] == "200" and page.legend("Loss")["validation"] == "2.8"
    over = plot.find_element("css selector", ".u-over")
    page.run("arguments[0].scrollIntoView({block: 'center'})", over)
    ActionChains(page.browser).move_to_element(over).perform()
    assert 95 <= int(page.legend("Loss")["steps"]) <= 106


def test_a_chart_can_be_zoomed_and_shown_whole_again(page):
    over = page.chart("Loss").find_element("css selector", ".u-over")
    page.run("arguments[0].scrollIntoView({block: 'center'})", over)

    def span():
        return page.run("const scale = arguments[0].plot.scales.x; return [scale.min, scale.max]",
                        page.chart("Loss"))

    whole = span()
    ActionChains(page.browser).move_to_element(over).click_and_hold().move_by_offset(
        80, 0).release().perform()
    zoomed = span()
    assert whole[0] < zoomed[0] < zoomed[1] < whole[1]
    page.chart("Loss").find_element("css selector", "button").click()
    assert span() == whole
    over = page.chart("Loss").find_element("css selector", ".u-over")
    ActionChains(page.browser).move_to_element(over).click_and_hold().move_by_offset(
        80, 0).release().perform()
    assert span() != whole
    page.chart("Loss").find_element("css selector", ".plot").send_keys(Keys.ESCAPE)
    assert span() == whole


def test_a_logarithmic_scale_can_be_switched_on_and_stays_when_the_page_is_read_again(page):
    def scale():
        return page.run("return arguments[0].plot.scales.y.distr", page.chart("Gradient norm"))

    assert scale() == 1
    page.chart("Gradient norm").find_element("css selector", "input").click()
    assert scale() == 3
    page.choose("hours")
    page.browser.refresh()
    assert scale() == 3 and page.drawn("Loss")[1][0] == "hours"
    assert page.run("return arguments[0].plot.scales.y.distr", page.chart("Loss")) == 1


def test_figures_that_are_all_zero_have_no_logarithmic_scale(browser, tmp_path):
    lines = [step(n, data_seconds=0.0) for n in range(1, 30)]
    report(write_run(tmp_path / "a", lines)).write(tmp_path / "x.html")
    page = Opened(browser, tmp_path / "x.html")
    for title, there in (("Waiting for data", False), ("Memory", True)):
        box = page.chart(title).find_element("css selector", "input")
        page.run("arguments[0].scrollIntoView()", box)
        box.click()
        assert box.is_enabled() == box.is_selected() == there
    assert page.drawn("Waiting for data")[0][1] == [0] * 29 and browser.get_log("browser") == []


def test_groups_of_several_runs_are_told_apart_by_dashes(browser, two):
    page = Opened(browser, two)
    looks = page.run("return arguments[0].plot.series.slice(1).map((one) => [one.stroke(), "
                     "String(one.dash)])", page.chart("Gradient norm"))
    assert len(looks) == 6 and len({*map(tuple, looks)}) == 6


def test_nothing_leaves_the_file(browser, two):
    page = Opened(browser, two)
    assert len(page.all(".chart canvas")) >= 8
    assert page.requests() <= {"file", "data"}
    assert browser.get_log("browser") == []
    page.run("new Image().src = 'http://127.0.0.1:9/x'")  # and nothing could
    refused = browser.get_log("browser")
    assert refused and all("Content Security Policy" in each["message"] for each in refused)


def test_several_runs_lie_over_each_other_each_in_its_colour(browser, two):
    page = Opened(browser, two)
    data, labels = page.drawn("Loss")
    assert [label for label in labels if "running" in label] == [
        "a training, running mean", "b training, running mean"]
    for column, seed in ((1, 0), (4, 1)):
        expected = [step(n, seed)["loss"] for n in range(1, 201)]
        assert data[column] == pytest.approx(expected, rel=1e-5)
    strokes = page.run("return arguments[0].plot.series.map((one) => one.stroke && one.stroke())",
                       page.chart("Learning rate"))
    assert len({*strokes[1:3]}) == 1 and strokes[1] != strokes[3]
    (_, mean, high, low), _ = page.drawn("Difference of training loss")
    assert len(mean) == 5 and all(a <= b <= c for a, b, c in zip(low, mean, high, strict=True))
    assert "b\t" in page.run("return document.body.innerText").split("Differences to a")[1]


def test_a_long_run_is_drawn_in_a_thousand_stretches_with_what_they_span(browser, tmp_path):
    lines = [step(n) for n in range(1, 5001)]
    folder = write_run(tmp_path / "a", [*lines, evaluation(5000), END | {"step": 5000}])
    report(folder).write(tmp_path / "x.html")
    page = Opened(browser, tmp_path / "x.html")
    (steps, mean, high, low, *_), _ = page.drawn("Loss")
    losses = read_history(folder).steps["loss"].reshape(1000, 5)
    assert steps == [*range(5, 5001, 5)]
    assert mean == pytest.approx(losses.mean(axis=1), rel=1e-5)
    assert high == pytest.approx(losses.max(axis=1), rel=1e-5)
    assert low == pytest.approx(losses.min(axis=1), rel=1e-5)
    assert page.legend("Loss").keys() == {"steps", "training, mean of steps",
                                          "training, running mean", "validation"}


def test_both_themes_are_drawn_and_the_choice_is_kept(browser, page):
    def look():
        return page.run("return [getComputedStyle(document.body).backgroundColor, "
                        "arguments[0].plot.series[1].stroke()]", page.chart("Memory"))

    light = look()
    button = browser.find_element("id", "theme")
    button.click(), button.click()
    assert button.text == "Theme: dark"
    dark = look()
    assert dark[0] != light[0] and dark[1] != light[1]
    browser.refresh()
    assert look() == dark
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert look() == light
    page.run("dispatchEvent(new Event('afterprint'))")
    assert look() == dark


@needs_axe
@pytest.mark.parametrize(("dark", "width"), [(False, 1200), (True, 1200), (False, 390)])
def test_nothing_is_in_the_way_of_those_who_see_or_move_otherwise(
        browser, two, workplace, dark, width):
    for file in (two, workplace / "runs/base/report.html", workplace / "runs/tuned/report.html"):
        page = Opened(browser, file, dark, width)
        for each in page.all("summary"):
            each.click()
        serious, passes = in_the_way(browser)
        assert serious == {} and passes > 20
        assert page.run("return document.documentElement.scrollWidth") <= width


def test_the_report_of_a_real_run_says_all_that_it_should(browser, workplace):
    page = Opened(browser, workplace / "runs/base/report.html")
    text = page.run("return document.body.innerText")
    for said in ("n_layer 2, n_head 2", "data/c", "bpe:300", "train split", "source corpus",
                 "step 20", "step 60", "Validation loss", "python train.py data.dataset=data/c"):
        assert said in text
    history = read_history(workplace / "runs/base")
    assert [line["step"] for line in history.evaluations] == [20, 40, 60]
    _, training, validation = page.drawn("Bits per byte")[0]
    train = read_manifest(workplace / "data/c").splits["train"]
    assert training[0] == pytest.approx(
        history.steps["loss"][0] / np.log(2) * train.tokens / train.bytes, rel=1e-5)
    assert [value for value in validation if value is not None] == [
        pytest.approx(line["val_bits_per_byte"], rel=1e-5) for line in history.evaluations]
    tuned = Opened(browser, workplace / "runs/tuned/report.html")
    rows = [[cell.text for cell in row.find_elements("css selector", "th, td")]
            for row in tuned.all('[aria-label="before and after"] tr')]
    first, last = (read_history(workplace / "runs/tuned").evaluations[place] for place in (0, -1))
    assert rows[1][:3] == ["Validation loss", f"{first['val_loss']:.4g}", f"{last['val_loss']:.4g}"]
    tuned.choose("tokens")
    (tokens, *_, validation), _ = tuned.drawn("Loss")
    assert [place for place, value in zip(tokens, validation, strict=True) if value] == [
        0, last["tokens"]]
    assert browser.get_log("browser") == []
