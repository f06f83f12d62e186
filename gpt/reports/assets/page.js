// What every page does: its theme, and the one way in which charts are drawn (by uPlot).
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;

// Choices outlive a page that is read again while a run goes on.
const choice = (name, value) => {
  const key = `${location.pathname} ${name}`;
  try {
    if (value !== undefined) sessionStorage.setItem(key, value);
    return sessionStorage.getItem(key);
  } catch {
    return value ?? null;  // where nothing is kept
  }
};

const make = (tag, properties = {}, ...inside) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...inside);
  return element;
};

// A colour of the page as the canvas needs it, in the theme that is shown.
const colour = (value) => {
  const probe = document.body.appendChild(make("i"));
  probe.style.color = value;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
};

const short = (value) => {
  if (value === null || value === undefined) return "–";
  for (const [size, sign] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    const unit = sign === "k" ? 1e3 : size;
    if (Math.abs(value) >= size) return `${Number((value / unit).toPrecision(4))}${sign}`;
  }
  return `${Number(value.toPrecision(5))}`;
};

const told = (plot, value) => short(value);
const DASHES = [undefined, [8, 4], [2, 3], [10, 3, 2, 3]];

// Logarithmic axes are marked at 1 to 9 times each power of ten; of many, powers have numbers.
const tenfolds = (plot, axis, low, high) => {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (let digit = 1; digit < 10; digit++) found.push(digit * 10 ** power);
  }
  return found.filter((value) => value >= low && value <= high);
};
const isPower = (value) => Number.isInteger(Number(Math.log10(value).toFixed(9)));
const TENTHS = {
  splits: tenfolds, filter: (plot, at) => at,
  values: (plot, at) => at.map((value) => (at.length < 12 || isPower(value) ? short(value) : "")) };
const POWERS = {
  distr: 3, range: (plot, low, high) => (low > 0 ? [low / 1.05, high * 1.05] : [1, 10]) };

