// The token view: contexts as tokens, coloured by a chosen number, filtered, sorted and stepped through.
const dataElement = document.getElementById("data");
if (dataElement) showTokens(JSON.parse(dataElement.textContent));

function showTokens(data) {
  const byId = (id) => document.getElementById(id);
  const [card, bar, area] = ["card", "controls", "contexts"].map(byId);
  const items = []; // every token in reading order: its data, and its element in each pane
  const rows = data.rows.map((contexts) => drawRow(contexts, items, data));
  const state = fromAddress(location.hash, data);
  let order = []; // matching tokens by falling value
  let current = 0; // the token that Tab reaches
  let carded = null; // the token whose card is shown

  fillMenus();
  listen();
  openAddress();

  function fillMenus() {
    data.columns.forEach(({ name }, index) => byId("column").add(new Option(name, index)));
    data.selectors.forEach(({ key, name }) => byId("selector").add(new Option(name, key)));
    const known = new Set(data.columns.map(({ key }) => key));
    byId("sort").querySelector("[value=gain]").hidden = !known.has("gain");
    const graded = data.rows.flat().some((context) => context && context.grade);
    GRADES.forEach((grade) => { byId("show").querySelector(`[value=${grade}]`).hidden = !graded; });
    byId("beside").disabled = !known.has("forward_kl_after");
  }

  function listen() {
    const set = (name, value) => { state[name] = value; show(); };
    const read = (name, event, value) => byId(name).addEventListener(event, () => set(name, value(byId(name))));
    ["sort", "show", "selector"].forEach((name) => read(name, "change", (menu) => menu.value));
    ["rising", "beside"].forEach((name) => read(name, "change", (box) => box.checked));
    read("search", "input", (field) => field.value);
    read("budget", "input", (slider) => fromSlider(Number(slider.value)));
    read("from", "input", (slider) => Math.min(Number(slider.value), state.to - 1));
    read("to", "input", (slider) => Math.max(Number(slider.value), state.from + 1));
    byId("column").addEventListener("change", (event) => {
      Object.assign(state, { column: Number(event.target.value), from: 0, to: BINS, beside: false });
      show();
    });
    brush(byId("histogram"), (from, to) => { Object.assign(state, { from, to }); show(); });
    byId("clear").addEventListener("click", () => { Object.assign(state, startState(data)); show(); });
    byId("export").addEventListener("click", () => download(csvText(items.filter((i) => i.matches), data), "tokens.csv"));
    Object.entries({ highest: 0, lowest: -1 }).forEach(([id, place]) => {
      byId(id).addEventListener("click", () => step(place, 0));
    });
    byId("next").addEventListener("click", () => step(null, 1));
    byId("previous").addEventListener("click", () => step(null, -1));
    byId("up").addEventListener("click", () => byId("tokens").scrollIntoView());
    byId("help").addEventListener("click", () => byId("keys").showModal());
    // Not 'mouseover', which also comes when the text scrolls under a mouse that rests.
    area.addEventListener("mousemove", (event) => withItem(event, pointed));
    area.addEventListener("mouseout", (event) => withItem(event, showFocused));
    area.addEventListener("focusin", (event) => withItem(event, focused));
    area.addEventListener("focusout", (event) => withItem(event, hideCard));
    area.addEventListener("keydown", (event) => withItem(event, (item) => walk(event, item)));
    addEventListener("keydown", shortcut);
    addEventListener("scroll", hideLost, { passive: true });
    addEventListener("hashchange", () => {
      if (location.hash.startsWith("#tokens?")) { Object.assign(state, fromAddress(location.hash, data)); openAddress(); }
    });
    onTheme(colour);
    new ResizeObserver(() => {
      document.documentElement.style.setProperty("--bar", `${bar.offsetHeight}px`);
    }).observe(bar);
  }

  function withItem(event, act) {
    const element = event.target.closest?.(".token");
    if (element) act(items[Number(element.dataset.index)], element);
  }

  // Everything that follows from the state.
  function show() {
    const kl = columnOf("forward_kl", data);
    if (state.beside && state.column !== kl) Object.assign(state, { column: kl, from: 0, to: BINS });
    const column = data.columns[state.column];
    setControls();
    items.forEach((item) => {
      item.among = isAmong(item, state, data);
      item.matches = item.among && isInRange(item, state, data);
    });
    order = ranked(items, state, data);
    lay();
    reach();
    colour();
    const counts = counted(items, state, data);
    drawHistogram(byId("histogram"), counts, state, column);
    const marks = [byId("low").textContent, `highest bar: ${Math.max(...counts)} tokens`, byId("high").textContent];
    [...byId("axis").children].forEach((mark, index) => { mark.textContent = marks[index]; });
    byId("range").textContent = rangeText(state, column);
    const count = items.filter((item) => item.matches).length;
    byId("count").textContent = `${count} of ${items.length} tokens`;
    byId("nothing").hidden = count > 0;
    tellPlace();
    writeAddress(state, data);
  }

  function setControls() {
    ["column", "sort", "show", "selector", "search", "from", "to"].forEach((name) => { byId(name).value = state[name]; });
    ["rising", "beside"].forEach((name) => { byId(name).checked = state[name]; });
    byId("budget").value = toSlider(state.budget);
    byId("budget").disabled = state.selector === "";
    ["kept", "left"].forEach((name) => { byId("show").querySelector(`[value=${name}]`).disabled = state.selector === ""; });
    const kept = data.runs.map(({ positions }) => `${bought(state.budget, positions)} of ${positions}`).join("; ");
    const share = Number((100 * state.budget).toPrecision(3));
    byId("bought").textContent = state.selector ? `${share}%: ${kept} positions of the bank` : "choose a selector";
    byId("said").textContent = state.beside
      ? "Both sides: KL(teacher || student), before and after the step, in the same colours. Steps go by KL before it."
      : data.columns[state.column].said;
  }

  // Put what is to be seen into the page: contexts in order, and of each text what matches.
  function lay() {
    const panes = state.beside ? 2 : 1;
    area.replaceChildren(...sorted(rows, data, state).map((row) => row.element), byId("nothing"));
    rows.forEach((row) => {
      row.boxes.forEach((box) => {
        drawPanes(box, panes);
        box.element.hidden = !box.items.some((item) => item.matches);
        box.panes.forEach((pane, index) => {
          pane.hidden = index >= panes;
          if (index < panes) pane.lastChild.replaceChildren(...excerpt(box.items, index));
          if (panes > 1) pane.firstChild.textContent = sideTitle(box.items, index, data);
        });
        box.panes[0].firstChild.hidden = panes === 1;
      });
      row.element.hidden = row.boxes.every((box) => box.element.hidden);
    });
  }

  function colour() {
    const painted = state.beside ? [state.column, columnOf("forward_kl_after", data)] : [state.column];
    items.forEach((item) => {
      item.elements.forEach((element, pane) => {
        if (!item.matches) unpaint(element);
        else if (pane < painted.length) paint(element, item.token.v[painted[pane]], data.columns[painted[pane]]);
        element.classList.toggle("hit", isHit(item, state));
        element.classList.toggle("kept", isKept(item, state, data));
      });
    });
    const column = data.columns[painted[0]];
    const some = (beyond) => items.some(({ token }) => token.v[painted[0]] !== null && beyond(token.v[painted[0]]));
    byId("low").textContent = `${some((value) => value < column.low) ? "≤ " : ""}${withUnit(column.low, column)}`;
    byId("high").textContent = `${some((value) => value > column.high) ? "≥ " : ""}${withUnit(column.high, column)}`;
    const stops = [0, 0.25, 0.5, 0.75, 1].map((share) => css(shade(share, column.kind)));
    byId("bar").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  }

  // Go to a place among the matching tokens, by falling value: from the end, or some way from where we are.
  function step(place, by) {
    if (order.length === 0) return;
    const here = order.indexOf(items[current]);
    const next = place === null ? (here < 0 ? 0 : here + by) : (place + order.length) % order.length;
    visit(order[Math.min(Math.max(next, 0), order.length - 1)]);
  }

  // Bring a token onto the screen before its card is placed beside it.
  function visit({ elements: [element] }, block = "center") {
    element.scrollIntoView({ block });
    element.focus({ preventScroll: true });
  }

  function tellPlace() {
    const here = order.indexOf(items[current]);
    const ties = order.filter(({ token }) => token.v[state.column] === order[here]?.token.v[state.column]).length;
    const place = `${here + 1} of ${order.length}${ties > 1 ? `, ${ties} tie` : ""}`;
    byId("place").textContent = here < 0 || carded === null ? "" : place;
  }

  function shortcut(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input[type=search], select, dialog")) return;
    const go = { h: [0, 0], l: [-1, 0], n: [null, 1], p: [null, -1] }[event.key];
    if (go) step(...go);
    if (event.key === "Escape") hideCard();
    if (event.key === "?") byId("keys").showModal();
  }

  // Arrow keys move along the text, over what is not shown.
  function walk(event, item) {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    const seen = items.filter(({ elements }) => elements[0].isConnected && !elements[0].closest("[hidden]"));
    const next = Math.min(Math.max(seen.indexOf(item) + by, 0), seen.length - 1);
    visit(seen[next], "nearest");
  }

  function focused(item) {
    makeCurrent(item.index);
    state.token = nameOf(item);
    showCard(item);
    tellPlace();
    writeAddress(state, data);
  }

  function pointed(item, element) {
    if (element !== carded) showCard(item, element);
  }

  function showCard(item, element = item.elements[0]) {
    carded = element;
    fillCard(card, item, data);
    card.hidden = false;
    placeCard(card, element, bar.getBoundingClientRect().bottom);
  }

  function hideCard() {
    card.hidden = true;
    carded = null;
  }

  // When the mouse leaves a token, the card of the one that has the focus comes back.
  function showFocused() {
    const element = document.activeElement?.closest?.(".token");
    if (element) showCard(items[Number(element.dataset.index)]);
    else hideCard();
  }

  // A sheet at the bottom of a phone does not outstay its token.
  function hideLost() {
    if (card.hidden || carded === null) return;
    const box = carded.getBoundingClientRect();
    if (box.bottom < bar.getBoundingClientRect().bottom || box.top > innerHeight) hideCard();
  }

  function nameOf({ run, context, position }) {
    return [run, context.id, position].join(".");
  }

  // Tab reaches one token of all.
  function makeCurrent(index) {
    items[current].elements[0].tabIndex = -1;
    current = index;
    items[current].elements[0].tabIndex = 0;
  }

  // A token that is no longer in the text leaves its place with Tab to the first one that is, and the address.
  function reach() {
    hideCard();
    if (items[current].elements[0].isConnected) return;
    state.token = "";
    makeCurrent(Math.max(items.findIndex((item) => item.matches), 0));
  }

  // Show what the address names, and go to its token; to the beginning of the tokens where that is not shown.
  function openAddress() {
    makeCurrent(Math.max(items.findIndex((item) => nameOf(item) === state.token), 0));
    show();
    if (state.token === nameOf(items[current])) visit(items[current]);
    else if (location.hash.startsWith("#tokens?")) byId("tokens").scrollIntoView();
  }
}

