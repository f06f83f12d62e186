// The page of a model: one token is pointed at, one head is chosen, and all parts follow.
"use strict";
{
const { look } = data;
const T = look.texts.length, { layers, heads } = look;
const bytes = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
const weights = new Uint16Array(bytes(look.attention).buffer);
const here = (id) => document.getElementById(id);
const state = { layer: layers - 1, head: 0, query: T - 1, pinned: T - 1, sort: "layer" };
const shown = (text) => (text === "" ? "∅" : text.replaceAll("\n", "↵").replaceAll("\t", "⇥"));
const named = (id) => shown(look.names[id]);
const percent = (share) => `${(100 * share).toFixed(2)} %`;

// What a head takes of a key for a query, from 0 to 1.
const weight = (layer, head, query, key) => {
  if (!look.causal) return weights[((layer * heads + head) * T + query) * T + key] / 65535;
  const before = (layer * heads + head) * (T * (T + 1) / 2) + query * (query + 1) / 2;
  return key > query ? 0 : weights[before + key] / 65535;
};
window.shownWeight = weight;
const score = (kind, layer, head) => look.scores[kind][layer][head];
const kinds = Object.keys(look.scores);
const strongest = (layer, head) => kinds.map((kind) => [score(kind, layer, head), kind]).sort((a, b) => b[0] - a[0])[0];

// ----- Pictures of numbers

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
const paintHead = (canvas, layer, head) => paint(canvas, T, T, (key, query) => weight(layer, head, query, key));
const shade = (value) => `color-mix(in srgb, var(--${value < 0 ? "c1" : "c0"}) ${Math.min(40, 40 * Math.sqrt(Math.abs(value))).toFixed(1)}%, transparent)`;

// ----- The text

const pieces = look.texts.map((text, place) => {
  const piece = make("button", { type: "button", className: "piece", textContent: shown(text), tabIndex: -1 });
  piece.addEventListener("mouseenter", () => point(place));
  piece.addEventListener("mouseleave", () => point(state.pinned));
  piece.addEventListener("focus", () => point(place));
  piece.addEventListener("click", () => pin(place));
  return piece;
});
here("text").append(...pieces);
here("text").setAttribute("role", "group");
here("text").setAttribute("aria-label", "Tokens of the text");
here("text").addEventListener("keydown", (event) => {
  const next = { ArrowRight: state.query + 1, ArrowLeft: state.query - 1, Home: 0, End: T - 1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  pieces[Math.min(Math.max(next, 0), T - 1)].focus();
});
const pin = (place) => { state.pinned = place; point(place); };
const point = (place) => { state.query = place; follow(); };

// ----- Heads

const map = make("canvas", { className: "map" });
map.setAttribute("role", "img");
const told = make("p", { className: "note" });
const at = (event) => [event.offsetX / map.clientWidth, event.offsetY / map.clientHeight].map((share) => Math.min(T - 1, Math.max(0, Math.floor(share * T))));
map.addEventListener("mousemove", (event) => {
  const [key, query] = at(event);
  if (query !== state.query) point(query);
  told.textContent = `“${shown(look.texts[query])}” takes ${percent(weight(state.layer, state.head, query, key))} of “${shown(look.texts[key])}” (${query} of ${key})`;
});
map.addEventListener("mouseleave", () => point(state.pinned));
map.addEventListener("click", (event) => pin(at(event)[1]));
const title = make("h3"), ablated = make("div", { className: "wide", tabIndex: 0 });
ablated.setAttribute("role", "group");
ablated.setAttribute("aria-label", "The next token without this head");
here("picked").append(title, map, told, ablated);

const thumbs = [];
for (let layer = 0; layer < layers; layer++) {
  for (let head = 0; head < heads; head++) {
    const canvas = make("canvas"), [best, kind] = kinds.length ? strongest(layer, head) : [0, ""];
    const does = best > 0.3 ? `${kind} ${best.toFixed(2)}` : "";
    const button = make("button", { type: "button", className: "thumb" }, canvas, make("span", { textContent: `${layer}.${head} ${does}` }));
    button.setAttribute("aria-label", `Layer ${layer}, head ${head}${does && `: ${does}`}`);
    button.addEventListener("click", () => choose(layer, head));
    thumbs.push({ layer, head, canvas, button });
  }
}
const choose = (layer, head) => {
  Object.assign(state, { layer, head });
  for (const one of thumbs) one.button.setAttribute("aria-pressed", one.layer === layer && one.head === head);
  const scores = kinds.map((kind) => `${kind} ${score(kind, layer, head).toFixed(3)}`).join(", ");
  title.textContent = `Layer ${layer}, head ${head}${scores && `: ${scores}`}`;
  const window = look.windows[layer];
  map.setAttribute("aria-label", `Attention of layer ${layer}, head ${head}: queries are rows, keys columns${window ? `; a window of ${window} tokens` : ""}`);
  paintHead(map, layer, head);
  const left = new Map(look.without[layer][head]);
  ablated.replaceChildren(numbers(["next token", "whole model", `without ${layer}.${head}`], [...new Map([...look.whole, ...left]).keys()].slice(0, 12).map((id) => [
    named(id), new Map(look.whole).get(id), left.get(id)])), make("p", { className: "note", textContent: `KL ${look.divergences[layer][head].toPrecision(3)} nats` }));
  follow();
};
const numbers = (header, rows) => make("table", {}, make("thead", {}, make("tr", {}, ...header.map((text) => make("th", { textContent: text, scope: "col" })))), make("tbody", {}, ...rows.map(([name, ...shares]) => make("tr", {}, make("th", { scope: "row" }, make("code", { textContent: name })), ...shares.map((share) => {
  const bar = make("span", { className: "share", textContent: share === undefined ? "below these" : percent(share) });
  bar.style.setProperty("--share", share ?? 0);
  return make("td", {}, bar);
})))));

const sorted = make("select", {}, ...["layer", ...kinds, "KL without it"].map((name) => make("option", { textContent: name })));
const grid = make("div", { className: "thumbs" });
const sort = () => grid.replaceChildren(...[...thumbs].sort((a, b) => (
  sorted.value === "layer" ? 0 : by(b) - by(a))).map((one) => one.button));
const by = ({ layer, head }) => (kinds.includes(sorted.value) ? score(sorted.value, layer, head) : look.divergences[layer][head]);
sorted.addEventListener("change", sort);
here("grid").append(make("label", { className: "note" }, "Sort heads by ", sorted), grid);

// ----- What follows the token that is pointed at

const follow = () => {
  const { layer, head, query } = state;
  pieces.forEach((piece, place) => {
    piece.style.background = shade(weight(layer, head, query, place));
    piece.title = `${place}: ${percent(weight(layer, head, query, place))}`;
    piece.tabIndex = place === query ? 0 : -1;
    piece.classList.toggle("query", place === query);
    piece.setAttribute("aria-pressed", place === state.pinned);
  });
  const following = query + 1 < T ? shown(look.texts[query + 1]) : "";
  const rows = look.lens.map((place, number) => {
    const cells = place[query].map(([id, share]) => make("td", {}, make("code", { textContent: named(id) }), ` ${percent(share)}`));
    cells.forEach((cell, rank) => { cell.style.background = shade(place[query][rank][1]); });
    const name = number < layers ? `before layer ${number}` : "at the end";
    return make("tr", {}, make("th", { scope: "row", textContent: name }), make("td", { textContent: following && percent(look.following[number][query]) }), ...cells);
  });
  const header = [`after “${shown(look.texts[query])}”`, following && `followed: “${following}”`, "likeliest", "2nd", "3rd", "4th", "5th"].slice(0, 2 + look.lens[0][query].length);
  here("lens").replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ...header.map((text) => make("th", { textContent: text, scope: "col" })))), make("tbody", {}, ...rows)));
  dials();
};

