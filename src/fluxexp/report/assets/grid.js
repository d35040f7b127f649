// Shows a sweep's results in a grid. The columns are the levels of one setting, and a sample has a row for each level of
// another setting. For the settings that are left, the user chooses one level. Instead, each point can have a column.
const PARTS = ["input", "control", "reference", "mask", "truth"];

function startGrid() {
  const grid = $("grid");
  if (!grid) return;
  const samples = gridSamples();
  const form = $("grid-controls");
  for (const result of page.results) result.label = page.points[result.point].label;
  const controls = addSettings($("grid-settings"));
  addOptions(form.elements.against, gridAgainst());
  form.elements.mask.closest("label").hidden = !Object.values(page.samples).some((sample) => sample.mask);
  let cells = new Map();

  const decorateAll = () => {
    grid.style.setProperty("--cell", `${form.elements.size.value}px`);
    for (const [result, button] of cells) decorate(button, result, form.elements.against.value, form.elements.mask.checked, samples);
  };
  const layOut = () => {
    const layout = gridLayout(controls);
    cells = new Map();
    grid.classList.toggle("has-rows", layout.rows.length > 1 || layout.rows[0].title !== "");
    grid.replaceChildren(gridHead(layout), ...samples.map((sample) => gridBlock(sample, layout, cells)));
    decorateAll();
  };
  form.addEventListener("input", (event) => { if (controls.includes(event.target)) layOut(); else decorateAll(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  // The viewer goes through the visible cells from left to right and from top to bottom.
  const open = (result, opener) => {
    const list = cells.has(result) ? [...cells.keys()] : page.results;
    openViewer(list, list.indexOf(result), (shown) => gridComparisons(shown, samples), opener);
  };
  grid.addEventListener("click", (event) => {
    const button = event.target.closest("button.cell");
    if (button) open([...cells].find(([, cell]) => cell === button)[0], button);
  });
  // A plot or a button of the table of points asks for the images of a point.
  document.addEventListener("point", (event) => {
    const result = page.results.find(({ point, image }) => point === event.detail.point && image);
    if (result) open(result, cells.get(result) ?? event.detail.opener);
  });
  layOut();
}

// The samples of the grid, each with its results by point.
function gridSamples() {
  const samples = new Map();
  for (const result of page.results) {
    const name = `${result.sample}\n${result.variant}`;
    if (!samples.has(name)) samples.set(name, { sample: result.sample, variant: result.variant, results: new Map() });
    samples.get(name).results.set(result.point, result);
  }
  return [...samples.values()];
}

// Adds the controls that choose the settings of columns and rows, and a level for each setting that is left.
// Returns the controls: columns, rows, then one per setting.
function addSettings(place) {
  const { all, columns, rows } = page.axes;
  const choice = (label, options, value) => {
    const select = make("select");
    addOptions(select, options);
    select.value = value;
    place.append(make("label", {}, `${label} `, select));
    return select;
  };
  const names = all.map(({ title }, index) => [String(index), title]);
  const controls = [
    choice("Columns", [...names, ["", "all points"]], String(columns ?? "")),
    choice("Rows", [["", "samples only"], ...names], String(rows ?? "")),
    ...all.map(({ title, levels }) => choice(title, levels.map((level, index) => [String(index), level]), "0")),
  ];
  // First show the levels of the point in the answer, or else the first levels that have a point.
  const first = page.points.find(({ chosen, place }) => chosen && place.length) ?? page.points[page.columns[0]];
  all.forEach((_axis, index) => { controls[index + 2].value = String(first?.place[index] ?? 0); });
  place.hidden = all.length === 0;
  return controls;
}

// The titles of columns and rows, and pointAt(column, row), which gives the number of a point, or undefined.
function gridLayout([columns, rows, ...levels]) {
  const { all } = page.axes;
  const [x, y] = [columns.value === "" ? null : Number(columns.value), rows.value === "" ? null : Number(rows.value)];
  rows.closest("label").hidden = x === null || all.length < 2;
  levels.forEach((level, index) => { level.closest("label").hidden = x === null || index === x || index === y; });
  if (x === null) {
    const heads = page.columns.map((number) => ({ title: page.points[number].label, point: number }));
    return { columns: heads, rows: [{ title: "" }], pointAt: (column) => page.columns[column] };
  }
  const side = (axis) => all[axis].levels.map((level) => ({ title: `${all[axis].name} ${level}` }));
  const pointAt = (column, row) => page.columns.find((number) => page.points[number].place.every((level, index) => {
    if (index === x) return level === column;
    return index === y ? level === row : level === Number(levels[index].value);
  }));
  const hasRows = y !== null && y !== x;
  const heads = side(x).map((head, column) => ({ ...head, point: hasRows ? undefined : pointAt(column) }));
  return { columns: heads, rows: hasRows ? side(y) : [{ title: "" }], pointAt };
}

const gridParts = () => PARTS.filter((part) => Object.values(page.samples).some((sample) => sample[part]));

function gridHead({ columns }) {
  const heads = columns.map(({ title, point }) => {
    const { href, quality, cost, chosen } = page.points[point] ?? {};
    const name = href ? make("a", { href, textContent: title }) : title;
    const details = [quality, cost].filter(Boolean).map((textContent) => make("small", { textContent }));
    return make("th", { scope: "col", className: chosen ? "is-chosen" : "" }, name, ...details);
  });
  const parts = gridParts().map((textContent) => make("th", { scope: "col", className: "part", textContent }));
  return make("thead", {}, make("tr", {}, make("td", { className: "row-name" }), ...parts, ...heads));
}

// The rows of one sample: its prompt, and then a row for each level of the setting of the rows.
function gridBlock(sample, { columns, rows, pointAt }, cells) {
  const prompt = page.samples[sample.sample]?.prompt ?? sample.sample;
  const name = make("span", { dir: "auto", textContent: prompt, title: prompt.slice(0, 400) });
  const variant = sample.variant ? make("small", { textContent: ` image index ${sample.variant}` }) : null;
  const parts = gridParts();
  const width = 1 + parts.length + columns.length;
  const title = make("tr", { className: "prompt-row" }, make("th", { scope: "rowgroup", colspan: width }, make("div", {}, name, variant)));
  const body = rows.map((row, index) => {
    const pictures = index ? [] : parts.map((part) => partCell(sample, part, rows.length));
    const results = columns.map((_column, column) => resultCell(sample.results.get(pointAt(column, index)), prompt, cells));
    return make("tr", {}, make("th", { scope: "row", className: "row-name" }, row.title), ...pictures, ...results);
  });
  return make("tbody", {}, title, ...body);
}

function partCell({ sample }, part, rowspan) {
  const uri = page.samples[sample]?.[part];
  return make("td", { className: "part", rowspan }, uri ? picture(uri, part, part === "mask" ? "is-mask" : "") : placeholder("–"));
}

function resultCell(result, prompt, cells) {
  if (!result) return make("td", {}, make("span", { className: "cell none", textContent: "–" }));
  const { label, chosen } = page.points[result.point];
  const button = make("button", { type: "button", className: "cell" },
    result.image ? picture(result.image, "") : placeholder(result.error ?? result.problem ?? "failed"));
  button.setAttribute("aria-label", `Open ${label}: ${prompt.slice(0, 100)}`);
  cells.set(result, button);
  const score = page.quality_metric ? result.scores[page.quality_metric] : undefined;
  return make("td", { className: chosen ? "is-chosen" : "" }, button, score === undefined ? null : make("small", { textContent: digits(score) }));
}

// Options of what the grid can show differences from: points, and the inputs and truths of samples.
function gridAgainst() {
  const samples = Object.values(page.samples);
  const pictures = ["input", "control", "reference", "truth"].filter((name) => samples.some((sample) => sample[name]));
  return [...page.columns.map((number) => [`point ${number}`, page.points[number].label]), ...pictures.map((name) => [name, name])];
}

const resultsOf = (result, samples) => samples.find(({ sample, variant }) => sample === result.sample && variant === result.variant).results;

function otherUri(result, against, samples) {
  if (!against.startsWith("point ")) return page.samples[result.sample]?.[against];
  return resultsOf(result, samples).get(Number(against.slice(6)))?.image;
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
function decorate(button, result, against, withMask, samples) {
  for (const old of button.querySelectorAll(".overlay, canvas")) old.remove();
  const other = against && result.image ? otherUri(result, against, samples) : null;
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
function gridComparisons(result, samples) {
  const reference = page.points[result.point].reference ?? page.reference;
  const results = resultsOf(result, samples);
  const others = page.columns.filter((number) => number !== result.point && results.has(number)).map((number) => results.get(number));
  others.sort((a, b) => (b.point === reference) - (a.point === reference));
  return [...others.map(({ label, image, file }) => ({ label, uri: image, file })), ...sampleComparisons(result)];
}