// A row of contexts, one of each run: its element, contexts and boxes. New tokens are added to `items`.
function drawRow(contexts, items, data) {
  const element = make("div", contexts.length > 1 ? "row several" : "row");
  const boxes = contexts.map((context, run) => context && drawContext(context, run, items, data));
  element.append(...boxes.map((box) => (box ? box.element : make("div"))));
  return { element, contexts, boxes: boxes.filter((box) => box) };
}

function drawContext(context, run, items, data) {
  const element = make("div", "context");
  const prompt = make("details");
  const name = data.runs.length > 1 ? `${data.runs[run].name}, context` : "Context";
  const grade = context.grade ? ` (${context.grade})` : "";
  prompt.append(make("summary", "", `${name} ${context.id}${grade}: ${visible(context.title)}`));
  prompt.append(make("p", "prompt", visible(context.prompt)));
  element.append(prompt);
  const own = context.tokens.map((token) => {
    const item = { token, context, run, position: token.n, elements: [], index: items.length };
    items.push(item);
    return item;
  });
  const box = { element, items: own, panes: [] };
  drawPanes(box, 1);
  return box;
}

// Draw a context's text as often as it is to stand side by side.
function drawPanes(box, count) {
  while (box.panes.length < count) {
    const second = box.panes.length === 1;
    const pane = make("div", "pane");
    const text = make("p", "response");
    text.append(...box.items.map((item) => drawToken(item, second)));
    pane.append(make("h5"), text);
    box.panes.push(pane);
    box.element.append(pane);
  }
  box.element.classList.toggle("beside", count > 1);
}

// What a side shows, and its mean: one step changes colours little.
function sideTitle(items, pane, data) {
  const place = columnOf(["forward_kl", "forward_kl_after"][pane], data);
  const value = withUnit(mean(items.map(({ token }) => token.v[place])), data.columns[place]);
  return `KL ${["before", "after"][pane]} the step: mean ${value}`;
}

function drawToken(item, twin) {
  const element = make("span", "token");
  writeToken(element, item.token.t);
  element.dataset.index = item.index;
  if (twin) {
    element.setAttribute("aria-hidden", "true");
  } else {
    element.tabIndex = -1;
    element.setAttribute("role", "button");
    const where = `position ${item.position} of context ${item.context.id}`;
    element.setAttribute("aria-label", `token ${readable(item.token.t)}, ${where}`);
  }
  item.elements.push(element);
  return element;
}

// Budgets from 0.1% to 100%, even on a logarithmic slider from 0 to 100.
function fromSlider(place) {
  return Number((10 ** (place / (100 / 3) - 3)).toPrecision(2));
}

function toSlider(budget) {
  return Math.round((Math.log10(budget) + 3) * (100 / 3));
}