// ----- Neurons and positions

const others = make("details", {}, make("summary", { textContent: "More of them" }));
look.neurons.forEach(({ layer, index, activations, tokens }, rank) => {
  const largest = Math.max(...activations.map(Math.abs)) || 1;
  const text = look.texts.map((piece, place) => {
    const span = make("span", { textContent: shown(piece), title: `${activations[place]}` });
    span.style.background = shade(activations[place] / largest);
    return span;
  });
  (rank < 8 ? here("neurons") : others).append(make("h3", { textContent: `Layer ${layer}, neuron ${index}: towards ${tokens.map((id) => `“${named(id)}”`).join(" ")}` }), make("p", { className: "pieces" }, ...text));
});
here("neurons").append(others);

const encoding = look.positions && new Int8Array(bytes(look.positions.values).buffer);
const table = make("canvas", { className: "encoding" }), clock = make("canvas", { className: "dials" });
if (encoding) {
  table.setAttribute("role", "img");
  table.setAttribute("aria-label", "The position encoding: positions are rows");
  here("positions").append(table, ...(look.positions.frequencies ? [clock] : []));
  clock.setAttribute("role", "img");
}
const dials = () => {
  const turns = look.positions?.frequencies;
  if (!turns) return;
  const size = 44, across = Math.min(turns.length, 16);
  Object.assign(clock, { width: size * across, height: size * Math.ceil(turns.length / across) });
  clock.setAttribute("aria-label", `How far each of ${turns.length} pairs has turned at position ${state.query}`);
  const draw = clock.getContext("2d"), [front, line] = [colour("var(--c0)"), colour("var(--line)")];
  turns.forEach((turn, place) => {
    const x = size * (place % across + 0.5), y = size * (Math.floor(place / across) + 0.5), angle = turn * state.query;
    draw.strokeStyle = line;
    draw.beginPath(); draw.arc(x, y, size * 0.4, 0, 7); draw.stroke();
    draw.strokeStyle = front; draw.lineWidth = 2;
    draw.beginPath(); draw.moveTo(x, y); draw.lineTo(x + size * 0.4 * Math.cos(angle), y - size * 0.4 * Math.sin(angle)); draw.stroke();
    draw.lineWidth = 1;
  });
};

const paintAll = () => {
  for (const { canvas, layer, head } of thumbs) paintHead(canvas, layer, head);
  if (encoding) paint(table, look.positions.columns, T, (column, place) => encoding[place * look.positions.columns + column] / 127);
  choose(state.layer, state.head);
};
addEventListener("themed", paintAll);
const first = kinds.includes("induction") ? [...thumbs].sort((a, b) => score("induction", b.layer, b.head) - score("induction", a.layer, a.head))[0] : thumbs.at(-heads);
Object.assign(state, { layer: first.layer, head: first.head });
sort();
paintAll();
}
