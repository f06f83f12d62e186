"""The playground in a browser, and models that are worth looking at."""

from __future__ import annotations

import json
import re
import subprocess
import time

import torch
from torch.nn.functional import cross_entropy

from tests.tiny import ROOT, tiny_gpt

READABLE = {"temperature": 0.8, "top_k": 20}


class Page:
    """The page in a browser."""

    def __init__(self, driver, running):
        self.driver, self.running = driver, running

    def open(self, dark=False, width=1200):
        self.driver.set_window_size(width, 1000)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
        self.driver.get(self.running.url + "/")
        self.until(lambda: self.all(".places button"))
        return self

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector, column=0):
        return self.all(selector)[column]

    def click(self, selector, number=0):
        """In one go with the look for it: a list may be drawn anew in between."""
        self.until(lambda: len(self.all(selector)) > number)
        self.run("document.querySelectorAll(arguments[0])[arguments[1]].click()", selector, number)

    def run(self, script, *given):
        return self.driver.execute_script(script, *given)

    def until(self, found):
        for _ in range(300):
            if got := found():
                return got
            time.sleep(0.05)
        raise AssertionError(self.one("body").text)

    def set(self, column=0, **settings):
        for name, value in settings.items():
            self.run("const [input, value] = arguments; input.value = value; input.dispatchEvent("
                     "new Event('input', {bubbles: true}))", self.one(f"[name={name}]", column),
                     value)

    def write(self, prompt=None, **settings):
        self.set(**settings)
        if prompt is not None:
            self.one("[name=prompt]").clear()
            self.one("[name=prompt]").send_keys(prompt)
        self.one("#ask button.main").click()
        self.until(lambda: not any(each.text == "writing" for each in self.all(".column .status")))

    def ended(self):
        self.until(lambda: all("a second" in each.text for each in self.all(".column .status")))

    def text(self, column=0):
        """Of its tokens, but the sign for an end."""
        return self.run("return [...arguments[0].querySelectorAll('.token')].filter((token) => "
                        "!token.querySelector('.sign')).map((token) => token.textContent.replace("
                        "/^[↵⇥]/, '')).join('')", self.all(".column")[column])

    def copied(self, how):
        self.one(f"[name={how}]").click()
        self.until(lambda: self.one(".status").text == "copied")
        return self.driver.execute_async_script(
            "navigator.clipboard.readText().then(arguments[0])")

    def asks_with(self, how):
        """What a copied command is answered."""
        done = subprocess.run(["bash", "-c", self.copied(how)], capture_output=True, check=True)
        return json.loads(done.stdout)

    def choose(self, model, column=0):
        self.run("const [list, value] = arguments; list.value = value; list.dispatchEvent("
                 "new Event('change'))", self.one("[name=model]", column), model)

    def logged(self):
        return self.driver.get_log("browser")


def likeliest(page):
    """(texts, before, after) of the tokens that are told."""
    rows = page.run("return [...document.querySelectorAll('.places button')].map((row) => ["
                    "row.firstChild.textContent, row.lastChild.textContent])")
    return tuple(zip(*((text, *map(float, re.findall(r"([\d.]+) %", row)))
                       for text, row in rows), strict=True))


def trained(seed):
    """A tiny model of bytes that has seen some English: what it writes can be read."""
    text = torch.tensor([byte for byte in (ROOT / "LICENSE").read_bytes() if byte < 128])
    model = tiny_gpt(seed=seed, vocab_size=257, block_size=200).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(120):
        rows = torch.stack([text[at:at + 65] for at in torch.randint(len(text) - 65, (8,))])
        loss = cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