class Drawn {
  constructor(figure) {
    this.figure = figure;
    this.chart = data.charts[figure.dataset.chart];
    this.axes = Object.keys(this.chart.series[0].x);
    this.plotted = make("div", { className: "plot", tabIndex: 0 });
    this.plotted.setAttribute("role", "group");
    this.plotted.setAttribute("aria-label", this.said());
    const caption = figure.querySelector("figcaption");
    if (this.chart.log) {
      const name = `${this.chart.title} log`, chosen = choice(name) ?? `${this.chart.begins_log}`;
      const positive = this.chart.series.some((one) => one.y.some((value) => value > 0));
      this.log = make("input", {
        type: "checkbox", checked: positive && chosen === "true", disabled: !positive });
      this.log.addEventListener("change", () => { choice(name, this.log.checked); this.draw(); });
      caption.append(make("label", {}, this.log, " log"));
    }
    const whole = make("button", { type: "button", textContent: "Whole" });
    whole.setAttribute("aria-label", `Whole chart: ${this.chart.title}`);
    whole.addEventListener("click", () => this.draw());
    caption.append(whole);
    figure.append(this.plotted);
    this.plotted.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.plotted);
  }

  said() {
    const lines = this.chart.series.filter((one) => !one.faint).map((one) => {
      const known = one.y.filter((value) => value !== null);
      return known.length ? `${one.label}: from ${short(known[0])} to ${short(known.at(-1))}`
        : one.label;
    });
    const { title, unit } = this.chart;
    return `${title}, ${unit}. ${lines.join(". ")}. Arrow keys move along it.`;
  }

  size() {
    return { width: Math.max(220, this.plotted.clientWidth), height: 230 };
  }

  // What uPlot is told of one series: its numbers, how they look, and the band around them.
  lines(one, axis, first) {
    const places = Object.keys(one.x[axis]).filter((place) => one.x[axis][place] !== null);
    const drawable = (value) => (this.log?.checked && value <= 0 ? null : value);
    const column = (values) => places.map((place) => drawable(values[place]));
    const mixed = (share) => colour(
      `color-mix(in srgb, var(--c${one.colour % 6}) ${share}%, transparent)`);
    const stroke = mixed(one.faint ? 30 : 100), shared = { spanGaps: true, value: told };
    const alone = one.kind === "points" || (one.kind === "line" && one.y.length < 2);
    const line = {
      ...shared, label: one.label, stroke, width: one.faint ? 1 : 2, dash: DASHES[one.dashes % 4],
      points: { show: alone, size: 7, fill: stroke },
      ...(one.kind === "points" && { paths: () => null }),
      ...(one.kind === "bars" && { paths: uPlot.paths.bars({ size: [0.9, 60] }), fill: stroke }),
    };
    const table = [places.map((place) => one.x[axis][place]), column(one.y)];
    if (one.low === null) return { table, series: [line], bands: [] };
    const edge = { ...shared, class: "u-band", points: { show: false }, width: 0 };
    return {
      table: [...table, column(one.high), column(one.low)],
      series: [line, { ...edge, label: "high" }, { ...edge, label: "low" }],
      bands: [{ series: [first + 1, first + 2], fill: mixed(20) }],
    };
  }

  draw() {
    this.plot?.destroy();
    const axis = this.axes.includes(axisShown) ? axisShown : this.axes[0];
    const tables = [], series = [{ label: axis, value: told }], bands = [];
    for (const one of this.chart.series) {
      const found = this.lines(one, axis, series.length);
      tables.push(found.table);
      series.push(...found.series);
      bands.push(...found.bands);
    }
    const stroke = colour("var(--line)");
    const ticks = {
      stroke: colour("var(--quiet)"), grid: { stroke, width: 1 }, ticks: { stroke },
      values: (plot, at) => at.map(short) };
    const [x, y] = [this.chart.log_x, this.log?.checked];
    this.plot = new uPlot({
      ...this.size(), series, bands,
      axes: [{ ...ticks, ...(x && TENTHS) }, { ...ticks, ...(y && TENTHS), size: 70 }],
      scales: { x: { time: false, ...(x && POWERS) }, y: y ? POWERS : {} },
      cursor: { drag: { x: true, y: true, uni: 20 } },
    }, tables.length > 1 ? uPlot.join(tables) : tables[0], this.plotted);
    this.figure.plot = this.plot;
  }

  key(event) {
    const { data: [places], cursor } = this.plot, now = cursor.idx ?? -1;
    const next = {
      ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: places.length - 1 }[event.key];
    if (event.key === "Escape") this.draw();
    if (next === undefined || !places.length) return;
    event.preventDefault();
    const place = Math.min(Math.max(next, 0), places.length - 1);
    const left = this.plot.valToPos(places[place], "x");
    this.plot.setCursor({ left, top: this.plot.bbox.height / 4 });
  }
}

const charts = [...document.querySelectorAll(".chart")].map((figure) => new Drawn(figure));
const drawAll = () => {
  charts.forEach((chart) => chart.draw());
  dispatchEvent(new Event("themed"));
};
const several = charts.find((chart) => chart.axes.length > 1);
let axisShown = choice("axis");
if (several) {
  axisShown = several.axes.includes(axisShown) ? axisShown : several.axes[0];
  const box = make("fieldset", {}, make("legend", { textContent: "Against" }));
  for (const axis of several.axes) {
    const checked = axis === axisShown;
    const radio = make("input", { type: "radio", name: "axis", value: axis, checked });
    radio.addEventListener("change", () => { choice("axis", axis); axisShown = axis; drawAll(); });
    box.append(make("label", {}, radio, ` ${axis}`));
  }
  several.figure.closest("section").querySelector("h2").after(box);
}

const themes = ["auto", "light", "dark"];
const themeButton = document.getElementById("theme");
const setTheme = (theme) => {
  if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
  themeButton.textContent = `Theme: ${theme}`;
  drawAll();
};
themeButton.addEventListener("click", () => {
  const next = themes[(themes.indexOf(root.dataset.theme ?? "auto") + 1) % 3];
  choice("theme", next);
  setTheme(next);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
addEventListener("beforeprint", () => { root.dataset.theme = "light"; drawAll(); });
addEventListener("afterprint", () => setTheme(choice("theme") ?? "auto"));
setTheme(choice("theme") ?? "auto");
