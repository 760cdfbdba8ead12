// A histogram of the chosen number, from the lowest to the highest colour: what lies beyond is counted at the ends.
// Dragging over it keeps the tokens of a range; the two sliders below do the same from a keyboard.
const BINS = 40;

function binOf(value, column) {
  return Math.min(Math.floor(along(value, column) * BINS), BINS - 1);
}

function counted(items, state, data) {
  const counts = Array(BINS).fill(0);
  items.forEach((item) => {
    const value = item.token.v[state.column];
    if (item.among && value !== null) counts[binOf(value, data.columns[state.column])] += 1;
  });
  return counts;
}

function drawHistogram(picture, counts, state, column) {
  const most = Math.max(...counts, 1);
  const bars = counts.map((count, bin) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const height = count ? Math.max((count / most) * 46, 1) : 0;
    const inside = bin >= state.from && bin < state.to;
    const place = { x: bin * 5, y: 48 - height, width: 4.5, height };
    Object.entries(place).forEach(([name, value]) => bar.setAttribute(name, value));
    bar.setAttribute("class", inside ? "in" : "out");
    return bar;
  });
  picture.replaceChildren(...bars);
  picture.setAttribute("aria-label", `${column.name}: ${counts.join(", ")} tokens from the lowest to the highest`);
}

function rangeText(state, column) {
  const edge = (bin) => withUnit(column.low + (bin / BINS) * (column.high - column.low), column);
  const from = state.from === 0 ? "the lowest" : edge(state.from);
  const to = state.to === BINS ? "the highest" : edge(state.to);
  return `${from} to ${to}`;
}

// Report a range of bins while the pointer is dragged over the picture.
function brush(picture, report) {
  let start = null;
  const binAt = (event) => {
    const box = picture.getBoundingClientRect();
    const bin = Math.floor(((event.clientX - box.left) / box.width) * BINS);
    return Math.min(Math.max(bin, 0), BINS - 1);
  };
  const drag = (event) => {
    if (start === null) return;
    const bin = binAt(event);
    report(Math.min(start, bin), Math.max(start, bin) + 1);
  };
  picture.addEventListener("pointerdown", (event) => {
    picture.setPointerCapture(event.pointerId);
    start = binAt(event);
    drag(event);
  });
  picture.addEventListener("pointermove", drag);
  picture.addEventListener("pointerup", () => { start = null; });
  picture.addEventListener("pointercancel", () => { start = null; });
}
