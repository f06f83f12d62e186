// One model with its settings: a text, what could stand in each of its places, and its branches.

import { stream } from "./api.js";
import { Branch, Root } from "./branch.js";
import { shared } from "./share.js";

// [name, label, least, most, step, where it changes nothing]
const SETTINGS = [
  ["temperature", "Temperature", 0, 2, 0.05, 1], ["top_k", "Top k (0: all)", 0, 100, 1, 0],
  ["top_p", "Top p", 0.01, 1, 0.01, 1], ["min_p", "Min p", 0, 1, 0.01, 0],
  ["repetition_penalty", "Repetition penalty", 0.5, 2, 0.05, 1],
  ["presence_penalty", "Presence penalty", -2, 2, 0.1, 0],
  ["frequency_penalty", "Frequency penalty", -2, 2, 0.1, 0]];
const SIGNS = { "\n": "↵\n", "\t": "⇥\t", " ": " " };
const NAMES = { "\n": "line break", "\t": "tab", " ": "space", "": "nothing" };
const ALTERNATIVES = 10;
const WAIT = 120;  // milliseconds after the last move of a slider

export class Column {
  // page: has common, asked(column), valid(), changed().
  constructor(page, models) {
    this.page = page;
    this.models = models;
    this.element = document.getElementById("column").content.firstElementChild.cloneNode(true);
    this.find = (selector) => this.element.querySelector(selector);
    this.roots = [];
    this.branch = this.place = this.writing = null;
    this.differs = new Set();
    this.find("[name=model]").append(...models.map(({ id }) => new Option(id)));
    this.find("[name=model]").onchange = () => this.clear();
    this.find("[name=reset]").onclick = () => this.reset();
    for (const how of ["curl", "python", "sample", "export"]) {
      this.find(`[name=${how}]`).onclick = () => this.share(how).catch((error) => this.say(error.message));
    }
    this.addSettings();
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.find(".text").onclick = (event) => {
      const token = event.target.closest(".token");
      if (token) this.select(this.tokens().indexOf(token));
    };
  }

  get model() {
    return this.models.find(({ id }) => id === this.find("[name=model]").value);
  }

  // ----- Settings

  addSettings() {
    for (const [name, label, min, max, step, off] of SETTINGS) {
      const row = made("label", {}, label);
      const input = made("input", { type: "range", name, min, max, step, value: off });
      const output = made("output", {}, String(off));
      input.oninput = () => {
        output.textContent = input.value;
        this.lookSoon();
      };
      row.append(input, output);
      this.find(".settings").append(row);
    }
  }

  reset() {
    for (const [name, , , , , off] of SETTINGS) {
      this.find(`[name=${name}]`).value = off;
      this.find(`[name=${name}]`).nextSibling.textContent = off;
    }
    this.look();
  }

  // Those that change something.
  get settings() {
    return Object.fromEntries(SETTINGS.map(([name, , , , , off]) => [
      name, Number(this.find(`[name=${name}]`).value), off])
      .filter(([, value, off]) => value !== off));
  }

  // ----- Writing

  // A new text, of what is asked. If nothing comes of it, all is as before, and it returns false.
  async begin(asked) {
    const before = this.branch;
    const root = new Root(asked);
    this.roots.push(root);
    await this.write(new Branch(root, null, 0, []));
    if (root.branches.some(({ path }) => path.length)) return true;
    this.roots.splice(this.roots.indexOf(root), 1);
    if (this.branch?.root === root) this.show(before);
    return false;
  }

  async write(branch) {
    this.stop();
    const writing = this.writing = new AbortController();
    branch.model = { ...this.model };  // which may have a newer checkpoint later
    branch.body = { model: this.model.id, ...this.page.common, ...this.settings,
      written: branch.path.map(({ token }) => token) };
    this.show(branch);
    this.say(branch.end ? "the end" : "writing");
    if (branch.end) return this.stop();  // one that was chosen
    const begun = performance.now();
    try {
      for await (const token of stream("playground/tokens", {
        ...branch.body, ...branch.root.asked, alternatives: ALTERNATIVES }, writing.signal)) {
        if (token.last !== undefined) this.correct(branch, token.last);
        branch.tokens.push(token);
        this.add(token);
        this.find(".text").scrollTop = this.find(".text").scrollHeight;
      }
      const speed = (branch.path.length - branch.body.written.length)
        / (performance.now() - begun) * 1000;
      const ended = { stop: ", the end", context: ", the context is full" };
      this.say(`${branch.path.length} tokens, ${speed.toFixed(0)} a second${ended[branch.end] ?? ""}`);
    } catch (error) {
      this.say(error.name === "AbortError" ? "stopped" : error.message);
    } finally {
      if (this.writing === writing) this.writing = null;
      this.drawBranches();
      this.page.changed();
      if (this.branch === branch) this.look();
    }
  }

