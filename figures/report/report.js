"use strict";
// Theme: the system's, unless the button chose another.
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

const data = JSON.parse(document.getElementById("data").textContent);
if (data.contexts.length) {
  showTokens(data.columns, data.contexts);
}

function showTokens(columns, contexts) {
  const byId = (id) => document.getElementById(id);
  const [choice, region, search, card] = ["column", "region", "search", "card"].map(byId);
  const spans = []; // every token in reading order: its element and its data
  let current = 0;

  columns.forEach((column, index) => choice.add(new Option(column.name, index)));
  contexts.forEach((context) => byId("contexts").append(drawContext(context)));
  spans[0].element.tabIndex = 0;
  choice.addEventListener("change", colour);
  region.addEventListener("change", filter);
  search.addEventListener("input", filter);
  addEventListener("scroll", hideUnlessFocused, { passive: true });
  colour();
  filter();

  function drawContext(context) {
    const box = make("div", "context");
    const prompt = make("details");
    prompt.append(make("summary", "", `Context ${context.id}: …${context.prompt.slice(-160)}`));
    prompt.append(make("p", "prompt", context.prompt));
    const response = make("p", "response");
    context.tokens.forEach((token, position) => {
      const element = make("span", "token");
      writeToken(element, token.t);
      element.tabIndex = -1;
      element.setAttribute("role", "button");
      element.setAttribute("aria-label", `token ${readable(token.t)}, position ${position} of context ${context.id}`);
      const index = spans.length;
      spans.push({ element, token, context, position });
      element.addEventListener("mouseenter", () => showCard(index));
      element.addEventListener("mouseleave", hideUnlessFocused);
      element.addEventListener("focus", () => { move(index); showCard(index); });
      element.addEventListener("blur", () => { card.hidden = true; });
      element.addEventListener("keydown", (event) => walk(event, index));
      response.append(element);
    });
    box.append(prompt, response);
    return box;
  }

  // Line breaks are drawn as a sign and a break, so that a token that is nothing else can be seen and reached.
  function writeToken(element, text) {
    text.split(/(\n|\t)/).forEach((part) => {
      if (part === "\n") {
        element.append(make("span", "sign", "↵"), "\n");
      } else if (part === "\t") {
        element.append(make("span", "sign", "⇥"));
      } else if (part) {
        element.append(part);
      }
    });
  }

  function walk(event, index) {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 };
    if (event.key in steps) {
      event.preventDefault();
      const next = Math.min(Math.max(index + steps[event.key], 0), spans.length - 1);
      spans[next].element.focus();
    } else if (event.key === "Escape") {
      card.hidden = true;
    }
  }

  function move(index) {
    spans[current].element.tabIndex = -1;
    current = index;
    spans[current].element.tabIndex = 0;
  }

  function colour() {
    const index = Number(choice.value);
    const column = columns[index];
    spans.forEach(({ element, token }) => paint(element, token.v[index], column));
    const unit = column.unit ? ` ${column.unit}` : "";
    byId("low").textContent = column.kind === "selected" ? "left out" : `${number(column.low)}${unit}`;
    byId("high").textContent = column.kind === "selected" ? `taken, ${column.unit}` : `${number(column.high)}${unit}`;
    const stops = [0, 0.25, 0.5, 0.75, 1].map((x) => css(shade(x, column.kind)));
    byId("bar").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  }

  function paint(element, value, column) {
    if (value === null) {
      element.style.background = "repeating-linear-gradient(45deg, transparent 0 3px, var(--blank) 3px 5px)";
      element.style.color = "inherit";
      return;
    }
    const span = column.high - column.low || 1;
    const rgb = shade(Math.min(Math.max((value - column.low) / span, 0), 1), column.kind);
    element.style.background = css(rgb);
    const light = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];
    element.style.color = light > 140 ? "#14171d" : "#ffffff";
  }

  function filter() {
    const wanted = search.value.toLowerCase();
    let shown = 0;
    spans.forEach(({ element, token, context }) => {
      const inside = region.value === "" || token.r[Number(region.value)] === 1;
      const hit = wanted !== "" && token.t.toLowerCase().includes(wanted);
      const matching = wanted === "" || hit || context.prompt.toLowerCase().includes(wanted);
      element.classList.toggle("out", !(inside && matching));
      element.classList.toggle("hit", hit);
      shown += inside && matching;
    });
    byId("count").textContent = `${shown} of ${spans.length} tokens`;
  }

  function showCard(index) {
    const { element, token, context, position } = spans[index];
    card.replaceChildren(make("h4", "", `“${readable(token.t)}” at position ${position}, context ${context.id}`));
    const both = make("div", "columns");
    both.append(candidates("student", token.s, token.p[0]), candidates("teacher", token.q, token.p[1]));
    const numbers = make("div", "numbers");
    columns.forEach((column, index) => {
      if (column.kind !== "selected") {
        const unit = column.unit ? ` ${column.unit}` : "";
        numbers.append(make("div", "", `${column.name}: ${number(token.v[index])}${unit}`));
      }
    });
    numbers.classList.add("columns");
    card.append(both, numbers);
    card.hidden = false;
    const box = element.getBoundingClientRect();
    const size = card.getBoundingClientRect();
    const below = box.bottom + size.height + 12 < innerHeight;
    card.style.top = `${Math.max(4, below ? box.bottom + 8 : box.top - size.height - 8)}px`;
    card.style.left = `${Math.min(Math.max(4, box.left), Math.max(4, innerWidth - size.width - 8))}px`;
  }

  function candidates(side, list, realised) {
    const part = make("div");
    part.append(make("strong", "", side));
    const table = make("table");
    list.forEach(([text, probability]) => {
      const row = make("tr");
      row.append(make("td", "", readable(text)), make("td", "", percent(probability)));
      table.append(row);
    });
    part.append(table, make("div", "", `this token: ${percent(realised)}`));
    return part;
  }

  function hideUnlessFocused() {
    const focused = spans.findIndex(({ element }) => element === document.activeElement);
    if (focused < 0) {
      card.hidden = true;
    } else {
      showCard(focused);
    }
  }
}

function make(tag, name = "", text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text) element.textContent = text;
  return element;
}

function readable(text) {
  const signs = text.replaceAll("\n", "↵").replaceAll("\t", "⇥");
  return signs.trim() === "" ? signs.replaceAll(" ", "␣") : signs;
}

function number(value) {
  return value === null ? "unknown" : String(Number(value.toPrecision(3)));
}

function percent(value) {
  return value >= 0.001 ? `${(100 * value).toFixed(1)}%` : `${(100 * value).toPrecision(2)}%`;
}

// Colours that colour-blind readers tell apart: blue to yellow for amounts, orange to purple about 0.
function shade(x, kind) {
  const stops = {
    sequential: [[0, 34, 78], [70, 83, 108], [124, 123, 120], [187, 172, 107], [254, 232, 56]],
    diverging: [[179, 88, 6], [241, 163, 64], [247, 247, 247], [153, 142, 195], [84, 39, 136]],
    selected: [[206, 210, 217], [206, 210, 217], [206, 210, 217], [31, 95, 168], [31, 95, 168]],
  }[kind];
  const index = Math.min(Math.floor(x * 4), 3);
  const share = x * 4 - index;
  return stops[index].map((from, i) => from + share * (stops[index + 1][i] - from));
}

function css(rgb) {
  return `rgb(${rgb.map(Math.round).join(" ")})`;
}
