// The page of a model: one token is pointed at, one head is chosen, and all parts follow.
"use strict";
{
const { look } = data;
const T = look.texts.length, { layers, heads } = look;
const bytes = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
const weights = new Uint16Array(bytes(look.attention).buffer);
const here = (id) => document.getElementById(id);
const state = { layer: layers - 1, head: 0, query: T - 1, pinned: T - 1 };
const shown = (text) => (text === "" ? "∅" : text.replaceAll("\n", "↵").replaceAll("\t", "⇥"));
const named = (id) => {
  const text = shown(look.names[id]);
  return text.trim() ? text : text.replaceAll(" ", "␣");
};
const percent = (share) => `${(100 * share).toFixed(2)} %`;
const described = (element, role, label) => {
  element.setAttribute("role", role);
  element.setAttribute("aria-label", label);
  return element;
};

// What a head takes of a key for a query, from 0 to 1.
const weight = (layer, head, query, key) => {
  const place = layer * heads + head;
  if (!look.causal) return weights[(place * T + query) * T + key] / 65535;
  const before = place * (T * (T + 1) / 2) + query * (query + 1) / 2;
  return key > query ? 0 : weights[before + key] / 65535;
};
window.shownWeight = weight;
const kinds = Object.keys(look.scores);
const score = (kind, layer, head) => look.scores[kind][layer][head];

// ----- Pictures of numbers from -1 to 1

const channels = (name) => colour(`var(--${name})`).match(/[\d.]+/g).map(Number);
const paint = (canvas, width, height, value) => {
  const [above, below] = [channels("c0"), channels("c1")];
  Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  for (let place = 0; place < width * height; place++) {
    const number = value(place % width, Math.floor(place / width));
    image.data.set(number < 0 ? below : above, 4 * place);
    image.data[4 * place + 3] = 255 * Math.sqrt(Math.abs(number));
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
};
const paintHead = (canvas, layer, head) => {
  paint(canvas, T, T, (key, query) => weight(layer, head, query, key));
};
const shade = (value) => {
  const share = Math.min(40, 40 * Math.sqrt(Math.abs(value))).toFixed(1);
  return `color-mix(in srgb, var(--${value < 0 ? "c1" : "c0"}) ${share}%, transparent)`;
};

// ----- Tables

const headed = (header, rows) => make(
  "table", {},
  make("thead", {}, make("tr", {}, ...header.map(
    (textContent) => make("th", { textContent, scope: "col" })))),
  make("tbody", {}, ...rows));
const coded = (id) => make("code", { textContent: named(id) });
const bar = (share) => {
  const textContent = share === undefined ? "below these" : percent(share);
  const span = make("span", { className: "share", textContent });
  span.style.setProperty("--share", share ?? 0);
  return make("td", {}, span);
};

// ----- The text

const pin = (place) => { state.pinned = place; point(place); };
const point = (place) => { state.query = place; follow(); };
const pieces = look.texts.map((text, place) => {
  const piece = make("button", { type: "button", className: "piece", tabIndex: -1 }, shown(text));
  piece.addEventListener("mouseenter", () => point(place));
  piece.addEventListener("mouseleave", () => point(state.pinned));
  piece.addEventListener("focus", () => point(place));
  piece.addEventListener("click", () => pin(place));
  return piece;
});
described(here("text"), "group", "Tokens of the text").append(...pieces);
here("text").addEventListener("keydown", ({ key }) => {
  const { query } = state;
  const next = { ArrowRight: query + 1, ArrowLeft: query - 1, Home: 0, End: T - 1 }[key];
  if (next !== undefined) pieces[Math.min(Math.max(next, 0), T - 1)].focus();
});

// ----- The head that is chosen: its attention, and what would be said without it

const map = make("canvas", { className: "map" }), told = make("p", { className: "note" });
const title = make("h3"), ablated = make("div", { className: "wide", tabIndex: 0 });
described(ablated, "group", "The next token without this head");
here("picked").append(title, map, told, ablated);
const at = (event) => [event.offsetX / map.clientWidth, event.offsetY / map.clientHeight].map(
  (share) => Math.min(T - 1, Math.max(0, Math.floor(share * T))));
map.addEventListener("mousemove", (event) => {
  const [key, query] = at(event), share = percent(weight(state.layer, state.head, query, key));
  if (query !== state.query) point(query);
  const [asks, gives] = [query, key].map((place) => `“${shown(look.texts[place])}”`);
  told.textContent = `${asks} takes ${share} of ${gives} (${query} of ${key})`;
});
map.addEventListener("mouseleave", () => point(state.pinned));
map.addEventListener("click", (event) => pin(at(event)[1]));

const choose = (layer, head) => {
  Object.assign(state, { layer, head });
  for (const { button, ...one } of thumbs) {
    button.setAttribute("aria-pressed", one.layer === layer && one.head === head);
  }
  const scores = kinds.map((kind) => `${kind} ${score(kind, layer, head).toFixed(3)}`).join(", ");
  title.textContent = `Layer ${layer}, head ${head}${scores && `: ${scores}`}`;
  const window = look.windows[layer], reach = window ? `; a window of ${window} tokens` : "";
  described(map, "img", `Attention of layer ${layer}, head ${head}: a row for each query${reach}`);
  paintHead(map, layer, head);
  showWithout(layer, head);
  follow();
};
const showWithout = (layer, head) => {
  const [whole, left] = [look.whole, look.without[layer][head]].map((told) => new Map(told));
  const rows = [...new Set([...whole.keys(), ...left.keys()])].slice(0, 12).map((id) => make(
    "tr", {}, make("th", { scope: "row" }, coded(id)), bar(whole.get(id)), bar(left.get(id))));
  const moved = `KL ${look.divergences[layer][head].toPrecision(3)} nats`;
  ablated.replaceChildren(headed(["next token", "whole model", `without ${layer}.${head}`], rows),
    make("p", { className: "note", textContent: moved }));
};

// ----- All heads

const most = (layer, head) => {
  const [best, kind] = kinds.map((kind) => [score(kind, layer, head), kind]).reduce(
    (a, b) => (b[0] > a[0] ? b : a), [0, ""]);
  return best > 0.3 ? `${kind} ${best.toFixed(2)}` : "";
};
const thumbs = [...Array(layers * heads).keys()].map((place) => {
  const [layer, head] = [Math.floor(place / heads), place % heads], does = most(layer, head);
  const canvas = make("canvas"), name = make("span", { textContent: `${layer}.${head} ${does}` });
  const button = make("button", { type: "button", className: "thumb" }, canvas, name);
  button.setAttribute("aria-label", `Layer ${layer}, head ${head}${does && `: ${does}`}`);
  button.addEventListener("click", () => choose(layer, head));
  return { layer, head, canvas, button };
});
const byDivergence = "KL without it";
const orders = ["layer", ...kinds, byDivergence];
const sorted = make("select", {}, ...orders.map((name) => make("option", { textContent: name })));
const grid = make("div", { className: "thumbs" });
const value = (kind, { layer, head }) => (
  kind === byDivergence ? look.divergences[layer][head] : score(kind, layer, head));
const inOrder = (kind) => (kind === "layer" ? thumbs
  : [...thumbs].sort((a, b) => value(kind, b) - value(kind, a)));
const sort = () => grid.replaceChildren(...inOrder(sorted.value).map((one) => one.button));
sorted.addEventListener("change", sort);
here("grid").append(make("label", { className: "note" }, "Sort heads by ", sorted), grid);

// ----- What follows the token that is pointed at

const follow = () => {
  const { layer, head, query } = state;
  pieces.forEach((piece, place) => {
    const share = weight(layer, head, query, place);
    piece.style.background = shade(share);
    piece.title = `${place}: ${percent(share)}`;
    piece.tabIndex = place === query ? 0 : -1;
    piece.classList.toggle("query", place === query);
    piece.setAttribute("aria-pressed", place === state.pinned);
  });
  showLens(query);
  turn();
};
const showLens = (query) => {
  const next = query + 1 < T ? `followed: “${shown(look.texts[query + 1])}”` : "";
  const rows = look.lens.map((told, place) => {
    const name = place < layers ? `before layer ${place}` : "at the end";
    const followed = make("td", { textContent: next && percent(look.following[place][query]) });
    const cells = told[query].map(([id, share]) => {
      const cell = make("td", {}, coded(id), ` ${percent(share)}`);
      cell.style.background = shade(share);
      return cell;
    });
    return make("tr", {}, make("th", { scope: "row", textContent: name }), followed, ...cells);
  });
  const ranks = ["likeliest", "2nd", "3rd", "4th", "5th"].slice(0, look.lens[0][query].length);
  here("lens").replaceChildren(
    headed([`after “${shown(look.texts[query])}”`, next, ...ranks], rows));
};

// ----- Neurons

const others = make("details", {}, make("summary", { textContent: "More of them" }));
look.neurons.forEach(({ layer, index, activations, tokens }, rank) => {
  const largest = Math.max(...activations.map(Math.abs)) || 1;
  const text = look.texts.map((piece, place) => {
    const span = make("span", { title: activations[place] }, shown(piece));
    span.style.background = shade(activations[place] / largest);
    return span;
  });
  const towards = tokens.map((id) => `“${named(id)}”`).join(" ");
  (rank < 8 ? here("neurons") : others).append(
    make("h3", {}, `Layer ${layer}, neuron ${index}: towards ${towards}`),
    make("p", { className: "pieces" }, ...text));
});
here("neurons").append(others);

// ----- Positions: a table of numbers, and for rotations a dial for each pair

const encoding = look.positions && new Int8Array(bytes(look.positions.values).buffer);
const turns = look.positions?.frequencies;
const waves = described(make("canvas", { className: "encoding" }), "img",
  "The position encoding: positions are rows");
const dials = make("canvas", { className: "dials" });
if (encoding) here("positions").append(waves, ...(turns ? [dials] : []));
const DIAL = 44, ACROSS = 16;  // pixels, dials in a row
const turn = () => {
  if (!turns) return;
  const across = Math.min(turns.length, ACROSS), rows = Math.ceil(turns.length / across);
  Object.assign(dials, { width: DIAL * across, height: DIAL * rows });
  described(dials, "img", `How far ${turns.length} pairs have turned at position ${state.query}`);
  const draw = dials.getContext("2d"), hand = 0.4 * DIAL;
  turns.forEach((frequency, place) => {
    const x = DIAL * (place % across + 0.5), y = DIAL * (Math.floor(place / across) + 0.5);
    const angle = frequency * state.query;
    Object.assign(draw, { strokeStyle: colours.line, lineWidth: 1 });
    draw.beginPath();
    draw.arc(x, y, hand, 0, 7);
    draw.stroke();
    Object.assign(draw, { strokeStyle: colours.front, lineWidth: 2 });
    draw.beginPath();
    draw.moveTo(x, y);
    draw.lineTo(x + hand * Math.cos(angle), y - hand * Math.sin(angle));
    draw.stroke();
  });
};

let colours = {};
const paintAll = () => {
  colours = { front: colour("var(--c0)"), line: colour("var(--line)") };
  for (const { canvas, layer, head } of thumbs) paintHead(canvas, layer, head);
  const columns = look.positions?.columns;
  if (encoding) paint(waves, columns, T, (x, place) => encoding[place * columns + x] / 127);
  choose(state.layer, state.head);
};
addEventListener("themed", paintAll);
const { layer, head } = kinds.length ? inOrder("induction")[0] : state;
Object.assign(state, { layer, head });
sort();
paintAll();
}
