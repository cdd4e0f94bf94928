// The leaderboard: the page's data as a table of DataTables. Texts are escaped here, because the table takes HTML.
const { scores, rows, reasons } = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => document.documentElement.classList.toggle("dark", dark.matches);
dark.addEventListener("change", theme);
theme();

const escaped = (text) =>
  String(text).replace(/[&<>"']/g, (one) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[one]);
const short = (number) => {
  const size = Math.abs(number);
  return number.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 3);
};
const SERIES = 4 + scores.length;

// The width of a column's lines: all its intervals, so that lines of different rows can be compared.
const scales = scores.map((_, at) => {
  let [low, high] = [Infinity, -Infinity];
  for (const row of rows) {
    const span = interval(row[4 + at]);
    if (span) [low, high] = [Math.min(low, span[0]), Math.max(high, span[1])];
  }
  return [low, high > low ? high - low : 1];
});

function interval(cell) {
  if (!Array.isArray(cell)) return null;
  if (cell.length === 3) return [cell[1], cell[2]];
  const half = 1.959964 * (cell[1] ?? 0);
  return [cell[0] - half, cell[0] + half];
}

function score(at) {
  return (cell, type) => {
    const missing = !Array.isArray(cell);
    if (type !== "display") return missing ? (type === "sort" ? -Infinity : "") : cell[0];
    if (missing) {
      if (cell === null || cell === undefined) return '<span class="absent" aria-label="not part of this row">–</span>';
      return `<details class="why"><summary aria-label="missing, with a reason">–</summary>${escaped(reasons[cell])}</details>`;
    }
    const [low, high] = interval(cell);
    const [start, width] = scales[at];
    const x = (value) => (2 + (96 * (value - start)) / width).toFixed(1);
    const known = cell.length > 1;
    const words = known ? `<small>${short(low)}–${short(high)}</small>` : "";
    const line = known ? `<line x1="${x(low)}" x2="${x(high)}" y1="4" y2="4"></line>` : "";
    return `<span class="score"><b>${short(cell[0])}</b> ${words}</span><svg viewBox="0 0 100 8" aria-hidden="true">${line}<circle cx="${x(cell[0])}" cy="4" r="3"></circle></svg>`;
  };
}

const plain = (value, type) => (type === "display" || type === "filter" ? escaped(value ?? "") : (value ?? -Infinity));
const columns = [
  {
    title: "Rank",
    type: "num",
    render: (rank, type) => {
      if (type !== "display") return rank ? rank[0] * 1e6 + rank[1] : 1e12;
      return rank ? (rank[0] === rank[1] ? `${rank[0]}` : `${rank[0]}–${rank[1]}`) : "–";
    },
  },
  {
    title: "Checkpoint",
    type: "string",
    className: "name",
    render: ([name, page], type) => (type === "display" ? `<a href="${escaped(encodeURI(page))}">${escaped(name)}</a>` : name),
  },
  { title: "Tags", className: "tags", type: "string", render: plain },
  { title: "Registered", className: "date", type: "string", render: plain },
  ...scores.map((title, at) => ({ title: escaped(title), className: "number", type: "num", render: score(at) })),
  { title: "Series", type: "num", render: plain },
  {
    title: "Status",
    className: "status",
    type: "string",
    render: ([first, ...more], type) => {
      const [title, ...list] = [first, ...more].map((at) => escaped(reasons[at]));
      if (type !== "display" || !list.length) return title;
      return `<details class="why"><summary>${title}</summary><ul>${list.map((one) => `<li>${one}</li>`).join("")}</ul></details>`;
    },
  },
  { title: "GPU-hours", className: "number", type: "num", render: plain },
  { title: "$", className: "number", type: "num", render: plain },
];

const field = (id) => document.getElementById(id);
// Series are never mixed: their scores are of other versions of the tools.
const all = [...new Set(rows.map((row) => row[SERIES]))].sort((one, other) => (other ?? 0) - (one ?? 0));
all.forEach((number, at) => field("series").add(new Option(number === null ? "none" : `${number}${at ? "" : " (newest)"}`, number ?? "")));

const average = 4 + scores.indexOf("avg"); // the ranks are by it; without it all are equal
const table = new ITable(field("table"), {
  columns,
  order: [[0, "asc"], ...(average < 4 ? [] : [[average, "desc"]]), [1, "asc"]],
  pageLength: 25,
  deferRender: true,
  autoWidth: false,
  columnDefs: [{ targets: "_all", searchable: false }], // the fields above search
  layout: { topStart: "pageLength", topEnd: { buttons: [{ extend: "colvis", text: "Columns" }] }, bottomStart: "info", bottomEnd: "paging" },
  language: { lengthMenu: "_MENU_ rows", info: "_START_ to _END_ of _TOTAL_", infoFiltered: "(_MAX_ in all)" },
}).dt;
table.search.fixed("filters", (_, __, at) => {
  const row = rows[at];
  const [name, tag, from, to] = ["name", "tag", "from", "to"].map((id) => field(id).value.toLowerCase());
  return (
    String(row[SERIES] ?? "") === field("series").value &&
    row[1][0].toLowerCase().includes(name) &&
    row[2].toLowerCase().includes(tag) &&
    (!from || (row[3] && row[3] >= from)) &&
    (!to || (row[3] && row[3] <= to))
  );
});
field("filters").addEventListener("input", () => table.draw());
field("filters").addEventListener("submit", (event) => event.preventDefault());
// Not as ITable's data_json: it parses that with a function for each value, a quarter of all time for 2,000 rows.
table.rows.add(rows).draw();
document.documentElement.dataset.ready = "yes";
