// Which tokens match, what is drawn of the others, and in which order contexts and tokens stand.
const NEAR = 3; // neighbours of a matching token that stay readable
const GRADES = ["right", "wrong", "unparseable"]; // of responses, where they were graded

// How many of a bank's positions a budget buys: the rule of every selector here.
function bought(budget, positions) {
  return Math.max(Math.ceil(budget * positions - 1e-9), 1);
}

// Which of a token's numbers has a name; -1 where none has.
function columnOf(key, data) {
  return data.columns.findIndex((column) => column.key === key);
}

function isKept(item, state, data) {
  const place = data.selectors.findIndex(({ key }) => key === state.selector);
  return place >= 0 && item.token.k[place] <= bought(state.budget, data.runs[item.run].positions);
}

const SHOWN = {
  all: () => true,
  q3: (item) => item.token.r[0] === 1,
  learnable: (item) => item.token.r[1] === 1,
  incompatible: (item) => item.token.r[2] === 1,
  kept: (item, state, data) => isKept(item, state, data),
  left: (item, state, data) => state.selector !== "" && !isKept(item, state, data),
  ...Object.fromEntries(GRADES.map((grade) => [grade, (item) => item.context.grade === grade])),
};

function isHit(item, state) {
  return state.search !== "" && item.token.t.toLowerCase().includes(state.search.toLowerCase());
}

// Whether a token matches all that is chosen but the range of the histogram.
function isAmong(item, state, data) {
  const inText = state.search === "" || isHit(item, state)
    || item.context.prompt.toLowerCase().includes(state.search.toLowerCase());
  return inText && SHOWN[state.show](item, state, data);
}

function isInRange(item, state, data) {
  if (state.from === 0 && state.to === BINS) return true;
  const value = item.token.v[state.column];
  const bin = value === null ? -1 : binOf(value, data.columns[state.column]);
  return bin >= state.from && bin < state.to;
}

// What a text shows: elements of matching tokens and of their neighbours, and an ellipsis for each run of others.
function excerpt(items, pane) {
  const near = (index) => items.slice(Math.max(0, index - NEAR), index + NEAR + 1).some((item) => item.matches);
  const shown = [];
  let left = 0;
  const ellipsis = () => {
    if (left === 0) return;
    const gap = make("span", "gap", " … ");
    gap.title = `${left} tokens that do not match`;
    shown.push(gap);
    left = 0;
  };
  items.forEach((item, index) => {
    const element = item.elements[pane];
    element.classList.toggle("near", !item.matches);
    if (item.matches || near(index)) {
      ellipsis();
      if (item.token.u) shown.push(unscored(item.token.u));
      shown.push(element);
    } else {
      left += 1;
    }
  });
  ellipsis();
  return shown;
}

// What was read in front of a token, and is not scored.
function unscored(text) {
  const element = make("span", "unscored", visible(text));
  element.title = "read as context, not scored";
  return element;
}

// What contexts are sorted by: the mean over a context's tokens.
const ORDERS = {
  bank: null,
  kl: (token, place) => token.v[place("forward_kl")],
  gain: (token, place) => token.v[place("gain")],
  off: (token, place) => 1 - token.v[place("compatibility")],
  chosen: (token, place, state) => token.v[state.column],
};

function meanOf(context, order, data, state) {
  const place = (key) => columnOf(key, data);
  return mean((context?.tokens ?? []).map((token) => ORDERS[order](token, place, state) ?? null));
}

function mean(values) {
  const known = values.filter((value) => value !== null && !Number.isNaN(value));
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

// Rows of contexts by falling (or rising) mean of their first context; those without one come last.
function sorted(rows, data, state) {
  if (!ORDERS[state.sort]) return state.rising ? [...rows].reverse() : rows;
  const keyed = rows.map((row) => [meanOf(row.contexts.find((context) => context), state.sort, data, state), row]);
  const sign = state.rising ? 1 : -1;
  keyed.sort(([a], [b]) => (a === null) - (b === null) || sign * (a - b));
  return keyed.map(([, row]) => row);
}

// Matching tokens by falling value of the chosen number; those that tie, by falling raw KL.
function ranked(items, state, data) {
  const kl = columnOf("forward_kl", data);
  const known = items.filter((item) => item.matches && item.token.v[state.column] !== null);
  return known.sort((a, b) => b.token.v[state.column] - a.token.v[state.column] || b.token.v[kl] - a.token.v[kl]);
}
