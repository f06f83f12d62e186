"""The page of a model in a browser: what it shows is what the model does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from selenium.webdriver import Keys

from gpt import __main__ as verbs
from gpt.chat import FORMATS
from gpt.errors import UserError
from gpt.inspection import ablations, head_scores, position_encoding
from gpt.language_model import LanguageModel
from gpt.reports import inside
from gpt.reports.inside import CONTROLS, look_page
from gpt.runs import checkpoint
from gpt.tokenizer import build_tokenizer
from tests.browser import in_the_way, needs_axe, needs_chromium
from tests.reports.test_training_pages import Opened
from tests.tiny import ARCHITECTURES, CPU, call_main, tiny_gpt

TEXT = "Once <b>upon</b>\n\ta tïme"
SHAPE = {"vocab_size": 257, "block_size": 40}
pytestmark = needs_chromium


def lm_of(name="default", **changes):
    return LanguageModel(tiny_gpt(**{**SHAPE, **ARCHITECTURES[name], **changes}),
                         build_tokenizer("byte"), CPU)


@pytest.fixture
def opened(browser, tmp_path):
    def opened(lm, text=TEXT, dark=False, width=1200):
        look_page(lm, text).write(tmp_path / "look.html")
        return Opened(browser, tmp_path / "look.html", dark, width)

    yield opened
    assert browser.get_log("browser") == []


def shares(page, selector):
    """A table of probabilities: {token: [each column's, in percent]}"""
    rows = page.run("return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map("
                    "(row) => [...row.children].map((cell) => cell.textContent))", selector)
    return {row[0]: [0.0 if cell in ("–", "below these") else float(cell.rstrip(" %"))
                     for cell in row[1:]] for row in rows}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_on_the_page_is_the_models(opened, name):
    lm = lm_of(name)
    page, look = opened(lm), lm.look(TEXT)
    L, H, T, _ = look.attention.shape
    assert page.run("return [...Array(arguments[0]).keys()].map((layer) => [...Array(arguments[1])"
                    ".keys()].map((head) => [...Array(arguments[2]).keys()].map((query) => "
                    "[...Array(arguments[2]).keys()].map((key) => "
                    "shownWeight(layer, head, query, key)))))", L, H, T) == [
        [[[pytest.approx(weight, abs=0.501 / 65535) for weight in row] for row in head]
         for head in layer] for layer in look.attention.tolist()]
    assert page.requests() <= {"file", "data"}


def test_pointing_at_a_token_shades_what_the_chosen_head_takes(opened):
    lm = lm_of()
    page, look = opened(lm), lm.look(TEXT)
    page.all(".thumb")[5].click()  # layer 1, head 1
    pieces = page.all(".piece")
    pieces[6].click()
    for place, piece in enumerate(pieces):
        said = piece.get_attribute("title")
        assert said == f"{place}: {100 * look.attention[1, 1, 6, place]:.2f} %"
    assert [piece.get_attribute("aria-pressed") for piece in pieces].index("true") == 6
    assert page.run("return arguments[0].style.background", pieces[7]).endswith("0%, transparent)")
    pieces[6].send_keys(Keys.ARROW_LEFT)
    assert pieces[5].get_attribute("title") == f"5: {100 * look.attention[1, 1, 5, 5]:.2f} %"
    page.run("arguments[0].blur()", pieces[5])


def test_the_lens_follows_the_token_that_is_pointed_at(opened):
    lm = lm_of()
    page, look = opened(lm), lm.look(TEXT)
    page.all(".piece")[3].click()
    rows = [[cell.text for cell in row.find_elements("css selector", "th, td")]
            for row in page.all("#lens tbody tr")]
    assert [row[0] for row in rows] == ["before layer 0", "before layer 1", "at the end"]
    for place, row in enumerate(rows):
        assert row[1] == f"{100 * look.lens_next[place, 3]:.2f} %"
        assert [cell.rpartition(" %")[0].rpartition(" ")[2] for cell in row[2:]] == [
            f"{100 * chance:.2f}" for chance in look.lens_probabilities[place, 3, :5]]


def test_without_a_head_the_next_tokens_are_those_of_its_ablation(opened):
    lm = lm_of()
    page, tokens = opened(lm), lm.prompt_tokens(TEXT)
    without = ablations(lm.model, tokens)
    whole = torch.softmax(torch.from_numpy(lm.look(TEXT).logits), 0)
    for layer, head in ((0, 2), (1, 3)):
        page.all(".thumb")[4 * layer + head].click()
        shown = shares(page, "#picked")
        for token, chance in zip(without.tokens[layer, head], without.probabilities[layer, head],
                                 strict=True):
            text = inside._shown(lm.tokenizer.token_text(int(token)))
            if text in shown and shown[text][1]:
                assert shown[text][1] == pytest.approx(100 * chance, abs=0.006)
        assert len(shown) == 12 and max(each[0] for each in shown.values()) == pytest.approx(
            100 * float(whole.max()), abs=0.006)
        assert f"KL {without.divergences[layer, head]:.3}"[:6] in page.run(
            "return document.getElementById('picked').innerText")


def test_heads_are_sorted_by_what_they_do(opened):
    lm = lm_of()
    page, scores = opened(lm), head_scores(lm.model, lm.tokenizer.text_ids)
    select = page.all("#grid select")[0]
    for kind in ("previous", "first", "same", "induction"):
        page.run("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event("
                 "'change'))", select, kind)
        order = [tuple(map(int, each.text.split()[0].split("."))) for each in page.all(".thumb")]
        values = [scores[kind][place] for place in order]
        assert len(order) == 8 and values == sorted(values, reverse=True)
    page.all(".thumb")[0].click()
    best = float(scores["induction"].max())
    assert f"induction {best:.3f}" in page.all("#picked h3")[0].text


def test_sampling_controls_show_what_the_engine_draws_with(opened):
    lm = lm_of()
    page = opened(lm)
    table = '[aria-label="next tokens by sampling control"]'
    header = [cell.text for cell in page.all(f"{table} th[scope=col]")]
    assert header == ["token", "the model's own", "temperature 0.7", "top_k 20", "top_p 0.9",
                      "min_p 0.1", "repetition_penalty 1.3", "all of them"]
    logits = torch.from_numpy(lm.look(TEXT).logits)
    logits[lm.never] = -torch.inf
    own = torch.from_numpy(lm.look(TEXT).logits).softmax(0)
    top = own.sort(descending=True).values
    expected = {
        "the model's own": own, "temperature 0.7": (logits / 0.7).softmax(0),
        "top_k 20": torch.where(own >= top[19], logits, -torch.inf).softmax(0),
        "min_p 0.1": torch.where(own >= 0.1 * top[0], logits, -torch.inf).softmax(0)}
    texts = {lm.tokenizer.token_text(token): token for token in range(256)}
    for text, row in shares(page, table).items():
        token = texts[text.replace("↵", "\n").replace("⇥", "\t").replace("␣", " ")]
        for name, chances in expected.items():
            assert row[header.index(name) - 1] == pytest.approx(
                100 * float(chances[token]), abs=0.006)


@pytest.mark.parametrize(("name", "kind"), [("default", "rope"), ("gpt2", "learned"),
                                            ("vaswani", "sinusoidal"), ("multi-query", "none")])
def test_positions_are_drawn_as_the_waves_or_rotations_that_they_are(opened, name, kind):
    lm = lm_of(name)
    page = opened(lm)
    T, found = len(lm.prompt_tokens(TEXT)), position_encoding(lm.model, 27)
    assert found.kind == kind
    if kind == "none":
        assert "Nothing tells this model where a token stands" in page.run(
            "return document.body.innerText")
        return
    waves = (np.cos(np.arange(T)[:, None] * found.frequencies) if kind == "rope"
             else found.table[:T])
    data, _ = page.drawn("Some columns as waves")
    assert data[1] == pytest.approx(waves[:, 0], rel=1e-4, abs=1e-5)
    assert data[-1] == pytest.approx(waves[:, -1], rel=1e-4, abs=1e-5)
    assert len(page.all(".dials")) == (kind == "rope")


def test_the_streams_norms_are_drawn_by_layer(opened):
    lm = lm_of()
    page, look = opened(lm), lm.look(TEXT)
    (layers, mean, high, low, first), _ = page.drawn("Norm of the stream")
    assert layers == [0, 1, 2] and first == pytest.approx(look.residual_norms[:, 0], rel=1e-5)
    assert mean == pytest.approx(look.residual_norms[:, 1:].mean(axis=1), rel=1e-5)
    assert low == pytest.approx(look.residual_norms[:, 1:].min(axis=1), rel=1e-5)
    assert high == pytest.approx(look.residual_norms[:, 1:].max(axis=1), rel=1e-5)


def test_a_prompt_that_is_read_both_ways_is_shown_both_ways(opened):
    tokenizer = build_tokenizer("byte")
    form = FORMATS["turns"].model_copy(update={"prefix": "bidirectional"})
    tokenizer.chat_format = form.model_dump_json()
    lm = LanguageModel(tiny_gpt(**SHAPE), tokenizer, CPU)
    page = opened(lm, "both")
    ahead = page.run("return shownWeight(0, 0, 0, 3)")
    assert ahead > 0 and ahead == pytest.approx(lm.look("both").attention[0, 0, 0, 3], abs=1e-5)


@pytest.mark.parametrize("text", ["a", "x" * 40])
def test_the_shortest_and_the_longest_text_have_a_page(opened, text):
    page = opened(lm_of(), text)
    assert len(page.all(".piece")) == len(text) and len(page.all(".thumb")) == 8


def test_a_context_too_small_to_measure_heads_has_a_page_all_the_same(opened):
    page = opened(lm_of(block_size=4), "abc")
    assert "What heads do was not measured" in page.run("return document.body.innerText")
    assert len(page.all(".thumb")) == 8


def test_more_attention_than_a_page_holds_is_refused(monkeypatch):
    monkeypatch.setattr(inside, "MOST_NUMBERS", 8 * 20 * 21 // 2)
    look_page(lm_of(), "x" * 20)
    with pytest.raises(UserError, match="21 tokens, and a page can hold the attention of 8 heads "
                                        "over about 20; shorten"):
        look_page(lm_of(), "x" * 21)
    with pytest.raises(UserError, match="the text has 41 tokens, the model reads 40"):
        look_page(lm_of(), "x" * 41)


@needs_axe
@pytest.mark.parametrize(("dark", "width"), [(False, 1200), (True, 1200), (False, 390)])
def test_nothing_is_in_the_way_of_those_who_see_or_move_otherwise(browser, opened, dark, width):
    page = opened(lm_of(), TEXT, dark, width)
    for each in page.all("summary"):
        each.click()
    page.all(".piece")[2].click()
    serious, passes = in_the_way(browser)
    assert serious == {} and passes > 20
    assert page.run("return document.documentElement.scrollWidth") <= width


def test_the_command_writes_the_page_and_says_mistakes_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint.save_model(tmp_path / "model", tiny_gpt(**SHAPE), build_tokenizer("byte"), "random")

    def call(*words):
        return call_main(verbs, "look", "model", *words, monkeypatch=monkeypatch, capsys=capsys)

    assert call("--prompt", "Once") == (0, "look: look.html\n", "")
    assert call("--prompt", "Once", "-o", "x.html", "--top-k", "3", "--begin")[0] == 0
    assert "top_k 3<" in (tmp_path / "x.html").read_text()
    assert "top_k 20<" in (tmp_path / "look.html").read_text()
    for words, said in ((["--prompt", ""], "nothing to read"),
                        (["--prompt", "x" * 41], "the text has 41 tokens"),
                        (["--prompt", "x", "--top-p", "2"], "top_p: input should be less"),
                        (["--prompt", "x", "-o", "no/x.html"], "there is no folder no"),
                        ([], "required: --prompt")):
        code, _, err = call(*words)
        assert code == 2 and said in err and err.count("\n") == 1
    assert CONTROLS["top_k"] == 20
