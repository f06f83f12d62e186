"""The page of what happens inside a model while it reads a text."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt.configuration import sampling_config
from gpt.errors import UserError
from gpt.reports.chart import Chart, Series, plain
from gpt.reports.page import Html, Page, element, table
from gpt.runs.history import Array

if TYPE_CHECKING:  # torch is imported by those who have a model, and not by reports of runs
    from gpt.inspection import Ablations, Look
    from gpt.language_model import LanguageModel

CONTROLS = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.3}
LENS_TOKENS = 5
NEXT_TOKENS = 12
WAVES = 6  # columns of the position encoding that are drawn as curves
MOST_NUMBERS = 3_000_000  # of attention: 8 MB of a page


def look_page(lm: LanguageModel, text: str, controls: Mapping[str, float] = CONTROLS,
              begin: bool = False) -> Page:
    """What a model does with a text, head by head, as a page.

    controls: of sampling, each of which is shown alone and all together. begin: as in `generate`.
    Raises UserError for a text that the model cannot read, or whose page would be too large.
    """
    from gpt.inspection import ablations, head_scores
    lm, tokens = lm.measured(), lm.prompt_tokens(text, begin)
    config = lm.model.config
    heads = config.n_layer * config.n_head
    longest = math.isqrt((1 if lm.reads_both_ways else 2) * MOST_NUMBERS // heads)
    if longest < len(tokens) <= lm.block_size:
        raise UserError(f"the text has {len(tokens)} tokens, and a page can hold the attention of "
                        f"{heads} heads over about {longest}; shorten the text")
    look = lm.look(text, begin)
    without = ablations(lm.model, tokens, lm.reads_both_ways)
    page = Page("Inside the model", f"{config.n_layer} layers of {config.n_head} heads, "
                f"{len(tokens)} tokens, positions: {config.position}", ["inside.js"])
    data = _told(lm, look, without)
    try:
        data["scores"] = {kind: [plain(each) for each in scores] for kind, scores
                          in head_scores(lm.model, lm.tokenizer.text_ids).items()}
        measured = _HOW_MEASURED
    except UserError as error:  # too small a context
        data["scores"], measured = {}, f"What heads do was not measured: {error}."
    page.section("The text", element("div", id="text", class_="pieces"), _note(_HOW_TO_POINT))
    page.section("Attention", element("div", element("div", id="picked"), element("div", id="grid"),
                                      class_="attention"), _note(measured))
    page.section("What each layer would say next", element(
        "div", id="lens", class_="wide", tabindex=0, role="group", aria_label="logit lens"),
        _note(_LENS))
    page.section("The next token", _controlled(lm, tokens, look, controls), _note(_CONTROLLED))
    page.section("The residual stream", *_stream(look))
    page.section("Neurons that add most", element("div", id="neurons"), _note(_NEURONS))
    page.section("How it sees positions", *_positions(lm, len(tokens), data))
    page.data("look", data)
    return page


def _told(lm: LanguageModel, look: Look, without: Ablations) -> dict[str, Any]:
    """What the page's script shows."""
    names, config = _Names(lm), lm.model.config
    return {
        "texts": look.texts, "layers": config.n_layer, "heads": config.n_head,
        "windows": config.windows, "causal": not lm.reads_both_ways, "names": names.found,
        "attention": _packed(look.attention, not lm.reads_both_ways),
        "lens": [names.told(ids[:, :LENS_TOKENS], chances[:, :LENS_TOKENS]) for ids, chances
                 in zip(look.lens_tokens, look.lens_probabilities, strict=True)],
        "following": [plain(each) for each in look.lens_next],
        "whole": names.likeliest(look.logits),
        "without": [names.told(*of_layer) for of_layer
                    in zip(without.tokens, without.probabilities, strict=True)],
        "divergences": [plain(each) for each in without.divergences],
        "neurons": [{"layer": one.layer, "index": one.index, "activations": plain(one.activations),
                     "tokens": [names.of(token) for token in one.tokens.tolist()]}
                    for one in look.neurons]}


class _Names:
    """Texts of tokens, each once. found: by id, as JSON has keys."""

    def __init__(self, lm: LanguageModel):
        self.found: dict[str, str] = {}
        self._tokenizer = lm.tokenizer

    def of(self, token: int) -> int:
        """The id, whose text is told."""
        known = token in self._tokenizer.text_ids or token in self._tokenizer.specials.values()
        self.found[str(token)] = self._tokenizer.token_text(token) if known else f"id {token}"
        return token

    def told(self, ids: Array, chances: Array) -> list[Any]:
        """[[id, probability], …] for each row.  (n, k) and (n, k)"""
        return [[[self.of(token), chance] for token, chance in zip(row, plain(values) or (),
                                                                   strict=True)]
                for row, values in zip(ids.tolist(), chances, strict=True)]

    def likeliest(self, logits: Array) -> Any:
        """The same for scores of all tokens, (V,)."""
        chances = _softmax(logits)
        best = np.argsort(-chances, kind="stable")[:10]
        return self.told(best[None], chances[best][None])[0]


def _softmax(logits: Array) -> Array:
    raised = np.exp(logits.astype(np.float64) - logits.max())
    return raised / raised.sum()


def _packed(attention: Array, causal: bool) -> str:
    """Weights as whole 65,535ths: of a causal model those of each query up to itself, (L, H, T, T)
    row by row, in base64."""
    whole = np.round(attention * 65535).astype("<u2")
    if causal:
        whole = whole[..., np.tri(attention.shape[-1], dtype=bool)]
    return base64.b64encode(np.ascontiguousarray(whole).tobytes()).decode()


