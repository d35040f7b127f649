// Shows a sweep's results in a grid: a row per sample, and a column per point, the cheapest point first.
function startGrid() {
  const grid = $("grid");
  if (!grid) return;
  const rows = gridRows();
  const form = $("grid-controls");
  const list = rows.flatMap((row) => row.cells.filter(Boolean));
  for (const result of list) result.label = page.points[result.point].label;
  const cells = new Map();
  grid.append(gridHead(), make("tbody", {}, ...rows.map((row) => gridRow(row, cells))));
  addOptions(form.elements.against, gridAgainst());
  form.elements.mask.closest("label").hidden = !Object.values(page.samples).some((sample) => sample.mask);

  const update = () => {
    const { against } = Object.fromEntries(new FormData(form));
    grid.style.setProperty("--cell", `${form.elements.size.value}px`);
    for (const [result, button] of cells) decorate(button, result, against, form.elements.mask.checked, rows);
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  const open = (result, opener) => openViewer(list, list.indexOf(result), (shown) => gridComparisons(shown, rows), opener);
  grid.addEventListener("click", (event) => {
    const button = event.target.closest("button.cell");
    if (button) open([...cells].find(([, cell]) => cell === button)[0], button);
  });
  // A plot or a button of the table of points asks for the images of a point.
  document.addEventListener("point", (event) => {
    const result = list.find(({ point, image }) => point === event.detail.point && image);
    if (result) open(result, cells.get(result));
  });
  update();
}

// The rows of the grid, each with its cells in the order of the columns; null where a point has no result.
function gridRows() {
  const rows = new Map();
  for (const result of page.results) {
    const name = `${result.sample}\n${result.variant}`;
    if (!rows.has(name)) rows.set(name, { sample: result.sample, variant: result.variant, cells: page.columns.map(() => null) });
    const column = page.columns.indexOf(result.point);
    if (column >= 0) rows.get(name).cells[column] = result;
  }
  return [...rows.values()];
}

function gridHead() {
  const heads = page.columns.map((number) => {
    const point = page.points[number];
    const name = point.href ? make("a", { href: point.href, textContent: point.label }) : point.label;
    const details = [point.quality, point.cost].filter(Boolean).map((textContent) => make("small", { textContent }));
    return make("th", { scope: "col", className: point.chosen ? "is-chosen" : "" }, name, ...details);
  });
  const corner = make("th", { scope: "col" }, page.axes ? `↓ sample · ${page.axes} →` : "↓ sample · point →");
  return make("thead", {}, make("tr", {}, corner, ...heads));
}

function gridRow(row, cells) {
  const prompt = page.samples[row.sample]?.prompt ?? row.sample;
  const name = make("span", { dir: "auto", textContent: prompt, title: prompt.slice(0, 400) });
  const variant = row.variant ? make("small", { textContent: `image index ${row.variant}` }) : null;
  return make("tr", {}, make("th", { scope: "row" }, name, variant), ...row.cells.map((result) => {
    if (!result) return make("td", {}, make("span", { className: "cell none", textContent: "–" }));
    const button = make("button", { type: "button", className: "cell" },
      result.image ? picture(result.image, "") : placeholder(result.error ?? result.problem ?? "failed"));
    button.setAttribute("aria-label", `Open ${page.points[result.point].label}: ${prompt.slice(0, 100)}`);
    cells.set(result, button);
    const score = page.quality_metric ? result.scores[page.quality_metric] : undefined;
    return make("td", {}, button, score === undefined ? null : make("small", { textContent: digits(score) }));
  }));
}

// Options of what the grid can show differences from: points, and the inputs and truths of samples.
function gridAgainst() {
  const samples = Object.values(page.samples);
  const pictures = ["input", "truth"].filter((name) => samples.some((sample) => sample[name]));
  return [...page.columns.map((number) => [`point ${number}`, page.points[number].label]), ...pictures.map((name) => [name, name])];
}

const rowOf = (result, rows) => rows.find((row) => row.sample === result.sample && row.variant === result.variant);

function otherUri(result, against, rows) {
  if (!against.startsWith("point ")) return page.samples[result.sample]?.[against];
  const column = page.columns.indexOf(Number(against.slice(6)));
  return rowOf(result, rows)?.cells[column]?.image;
}

// Draws the difference of a cell when the cell becomes visible, because drawing all cells at once takes long.
const visibleCanvases = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    visibleCanvases.unobserve(target);
    drawDifference(target, target.dataset.uri, target.dataset.other).catch(() => target.remove());
  }
}, { rootMargin: "200px" });

// Lays the difference and the mask over the picture of a cell, as the controls ask.
function decorate(button, result, against, withMask, rows) {
  for (const old of button.querySelectorAll(".overlay, canvas")) old.remove();
  const other = against && result.image ? otherUri(result, against, rows) : null;
  if (other) {
    const canvas = make("canvas");
    Object.assign(canvas.dataset, { uri: result.image, other });
    button.append(canvas);
    visibleCanvases.observe(canvas);
  }
  const { mask } = page.samples[result.sample] ?? {};
  if (!withMask || !mask || !result.image) return;
  const overlay = make("div", { className: "overlay" });
  overlay.style.setProperty("--mask", `url("${mask}")`);
  button.append(overlay);
}

// What the viewer can compare a result with: the other points (the reference first), then the pictures of the sample.
function gridComparisons(result, rows) {
  const row = rowOf(result, rows);
  const others = row.cells.filter((cell) => cell && cell !== result).map((cell) => ({ label: page.points[cell.point].label, uri: cell.image }));
  const reference = page.points[result.point].reference ?? page.reference;
  const first = page.points[reference]?.label;
  others.sort((a, b) => (b.label === first) - (a.label === first));
  return [...others, ...sampleComparisons(result)];
}
