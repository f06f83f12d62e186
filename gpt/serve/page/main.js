// The page: what is asked, of one column or two.

import { ask } from "./api.js";
import { differing } from "./branch.js";
import { Column, made } from "./column.js";

const WATCHED = 20;  // samples that are kept
const form = document.getElementById("ask");
const field = (name) => form.elements[name];

const page = {
  columns: [],

  get common() {
    return { max_tokens: Number(field("max_tokens").value), seed: Number(field("seed").value) };
  },

  // What is in the form: for a chat, behind what was said in a column.
  asked(column) {
    const prompt = field("prompt").value;
    if (field("kind").value === "text") return { prompt };
    const branch = column.branch ?? page.columns[0].branch;  // a new column asks the same
    const said = branch?.root.asked.messages;
    const system = field("system").value;
    const before = said ? [...said, { role: "assistant", content: branch.text }]
      : system ? [{ role: "system", content: system }] : [];
    return { messages: [...before, { role: "user", content: prompt }] };
  },

  valid: () => form.reportValidity(),

  // A text has grown, or another is shown.
  changed() {
    document.getElementById("stop").disabled = !page.columns.some(({ writing }) => writing);
    const [first, second] = page.columns.map(({ branch }) => branch?.path ?? []);
    if (!second) return;
    const differs = first.length && second.length ? differing(first, second) : [];
    page.columns.forEach((column, i) => column.mark(differs[i] ?? new Set()));
  },
};

function addColumn(models) {
  const column = new Column(page, models);
  page.columns.push(column);
  document.getElementById("columns").append(column.element);
  column.find("[name=model]").selectedIndex = Math.min(page.columns.length, models.length) - 1;
  column.element.setAttribute("aria-label", page.columns.length === 1 ? "First" : "Second");
  column.look();
}

function compare(models, two) {
  if (two) addColumn(models);
  else {
    const column = page.columns.pop();
    column.stop();
    column.element.remove();
    page.columns[0].mark(new Set());
  }
  document.getElementById("columns").classList.toggle("two", two);
}

async function write() {
  const asked = page.columns.map((column) => page.asked(column));
  const message = field("kind").value === "chat" ? field("prompt").value : "";
  if (field("kind").value === "chat") {
    if (!message) return;
    field("prompt").value = "";
  }
  const begun = await Promise.all(page.columns.map((column, i) => column.begin(asked[i])));
  if (message && !begun.includes(true)) field("prompt").value ||= message;
}

const stop = () => page.columns.forEach((column) => column.writing && column.stop());

function choose(kind) {
  document.getElementById("asked").textContent = kind === "chat" ? "Message" : "Prompt";
  document.getElementById("system").hidden = kind !== "chat";
  begin();
}

// Forget what is shown; its branches are kept.
function begin() {
  page.columns.forEach((column) => column.clear());
  field("prompt").focus();
}

function turnTheme() {
  const button = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  const next = themes[(themes.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % 3];
  document.documentElement.dataset.theme = next;
  button.textContent = `Theme: ${next}`;
}

// Of a run in training: what each new checkpoint writes.
async function watch(seen) {
  const models = (await ask("v1/models")).data.filter(({ watched }) => watched);
  document.getElementById("watch").hidden = models.length === 0;
  page.columns.forEach((column) => column.models.forEach((model) => Object.assign(
    model, models.find(({ id }) => id === model.id))));
  for (const { id, checkpoint, root } of models) {
    if (seen[root] === checkpoint) continue;
    const prompt = field("kind").value === "text" ? field("prompt").value : "";
    const { choices: [{ text }] } = await ask("v1/completions", {
      model: id, prompt, ...page.common, ...page.columns[0].settings });
    seen[root] = checkpoint;
    const samples = document.getElementById("samples");
    samples.prepend(made("article", {}, made("b", {}, `${id}, ${checkpoint}`),
      made("pre", {}, prompt + text)));
    while (samples.children.length > WATCHED) samples.lastChild.remove();
  }
  if (models.length) watchLater(seen, 3000);
}

function watchLater(seen, wait) {
  setTimeout(() => watch(seen).catch((error) => {
    document.getElementById("watching").textContent = error.message;
    watchLater(seen, 10000);
  }), wait);
}

async function start() {
  const models = (await ask("v1/models")).data;
  addColumn(models);
  document.getElementById("compare").onchange = (event) => compare(models, event.target.checked);
  document.getElementById("theme").onclick = turnTheme;
  document.getElementById("again").onclick = begin;
  document.getElementById("stop").onclick = stop;
  const chat = form.querySelector("[value=chat]");
  chat.disabled = !models.some(({ converses }) => converses);
  form.querySelectorAll("[name=kind]").forEach((radio) => {
    radio.onchange = () => choose(radio.value);
  });
  form.oninput = () => page.columns.forEach((column) => column.lookSoon());
  form.onsubmit = (event) => {
    event.preventDefault();
    write();
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    if (event.key === "Escape") stop();
  });
  watchLater({}, 0);
}

start().catch((error) => {
  document.getElementById("columns").append(made("p", { className: "status" }, error.message));
});
