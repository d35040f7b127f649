// Shows a run's results as cards, which the user can search, filter and sort.
function startGallery() {
  const gallery = $("gallery");
  if (!gallery) return;
  const form = $("gallery-controls");
  const cards = page.results.map((result, number) => ({ result, number, element: makeCard(result), text: searchText(result) }));
  let shown = cards;
  fillControls(form);

  const update = () => {
    const wanted = Object.fromEntries(new FormData(form));
    const ordered = wanted.sort ? [...cards].sort((a, b) => byScore(wanted.sort, wanted.order === "best" ? 1 : -1)(a.result, b.result)) : cards;
    shown = ordered.filter((card) => matches(card, wanted));
    for (const card of cards) describe(card, wanted.sort || page.quality_metric);
    gallery.className = `gallery ${wanted.show}`;
    gallery.replaceChildren(...shown.map((card) => card.element));
    $("gallery-count").textContent = shown.length === cards.length ? `${cards.length} results` : `${shown.length} of ${cards.length} results`;
    form.elements.order.disabled = !wanted.sort;
    for (const name of ["low", "high"]) form.elements[name].disabled = !(wanted.sort || page.quality_metric);
    $("score-name").textContent = wanted.sort || page.quality_metric ? metricOf(wanted.sort || page.quality_metric).title : "Score";
  };
  gallery.addEventListener("click", (event) => {
    const button = event.target.closest("button.open");
    if (!button) return;
    const index = shown.findIndex((card) => card.element.contains(button));
    openViewer(shown.map((card) => card.result), index, sampleComparisons, button);
  });
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
}

const searchText = (result) => `${promptOf(result)} ${result.key} ${result.error ?? ""}`.toLowerCase();

// Adds the options of the controls, and hides controls that cannot change what is shown.
function fillControls(form) {
  addOptions(form.elements.rank, page.ranks.map((rank) => [String(rank), String(rank)]));
  addOptions(form.elements.sort, page.metrics.map((metric) => [metric.name, metric.title]));
  form.elements.rank.closest("label").hidden = page.ranks.length < 2;
  form.elements.status.closest("label").hidden = page.results.every((result) => result.status === page.results[0].status);
  for (const name of ["sort", "order", "low"]) form.elements[name].closest("label").hidden = !page.metrics.length;
  if (matchMedia("(max-width: 600px)").matches) form.elements.show.value = "image";
}

function matches({ result, text }, wanted) {
  if (wanted.text && !wanted.text.toLowerCase().split(/\s+/).every((word) => text.includes(word))) return false;
  if (wanted.status && result.status !== wanted.status) return false;
  if (wanted.rank && String(result.rank) !== wanted.rank) return false;
  if (!wanted.low && !wanted.high) return true;
  const score = result.scores[wanted.sort || page.quality_metric];
  if (score === undefined || score === null) return false;
  return (!wanted.low || score >= Number(wanted.low)) && (!wanted.high || score <= Number(wanted.high));
}

function makeCard(result) {
  const sample = sampleOf(result);
  const part = (kind, uri, missing) => make("span", { className: kind },
    uri ? picture(uri, "", kind === "mask" ? "is-mask" : "") : placeholder(missing), kind === "image" ? "result" : kind);
  const parts = ["input", "control", "reference", "mask"].filter((kind) => sample[kind]).map((kind) => part(kind, sample[kind]));
  parts.push(part("image", result.image, result.status === "ok" ? "cannot be shown" : "failed"));
  if (sample.truth) parts.push(part("truth", sample.truth));
  const button = make("button", { type: "button", className: "open" }, ...parts);
  button.setAttribute("aria-label", `Open result: ${promptOf(result).slice(0, 120)}`);
  const problem = result.error ?? result.problem;
  return make("li", { className: "card" }, button,
    make("p", { className: "prompt", dir: "auto", textContent: promptOf(result), title: promptOf(result).slice(0, 400) }),
    problem ? make("p", { className: "error", dir: "auto", textContent: problem }) : null,
    make("p", { className: "meta" }));
}

// Sets the line below the prompt: the score of `metric`, and the rank if there are several.
function describe({ result, element }, metric) {
  const parts = [];
  if (metric && result.scores[metric] !== undefined) parts.push(`${metricOf(metric).title} ${scoreText(metric, result.scores[metric])}`);
  if (page.ranks.length > 1) parts.push(`rank ${result.rank}`);
  element.querySelector(".meta").textContent = parts.join(" · ");
}
