// A sweep's results: a row a sample, a column a point, in the order of their cost.
function startGrid() {
  const place = $("grid");
  if (!place) return;
  const rows = gridRows();
  const form = $("grid-controls");
  const list = rows.flatMap((row) => row.cells.filter(Boolean));
  for (const result of list) result.label = page.points[result.point].label;
  const cells = new Map();
  place.append(gridHead(), make("tbody", {}, ...rows.map((row) => gridRow(row, cells))));
  addOptions(form.elements.against, gridAgainst());
  form.elements.mask.closest("label").hidden = !Object.values(page.samples).some((sample) => sample.mask);

  const update = () => {
    const { against } = Object.fromEntries(new FormData(form));
    place.style.setProperty("--cell", `${form.elements.size.value}px`);
    for (const [result, button] of cells) decorate(button, result, against, form.elements.mask.checked, rows);
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  const open = (result, opener) => openViewer(list, list.indexOf(result), (one) => gridComparisons(one, rows), opener);
  place.addEventListener("click", (event) => {
    const button = event.target.closest("button.cell");
    if (button) open([...cells].find(([, one]) => one === button)[0], button);
  });
  document.addEventListener("point", (event) => {
    const result = list.find((one) => one.point === event.detail.point && one.image);
    if (result) open(result, cells.get(result));
  });
  update();
}

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
    const about = [point.quality, point.cost].filter(Boolean).map((textContent) => make("small", { textContent }));
    return make("th", { scope: "col", className: point.chosen ? "is-chosen" : "" }, name, ...about);
  });
  const corner = make("th", { scope: "col" }, page.axes ? `↓ sample · ${page.axes} →` : "↓ sample · point →");
  return make("thead", {}, make("tr", {}, corner, ...heads));
}

function gridRow(row, cells) {
  const prompt = page.samples[row.sample]?.prompt ?? row.sample;
  const name = make("span", { dir: "auto", textContent: prompt, title: prompt.slice(0, 400) });
  const variant = row.variant ? make("small", { textContent: `variant ${row.variant}` }) : null;
  return make("tr", {}, make("th", { scope: "row" }, name, variant), ...row.cells.map((result) => {
    if (!result) return make("td", {}, make("span", { className: "cell none", textContent: "–" }));
    const button = make("button", { type: "button", className: "cell" },
      result.image ? picture(result.image, "") : nothing(result.error ?? result.why ?? "failed"));
    button.setAttribute("aria-label", `Open ${page.points[result.point].label}: ${prompt.slice(0, 100)}`);
    cells.set(result, button);
    const score = page.judge ? result.scores[page.judge] : undefined;
    return make("td", {}, button, score === undefined ? null : make("small", { textContent: digits(score) }));
  }));
}

function gridAgainst() {
  const samples = Object.values(page.samples);
  const own = ["input", "truth"].filter((name) => samples.some((sample) => sample[name]));
  return [...page.columns.map((number) => [`point ${number}`, page.points[number].label]), ...own.map((name) => [name, name])];
}

function otherUri(result, against, rows) {
  if (!against.startsWith("point ")) return page.samples[result.sample]?.[against];
  const column = page.columns.indexOf(Number(against.slice(6)));
  const row = rows.find((one) => one.sample === result.sample && one.variant === result.variant);
  return row?.cells[column]?.image;
}

// Only what is in sight is computed: an observer calls for the difference of a cell when it comes there.
const inSight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    inSight.unobserve(target);
    drawDifference(target, target.dataset.uri, target.dataset.other).catch(() => target.remove());
  }
}, { rootMargin: "200px" });

function decorate(button, result, against, withMask, rows) {
  for (const old of button.querySelectorAll(".overlay, canvas")) old.remove();
  const other = against && result.image ? otherUri(result, against, rows) : null;
  if (other) {
    const canvas = make("canvas");
    Object.assign(canvas.dataset, { uri: result.image, other });
    button.append(canvas);
    inSight.observe(canvas);
  }
  const { mask } = page.samples[result.sample] ?? {};
  if (!withMask || !mask || !result.image) return;
  const overlay = make("div", { className: "overlay" });
  overlay.style.setProperty("--mask", `url("${mask}")`);
  button.append(overlay);
}

function gridComparisons(result, rows) {
  const row = rows.find((one) => one.sample === result.sample && one.variant === result.variant);
  const others = row.cells.filter((cell) => cell && cell !== result).map((cell) => ({ label: page.points[cell.point].label, uri: cell.image }));
  const reference = page.points[result.point].reference ?? page.reference;
  const first = page.points[reference]?.label;
  others.sort((a, b) => (b.label === first) - (a.label === first));
  return [...others, ...sampleComparisons(result)];
}
