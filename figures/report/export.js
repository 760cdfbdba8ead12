// Tokens as CSV: one row a token, with every number, rank and region, and what both models gave to it.
const REGIONS = ["in_q3", "high_learnable", "high_incompatible"];

function csvText(items, data) {
  const head = [
    "run", "context_id", "position", "token", ...data.columns.map(({ key }) => key),
    ...data.selectors.map(({ key }) => `rank_${key}`), ...REGIONS, "student_p", "teacher_p", "student_p_after",
  ];
  const rows = items.map(({ run, context, position, token }) => [
    data.runs[run].name, context.id, position, token.t, ...token.v, ...token.k, ...token.r, token.p[0], token.p[1], token.p[2] ?? null,
  ]);
  return [head, ...rows].map((row) => row.map(csvCell).join(",")).join("\r\n") + "\r\n";
}

function csvCell(value) {
  const text = value === null ? "" : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function download(text, name) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}
