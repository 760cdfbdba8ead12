// The card of one token: both models' candidates, and every number. It stands beside its token and scrolls with it; on a
// phone it is a sheet at the bottom, which is gone when its token is.
function fillCard(card, item, data) {
  const { token, context, position } = item;
  const run = data.runs[item.run];
  const title = `“${readable(token.t)}” at position ${position}, context ${context.id}`;
  const head = make("div", "head");
  const close = make("button", "", "×");
  close.type = "button";
  close.setAttribute("aria-label", "close");
  close.addEventListener("click", () => { card.hidden = true; });
  head.append(make("h4", "", data.runs.length > 1 ? `${title}, ${run.name}` : title), close);
  const sides = make("div", "columns three");
  sides.append(
    candidates("teacher", token.q, token.p[1]), candidates("student", token.s, token.p[0]), afterStep(item, data),
  );
  const numbers = make("div", "numbers columns");
  data.columns.forEach((column, index) => {
    numbers.append(make("div", "", `${column.name}: ${withUnit(token.v[index], column)}`));
  });
  card.replaceChildren(head, sides, numbers);
}

function candidates(side, list, realised) {
  const part = make("div");
  part.append(make("strong", "", side), ranking(list), make("div", "", `this token: ${percent(realised)}`));
  return part;
}

function ranking(list) {
  const table = make("table");
  list.forEach(([text, probability]) => {
    const row = make("tr");
    row.append(make("td", "", readable(text)), make("td", "", percent(probability)));
    table.append(row);
  });
  return table;
}

// What the run holds of the student after its step, or why it holds nothing.
function afterStep(item, data) {
  const { token } = item;
  const run = data.runs[item.run];
  if (token.a) return candidates("student after", token.a, token.p[2]);
  const part = make("div");
  const missing = run.step
    ? `The step ${run.step} was measured by a version that kept no candidates: probe again to see them.`
    : "No step was measured on this bank: run teachdiag probe.";
  part.append(make("strong", "", "student after"), make("div", "soft", missing));
  return part;
}

const phone = matchMedia("(max-width: 40rem)");

// Below the token, or above it where there is more room, in coordinates of the page.
function placeCard(card, element, ceiling) {
  if (phone.matches) {
    card.style.top = card.style.left = "";
    return;
  }
  const box = element.getBoundingClientRect();
  const below = box.bottom + card.offsetHeight + 12 < innerHeight || box.top - card.offsetHeight - 8 < ceiling;
  const top = below ? box.bottom + 8 : box.top - card.offsetHeight - 8;
  const left = Math.min(Math.max(4, box.left), Math.max(4, document.documentElement.clientWidth - card.offsetWidth - 8));
  card.style.top = `${top + scrollY}px`;
  card.style.left = `${left + scrollX}px`;
}
