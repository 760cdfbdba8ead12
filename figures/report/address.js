// The address holds the view: '#tokens?column=gain&show=q3' opens the page as it was.
const START = {
  column: 0, sort: "bank", rising: false, show: "all", search: "", selector: "", budget: 0.1, from: 0, to: BINS,
  beside: false, token: "",
};

function startState(data) {
  return { ...START, budget: data.budget };
}

function toAddress(state, data) {
  const start = startState(data);
  const words = new URLSearchParams();
  Object.keys(START).forEach((name) => {
    if (state[name] !== start[name]) {
      words.set(name, name === "column" ? data.columns[state.column].key : state[name]);
    }
  });
  return `#tokens?${words}`;
}

// The state that an address names; what it does not name, or names wrongly, is as at the start.
function fromAddress(hash, data) {
  const state = startState(data);
  if (!hash.startsWith("#tokens?")) return state;
  const words = new URLSearchParams(hash.slice("#tokens?".length));
  const among = (name, allowed) => {
    if (allowed.includes(words.get(name))) state[name] = words.get(name);
  };
  const within = (name, low, high) => {
    const value = Number(words.get(name));
    if (words.has(name) && value >= low && value <= high) state[name] = value;
  };
  const column = columnOf(words.get("column"), data);
  if (column >= 0) state.column = column;
  among("sort", Object.keys(ORDERS));
  among("show", Object.keys(SHOWN));
  among("selector", data.selectors.map(({ key }) => key));
  within("budget", 0.001, 1);
  within("from", 0, BINS - 1);
  within("to", 1, BINS);
  state.rising = words.get("rising") === "true";
  state.beside = words.get("beside") === "true" && columnOf("forward_kl_after", data) >= 0;
  state.search = words.get("search") ?? "";
  state.token = words.get("token") ?? "";
  return state;
}

// Write the address when nothing has changed for a moment: browsers refuse many changes a second. A page inside another
// one has no address of its own.
let addressTimer = 0;

function writeAddress(state, data) {
  if (location.protocol === "about:") return;
  clearTimeout(addressTimer);
  addressTimer = setTimeout(() => history.replaceState(null, "", toAddress(state, data)), 150);
}
