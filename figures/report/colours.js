// Colours that colour-blind readers tell apart. The lowest value has the colour of the page, in light and in dark:
// white to blue for amounts, orange to purple about 0.
const SCALES = {
  light: {
    sequential: [[252, 252, 250], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]],
    diverging: [[179, 88, 6], [241, 163, 64], [252, 252, 250], [153, 142, 195], [84, 39, 136]],
  },
  dark: {
    sequential: [[29, 33, 41], [32, 66, 110], [45, 105, 165], [100, 170, 225], [205, 232, 255]],
    diverging: [[255, 190, 110], [165, 98, 30], [29, 33, 41], [98, 82, 160], [200, 180, 255]],
  },
};

// The colour of a share of the way along a scale, as [red, green, blue].
function shade(share, kind) {
  const stops = SCALES[isDark() ? "dark" : "light"][kind];
  const index = Math.min(Math.floor(share * 4), 3);
  const rest = share * 4 - index;
  return stops[index].map((from, i) => from + rest * (stops[index + 1][i] - from));
}

function css(rgb) {
  return `rgb(${rgb.map(Math.round).join(" ")})`;
}

// Black or white, whichever stands out more: at least 4.5:1 on any colour.
function ink(rgb) {
  const [red, green, blue] = rgb.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  const luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  return (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) ? "#000" : "#fff";
}

// Where a value lies along a column's scale, within [0, 1].
function along(value, column) {
  const span = column.high - column.low || 1;
  return Math.min(Math.max((value - column.low) / span, 0), 1);
}

function paint(element, value, column) {
  element.classList.toggle("unknown", value === null);
  const rgb = value === null ? null : shade(along(value, column), column.kind);
  element.style.background = rgb ? css(rgb) : "";
  element.style.color = rgb ? ink(rgb) : "";
}

function unpaint(element) {
  element.classList.remove("unknown");
  element.style.background = element.style.color = "";
}
