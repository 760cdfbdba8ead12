// Text: elements, and how tokens and numbers are written.
function make(tag, name = "", text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text) element.textContent = text;
  return element;
}

// Control characters as pictures of themselves.
function visible(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f]/g, (sign) => String.fromCharCode(0x2400 + sign.charCodeAt(0)));
}

// A token by itself: spaces that are all there is can be seen.
function readable(text) {
  const signs = visible(text).replaceAll("\n", "↵").replaceAll("\t", "⇥");
  return signs.trim() === "" ? signs.replaceAll(" ", "␣") : signs;
}

// A token within its text: a line break is a sign and a break, so that a token that is nothing else can be reached.
function writeToken(element, text) {
  visible(text).split(/(\n|\t)/).forEach((part) => {
    if (part === "\n") {
      element.append("↵", "\n");
    } else if (part === "\t") {
      element.append("⇥");
    } else if (part) {
      element.append(part);
    }
  });
}

function number(value) {
  return value === null ? "unknown" : String(Number(value.toPrecision(3)));
}

function withUnit(value, column) {
  return `${number(value)}${column.unit && value !== null ? ` ${column.unit}` : ""}`;
}

function percent(value) {
  return value >= 0.001 ? `${(100 * value).toFixed(1)}%` : `${(100 * value).toPrecision(2)}%`;
}