  stop() {
    this.writing?.abort();
    this.writing = null;
    this.looking?.abort();
    clearTimeout(this.waiting);
    this.find(".places").replaceChildren();
  }

  // ----- The text

  // branch: null for none.
  show(branch) {
    if (branch !== this.branch) this.place = null;
    this.branch = branch;
    this.find(".text").replaceChildren(...(branch ? this.given(branch.root.asked) : []));
    branch?.path.forEach((token) => this.add(token));
    if (branch?.model) this.find("[name=model]").value = branch.model.id;
    this.drawBranches();
    this.page.changed();
  }

  // Begin anew; branches are kept.
  clear() {
    this.stop();
    this.show(null);
    this.look();
  }

  // What a token that was chosen completes: a part of a character is none by itself.
  correct(branch, text) {
    branch.tokens[0].text = text;
    this.show(branch);
  }

  given({ prompt, messages }) {
    if (messages === undefined) return [made("span", { className: "given" }, prompt)];
    return messages.map(({ role, content }) => {
      const turn = made("p", { className: "turn given" }, made("b", {}, role));
      turn.append(content);
      return turn;
    });
  }

  add(token) {
    const name = token.text.trim() ? null : NAMES[token.text] ?? "space";
    const element = made("span", { className: "token", role: "button", tabIndex: -1,
      title: percent(Math.exp(token.logprob)) });
    if (name) element.setAttribute("aria-label", name);
    if (token.end === "stop") element.append(made("span", { className: "sign" }, token.text || "■"));
    else element.append(SIGNS[token.text] ?? (token.text || made("span", { className: "sign" }, "·")));
    // Certain: 0; one in a thousand, or less: 1.
    element.style.setProperty("--surprise", Math.min(1, -token.logprob / Math.log(1000)));
    element.setAttribute("aria-pressed", "false");
    if (!this.find(".token")) element.tabIndex = 0;
    this.find(".text").append(element);
  }

  tokens() {
    return [...this.element.querySelectorAll(".token")];
  }

  // place: of a token, or null for what would come next.
  select(place, focus = false) {
    this.place = place;
    this.tokens().forEach((token, i) => {
      token.setAttribute("aria-pressed", String(i === place));
      token.tabIndex = i === (place ?? 0) ? 0 : -1;
      if (focus && i === place) token.focus();
    });
    this.look();
  }

  mark(differs) {
    this.tokens().forEach((token, i) => token.classList.toggle("differs", differs.has(i)));
  }

  key(event) {
    const at = this.tokens().indexOf(event.target);
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (at >= 0 && step) {
      this.select(Math.max(0, Math.min(this.tokens().length - 1, at + step)), true);
    } else if (at >= 0 && (event.key === "Enter" || event.key === " ")) {
      this.select(at);
      this.find(".places button")?.focus();
    } else if (event.target.closest(".places") && ["ArrowDown", "ArrowUp"].includes(event.key)) {
      const rows = [...this.element.querySelectorAll(".places button")];
      rows[rows.indexOf(event.target) + (event.key === "ArrowDown" ? 1 : -1)]?.focus();
    } else if (event.target.closest(".places") && event.key === "Escape" && this.place !== null) {
      this.tokens()[this.place].focus();
      event.stopPropagation();
    } else return;
    event.preventDefault();
  }

  // ----- What could stand in a place

