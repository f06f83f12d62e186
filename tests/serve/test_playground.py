"""The playground in a browser, as a person uses it; by the keyboard alone where that is said."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import time

import pytest
from selenium.webdriver import ActionChains, Keys

from gpt.chat import FORMATS
from gpt.finetuning import read_task
from gpt.language_model import load
from gpt.runs import checkpoint
from gpt.serve import Opening, Place, mark_runs, serve_models, watching
from gpt.tokenizer import build_tokenizer
from tests.browser import in_the_way, needs_axe, needs_chromium, started
from tests.serve.browser import READABLE, Page, likeliest, trained
from tests.serve.conftest import LIMITS, Running
from tests.tiny import ROOT, script_environment

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of two models, both of which converse."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("one", "two")):
        tokenizer = build_tokenizer("byte")
        tokenizer.chat_format = FORMATS["turns"].model_dump_json()
        checkpoint.save_model(folder / name, trained(seed), tokenizer, "random")
    return folder


@pytest.fixture(scope="module")
def served(runs):
    how = Opening("cpu", "float32")
    running = Running(serve_models([str(runs / "one"), str(runs / "two")], LIMITS, how),
                      Place(port=0))
    yield running
    running.close()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with started(tmp_path_factory.mktemp("downloads")) as browser:
        yield browser


@pytest.fixture
def page(driver, served):
    page = Page(driver, served).open()
    yield page
    assert page.logged() == []  # no error, no warning


def test_text_is_what_the_model_writes_and_comes_token_by_token(page, monkeypatch):
    page.write("The ", max_tokens=30, seed=5, **READABLE)
    expected = page.running.lm("one").generate("The ", max_new_tokens=30, seed=5, **READABLE)
    assert page.text() == expected and len(page.all(".token")) == 30
    surprises = {token.value_of_css_property("background-color") for token in page.all(".token")}
    assert len(surprises) > 5  # colours that say how unlikely each is
    seen, writer = set(), page.running.models["one"].writer
    step = writer.step
    monkeypatch.setattr(writer, "step", lambda: (time.sleep(0.03), step())[1])
    page.set(max_tokens=120)
    page.one("#ask button.main").click()
    page.until(lambda: seen.add(len(page.all(".token"))) or len(seen) > 2)
    page.one("body").send_keys(Keys.ESCAPE)
    page.until(lambda: page.one(".status").text == "stopped")
    assert 0 < len(page.all(".token")) < 120
    monkeypatch.undo()
    assert page.asks_with("curl")["choices"][0]["text"] == page.text()  # so much, and no more
    page.choose("two")  # begins anew; what was written still says what wrote it
    assert not page.all(".token")
    page.all(".branches button")[-1].click()
    assert page.asks_with("curl")["choices"][0]["text"] == page.text()


def test_an_alternative_can_be_chosen_and_its_branch_is_kept_beside_the_first(page):
    page.write("The ", max_tokens=12, seed=3, **READABLE)
    first = page.text()
    page.click(".token", 4)
    page.until(lambda: "In place of" in page.one(".place").text)
    texts, before, _ = page.until(lambda: page.all(".places [aria-current]") and likeliest(page))
    page.one("body").send_keys(Keys.ESCAPE)  # nothing is being written: nothing changes
    assert likeliest(page)[0] == texts
    assert list(before) == sorted(before, reverse=True)
    other = next(i for i, text in enumerate(texts) if text.isalpha() and text != first[4])
    page.click(".places button", other)
    page.ended()
    second = page.text()
    assert second[:5] == first[:4] + texts[other] and len(second) == 17
    lm = page.running.lm("one")
    begun = lm.tokenizer.encode(second[:5])
    assert second == lm.generate("The ", max_new_tokens=17, seed=3, forced_tokens=begun, **READABLE)
    branches = page.all(".branches button")
    assert [first.split(), second[4:].split()] == [branch.text.split() for branch in branches]
    assert branches[1].find_elements("xpath", "ancestor::li")[-2:]  # below the first
    branches[0].click()
    assert page.text() == first
    page.click(".branches button", 1)
    assert page.text() == second
    page.click(".token", 4)  # again in the same place: beside the second, not below it
    page.until(lambda: page.all(".places [aria-current]"))
    page.click(".places li:not(:has([aria-current])) button")
    page.ended()
    assert len(page.all(".branches > li > ul > li > ul > li")) == 2


def test_sliders_show_at_once_what_they_do_to_the_next_token(page):
    page.write("The ", max_tokens=5, seed=1)
    page.click(".token", 2)
    _, before, after = page.until(lambda: page.all(".places [aria-current]") and likeliest(page))
    assert before == after
    page.set(top_k=2)
    _, again, after = page.until(lambda: (found := likeliest(page))[1] != found[2] and found)
    assert again[:5] == before[:5] and after[2:] == (0.0,) * len(after[2:])
    assert sum(after) == pytest.approx(100, abs=0.2)
    assert after[0] == pytest.approx(100 * before[0] / (before[0] + before[1]), abs=0.2)
    page.set(top_k=0, temperature=0)
    page.until(lambda: likeliest(page)[2][0] == 100.0)
    page.one("[name=reset]").click()
    page.until(lambda: (found := likeliest(page))[1] == found[2])


def test_two_models_are_compared_and_their_differing_tokens_marked(page):
    page.one("#compare").click()
    page.until(lambda: len(page.all(".column")) == 2)
    for column in (0, 1):
        page.set(column, **READABLE)
    page.write("The ", max_tokens=25, seed=2)
    texts = [page.text(0), page.text(1)]
    assert texts == [page.running.lm(name).generate("The ", max_new_tokens=25, seed=2, **READABLE)
                     for name in ("one", "two")]
    marked = page.run("return [...document.querySelectorAll('.column')].map((column) => [..."
                      "column.querySelectorAll('.token')].map((token) => "
                      "token.classList.contains('differs')))")
    alike = ["".join(letter for letter, differs in zip(text, column, strict=True) if not differs)
             for text, column in zip(texts, marked, strict=True)]
    assert alike[0] == alike[1] and 0 < len(alike[0]) < 25
    matcher = [[0] * 26 for _ in range(26)]  # the longest common subsequence, as in textbooks
    for i, j in itertools.product(range(25), repeat=2):
        matcher[i + 1][j + 1] = (matcher[i][j] + 1 if texts[0][i] == texts[1][j] else
                                 max(matcher[i][j + 1], matcher[i + 1][j]))
    assert len(alike[0]) == matcher[25][25]
    page.one("#compare").click()
    assert len(page.all(".column")) == 1 and not page.all(".differs")


@pytest.mark.parametrize("kind", ["branch", "chat"])
def test_copied_commands_print_what_the_page_shows(page, kind, runs):
    if kind == "chat":
        page.one("[value=chat]").click()
        page.one("[name=system]").send_keys("Be 'brief'.")
    page.write("It's", max_tokens=20, seed=4, **READABLE, presence_penalty=0.5)
    if kind == "branch":
        page.click(".token", 3)
        page.until(lambda: page.all(".places [aria-current]"))
        page.click(".places li:not(:has([aria-current])) button")
        page.ended()
    shown, environment = page.text(), script_environment()
    choice = page.asks_with("curl")["choices"][0]
    assert (choice["message"]["content"] if kind == "chat" else choice["text"]) == shown
    python = subprocess.run([sys.executable, "-c", page.copied("python")], capture_output=True,
                            text=True, check=True)
    assert python.stdout == shown + "\n"
    command = page.copied("sample").replace("python sample.py", f"{sys.executable} sample.py")
    sample = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True,
                            cwd=ROOT, env=environment | {"COLUMNS": "999"})
    assert shown in sample.stdout


def test_a_conversation_goes_on_and_is_exported_as_finetune_reads_it(page, driver):
    page.one("[value=chat]").click()
    page.write("Who are you?", max_tokens=15, seed=1, **READABLE)
    first = page.text()
    page.write("And where?", seed=2)
    turns = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": first},
             {"role": "user", "content": "And where?"}]
    assert [turn.get_property("textContent") for turn in page.all(".turn")] == [
        turn["role"] + turn["content"] for turn in turns]
    page.one("[name=sample]").click()
    page.until(lambda: "repeats first messages" in page.one(".status").text)
    page.one("[name=export]").click()
    file = driver.downloads / "conversation.jsonl"
    page.until(file.exists)
    record = json.loads(page.until(file.read_text))
    assert record == {"messages": [*turns, {"role": "assistant", "content": page.text()}]}
    assert read_task(file)
    page.write("x" * 500)  # which is too long: all is as before, and the message can be shortened
    assert "this server reads 200" in page.one(".status").text
    assert page.one("[name=prompt]").get_property("value") == "x" * 500
    assert page.text() == record["messages"][-1]["content"] and len(page.all(".turn")) == 3
    page.one("#compare").click()
    page.until(lambda: len(page.all(".column")) == 2)
    page.write("Why?")
    assert [len(column.find_elements("css selector", ".turn")) for column in page.all(".column")
            ] == [5, 5]  # the second one is asked the same
    assert all("status of 400" in line["message"] for line in page.logged())


def test_the_keyboard_alone_suffices(page):
    def press(*keys):
        ActionChains(page.driver).send_keys(*keys).perform()

    def focused(selector):
        return page.run("return document.activeElement.matches(arguments[0])", selector)

    def tab_to(selector):
        for _ in range(40):
            if focused(selector):
                return
            press(Keys.TAB)
        raise AssertionError(f"{selector} cannot be reached")

    tab_to("[name=prompt]")
    press("The ")
    page.set(max_tokens=8, **READABLE)
    ActionChains(page.driver).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(
        Keys.CONTROL).perform()
    page.ended()
    first = page.text()
    tab_to(".token")
    press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    page.until(lambda: page.all(".places [aria-current]"))
    press(Keys.ENTER)
    assert focused(".places button")
    press(Keys.ESCAPE)
    assert focused(".token[aria-pressed=true]")
    press(Keys.ENTER, Keys.ARROW_DOWN, Keys.ENTER)
    page.ended()
    second = page.text()
    assert second[:2] == first[:2] and len(second) == 11
    tab_to(".branches button")
    press(Keys.ENTER)
    assert page.text() == first and focused(".branches button[aria-current]")
    tab_to("[name=temperature], [name=curl]")


@needs_axe
@pytest.mark.parametrize(("dark", "width"), [(False, 1200), (True, 1200), (False, 390)])
def test_nothing_is_in_the_way_of_those_who_see_or_move_otherwise(page, dark, width):
    page.open(dark, width)
    page.one("#compare").click()
    page.write("The \n", max_tokens=40, seed=6)
    page.click(".token", 3)
    page.until(lambda: page.all(".places [aria-current]"))
    serious, passes = in_the_way(page.driver)
    assert serious == {} and passes > 20
    assert page.run("return document.documentElement.scrollWidth") <= width  # nothing sticks out


def test_a_key_is_asked_for_once_and_what_is_refused_is_said(driver, runs):
    running = Running(serve_models([str(runs / "one")], LIMITS, Opening("cpu", "float32")),
                      Place(port=0, key="secret"))
    try:
        page = Page(driver, running)
        driver.get(running.url + "/")
        page.until(lambda: page.one("#key").is_displayed())
        page.one("#key input").send_keys(Keys.ESCAPE)
        page.until(lambda: "this server asks for a key" in page.one("#columns").text)
        driver.refresh()
        for key in ("wrong", "secret"):
            page.until(lambda: page.one("#key input").is_displayed())
            page.one("#key input").clear()
            page.one("#key input").send_keys(key, Keys.ENTER)
        page.until(lambda: page.all(".places button"))
        driver.refresh()
        page.until(lambda: page.all(".places button"))
        assert not page.one("#key").is_displayed()
        page.one("[name=prompt]").send_keys("a" * 500)
        page.one("#ask button.main").click()
        page.until(lambda: "this server reads 200" in page.one(".status").text)
        assert {line["message"].split("status of ")[1][:3] for line in page.logged()} == {
            "401", "400"}
    finally:
        running.close()


def test_each_checkpoint_of_a_run_in_training_shows_what_it_writes(driver, runs, monkeypatch):
    monkeypatch.setattr(watching, "EVERY", 0.1)
    folder = runs / "training" / "checkpoints"
    shutil.copytree(runs / "one", folder / "step-00000010")
    how = Opening("cpu", "float32")
    models = serve_models([str(runs / "training")], LIMITS, how)
    mark_runs(models)
    running = Running(models, Place(port=0), how)
    try:
        page = Page(driver, running).open()
        page.set(max_tokens=20, **READABLE)
        page.until(lambda: "step-00000010" in page.one("#samples").text)
        shutil.copytree(runs / "two", folder / "coming")
        (folder / "coming").rename(folder / "step-00000020")
        sample = page.until(lambda: "step-00000020" in page.one("#samples").text
                            and page.one("#samples article"))
        expected = load(runs / "two", "cpu", "float32").generate(
            "", max_new_tokens=20, seed=1, **READABLE)
        assert sample.find_element("css selector", "pre").get_property("textContent") == expected
        assert len(page.all("#samples article")) == 2
        assert running.models["training"].checkpoint == "step-00000020"
        page.write("The ")
        shutil.copytree(runs / "one", folder / "next")
        (folder / "next").rename(folder / "step-00000030")
        page.until(lambda: "step-00000030" in page.one("#samples").text)
        assert "training@step-00000020'" in page.copied("sample")  # which has written it
    finally:
        running.close()