def _controlled(lm: LanguageModel, tokens: Sequence[int], look: Look,
                controls: Mapping[str, float]) -> Html | None:
    """What may come next, by the engine itself: each control alone, and all of them."""
    chances = _chances(lm, tokens, [*({name: value} for name, value in controls.items()), controls])
    before = _softmax(look.logits)
    order = sorted({token for each in chances for token in each}, key=lambda token: -before[token])
    header = ["token", "the model's own", *(f"{name} {value:g}" for name, value
                                            in controls.items())]
    return table([*header, "all of them"], [
        [element("code", _shown(lm.tokenizer.token_text(token))), _bar(before[token]),
         *(_bar(each.get(token, 0.0)) for each in chances)]
        for token in order[:NEXT_TOKENS]], "next tokens by sampling control")


def _chances(lm: LanguageModel, tokens: Sequence[int], settings: Sequence[Mapping[str, Any]]
             ) -> list[dict[int, float]]:
    """With which probability each of some tokens is drawn, by each of some settings."""
    found: list[dict[int, float]] = [{} for _ in settings]
    for place, piece in lm.write([
            lm.request(tokens, sampling_config(max_new_tokens=1, seed=0, **each),
                       alternatives=NEXT_TOKENS, chances=True) for each in settings]):
        if piece.new.error is not None:
            raise piece.new.error
        found[place] = {token: chance for (token, _), chance in zip(
            piece.new.likeliest, piece.new.chances, strict=True)}
    return found


def _shown(text: str) -> str:
    """A token by itself; blanks alone could not be seen."""
    signs = text.replace("\n", "↵").replace("\t", "⇥")
    return signs if signs.strip() else signs.replace(" ", "␣")


def _bar(share: float) -> Html:
    """A probability as a number and a bar."""
    return element("span", f"{100 * share:.2f} %" if share else "–", class_="share",
                   style=f"--share:{share:.4f}")


def _stream(look: Look) -> list[Chart]:
    """Norms by layer: of the stream, and of what each layer adds; the first token apart, whose norm
    is often many times that of the others."""
    charts = []
    for title, figures in (("Norm of the stream", {"stream": look.residual_norms}),
                           ("What each layer adds", {"attention": look.attention_norms,
                                                     "feed-forward": look.feedforward_norms})):
        series = []
        for colour, (name, norms) in enumerate(figures.items()):
            x = {"layers": np.arange(len(norms))}
            if norms.shape[1] > 1:
                series.append(Series(name, x, norms[:, 1:].mean(axis=1), norms[:, 1:].min(axis=1),
                                     norms[:, 1:].max(axis=1), colour=colour))
            series.append(Series(f"{name}, first token", x, norms[:, 0], colour=colour,
                                 faint=norms.shape[1] > 1))
        charts.append(Chart(title, "norm; mean and extremes over tokens", series))
    return charts


def _positions(lm: LanguageModel, T: int, data: dict[str, Any]) -> list[Html | Chart]:
    """The encoding as it is: a table of positions and columns, and some columns as curves."""
    from gpt.inspection import position_encoding
    found = position_encoding(lm.model, T)
    if found.kind == "none":
        return [element("p", "Nothing tells this model where a token stands, but what it may "
                             "read: the causal mask.")]
    places = np.arange(T)
    if found.frequencies is not None:
        values = np.cos(places[:, None] * found.frequencies.astype(np.float64))  # (T, D / 2)
        names = [f"{2 * np.pi / one:.4g} tokens a turn" for one in found.frequencies]
    else:
        assert found.table is not None
        values, names = found.table, [f"column {one}" for one in range(found.table.shape[1])]
    largest = float(np.abs(values).max()) or 1.0
    data["positions"] = {
        "kind": found.kind, "columns": values.shape[1],
        "values": base64.b64encode(np.round(values / largest * 127).astype("i1").tobytes()
                                   ).decode(),
        "frequencies": plain(found.frequencies)}
    shown = np.unique(np.linspace(0, values.shape[1] - 1, WAVES).astype(int))
    waves = Chart("Some columns as waves", "over positions", [
        Series(names[column], {"positions": places}, values[:, column], colour=place)
        for place, column in enumerate(shown.tolist())], log=False)
    return [element("div", id="positions"), _note(_ENCODINGS[found.kind]), waves]


def _note(text: str) -> Html:
    return element("p", text, class_="note")


_HOW_TO_POINT = ("Point at a token to follow what it reads, here and below; a click, or Enter, "
                 "pins it. Arrow keys move. The shade is the attention of the head that is chosen.")
_HOW_MEASURED = (
    "Scores are mean attention on random tokens that are repeated: to the token before (previous), "
    "to the first one, to the same token where it stood before, and to the token that followed it "
    "there (induction: Olsson et al. 2022). Without a head: what it reads is set to zero at every "
    "token; KL is how far the next token's distribution then moves, in nats.")
_LENS = ("The logit lens (nostalgebraist 2020): the stream before a layer, read as if the model "
         "ended there. Followed: the probability of the token that does come next in the text.")
_CONTROLLED = ("Drawn by the engine that writes text: each setting alone, as the model's own "
               "distribution becomes it, and all together.")
_NEURONS = ("Where each is active, and the tokens whose scores its column raises most by itself "
            "(Geva et al. 2022). Blue is above zero, orange below.")
_ENCODINGS = {
    "rope": "Queries and keys are turned by an angle that grows with the position, each pair of a "
            "head at its own pace: the dials show the token that is pointed at, the picture the "
            "cosine of each pair (columns) at each position (rows).",
    "learned": "A vector for each position (rows) was learned, and is added to the token's.",
    "sinusoidal": "Sines and cosines of the position (rows), each column at its own pace, are "
                  "added to the token's vector (Vaswani et al. 2017)."}