  lookSoon() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.look(), WAIT);
  }

  // Ask what the model thinks of the place that is chosen, with the settings as they are.
  async look() {
    this.looking?.abort();
    const looking = this.looking = new AbortController();
    const path = this.branch?.path ?? [];
    const here = path[this.place ?? path.length];
    if (here) this.drawPlaces(here.places, here.token, here);  // as it was when it was drawn
    else this.find(".places").replaceChildren();
    const asked = this.branch?.root.asked ?? this.page.asked(this);
    const written = path.slice(0, this.place ?? path.length).map(({ token }) => token);
    if (this.writing || (!here && ["stop", "context"].includes(this.branch?.end))) return;
    try {
      for await (const { token, places } of stream("playground/tokens", {
        model: this.model.id, ...this.page.common, ...this.settings, ...asked, written,
        alternatives: ALTERNATIVES, max_tokens: 1 }, looking.signal)) {
        this.drawPlaces(places, token, here);
      }
    } catch (error) {
      if (error.name !== "AbortError") this.say(error.message);
    }
  }

  // drawn: the token that the seed chooses; it is underlined. here: the one that stands there.
  drawPlaces(places, drawn, here) {
    const { branch, place } = this;
    const focused = [...this.find(".places").querySelectorAll("button")].indexOf(
      document.activeElement);
    this.find(".place").textContent = here ? `In place of “${visible(here.text)}”` : "Next token";
    this.find(".places").replaceChildren(...places.map(([token, text, before, after, ends]) => {
      const row = made("button", { type: "button" }, made("code", {}, visible(text)),
        made("span", { className: "bars" }, bar("before", before), bar("after", after)),
        made("span", { className: "numbers" }, `${percent(before)} → ${percent(after)}`));
      if (token === drawn) row.setAttribute("aria-current", "true");
      row.onclick = () => this.goOn(branch, place, { token, text, logprob: Math.log(before), places,
        end: ends ? "stop" : null });
      return made("li", {}, row);
    }));
    this.find(".places").querySelectorAll("button")[focused]?.focus();
  }

  // Go on from another token in a place of a text, or behind it.
  goOn(branch, place, token) {
    if (!this.page.valid()) return;
    if (!branch) this.roots.push(new Root(this.page.asked(this)));
    const fork = branch ? branch.fork(place ?? branch.path.length, token)
      : new Branch(this.roots.at(-1), null, 0, [token]);
    this.write(fork);
    this.tokens()[place ?? this.tokens().length - 1].focus();
  }

  // ----- Branches

  drawBranches() {
    const item = (branch) => {
      const own = branch.tokens.map(({ text }) => text).join("").trim().slice(0, 60);
      const button = made("button", { type: "button" }, own || "(nothing yet)");
      if (branch === this.branch) button.setAttribute("aria-current", "true");
      button.onclick = () => {
        this.stop();
        this.show(branch);
        this.select(null);
        this.find(".branches [aria-current]").focus();
      };
      const children = branch.children.map(item);
      return made("li", {}, button, ...(children.length ? [made("ul", {}, ...children)] : []));
    };
    this.find(".branches").replaceChildren(...this.roots.map((root) => made(
      "li", {}, made("span", { className: "given" }, root.title.slice(-60) || "(no prompt)"),
      made("ul", {}, ...root.branches.map(item)))));
  }

  // ----- Out of here

  async share(how) {
    if (!this.branch?.body) throw new Error("write something first");
    const text = shared(how, this.branch);
    if (how === "export") {
      const link = made("a", { download: "conversation.jsonl", href: URL.createObjectURL(
        new Blob([text], { type: "application/jsonl" })) });
      link.click();
      URL.revokeObjectURL(link.href);
      return;
    }
    try {
      await navigator.clipboard.writeText(text);
      this.say("copied");
    } catch {
      const dialog = document.getElementById("copy");  // without https there is no clipboard
      dialog.querySelector("textarea").value = text;
      dialog.showModal();
      dialog.querySelector("textarea").select();
    }
  }

  say(text) {
    this.find(".status").textContent = text;
  }
}

export function made(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function bar(className, share) {
  const element = made("span", { className: `bar ${className}` });
  element.style.setProperty("--share", share);
  return element;
}
const SHOWN = { "\n": "\\n", "\t": "\\t", " ": "·" };
const visible = (text) => text.replace(/[\x00-\x20\x7f]/g, (sign) => SHOWN[sign]
  ?? `\\x${sign.charCodeAt(0).toString(16).padStart(2, "0")}`);

const percent = (share) => `${(share * 100).toFixed(share < 0.1 ? 2 : 1)} %`;
