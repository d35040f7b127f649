// Shows one result in a dialog, and compares it with another picture. <dialog> itself handles Escape and keeps the focus
// inside; on close the focus returns to `opener`.
const viewer = $("viewer");
const opened = { list: [], index: 0, against: null, comparisons: [], opener: null };

// Opens the result list[index]. comparisonsOf(result) gives the pictures to compare it with, as { label, uri, file }. `uri` is
// a thumbnail, and `file` the link to the original image if there is one.
function openViewer(list, index, comparisonsOf, opener) {
  Object.assign(opened, { list, index, comparisonsOf, opener });
  showOpened();
  if (!viewer.open) viewer.showModal();
}

function showOpened() {
  const result = opened.list[opened.index];
  // Results of one sample keep the zoom, so that the user can compare the same detail.
  if (opened.sample !== result.sample) resetView();
  opened.sample = result.sample;
  opened.comparisons = opened.comparisonsOf(result).filter((other) => other.uri);
  $("viewer-title").textContent = promptOf(result);
  $("viewer-problem").hidden = Boolean(result.image);
  $("viewer-problem").textContent = result.error ?? result.problem ?? "";
  for (const id of ["stage", "viewer-controls"]) $(id).hidden = !result.image;
  showFacts(result);
  for (const button of viewer.querySelectorAll("[data-step]")) button.disabled = opened.list.length < 2;
  if (!result.image) return;
  const select = $("against");
  select.replaceChildren();
  addOptions(select, [...opened.comparisons.map((other) => [other.label, other.label]), ["", "nothing"]]);
  // Keep the choice of the user if this result has such a picture, too.
  const isAvailable = opened.comparisons.some((other) => other.label === opened.against);
  select.value = opened.against === "" || isAvailable ? opened.against : (opened.comparisons[0]?.label ?? "");
  showPictures(result);
}

function showPictures(result) {
  const other = opened.comparisons.find(({ label }) => label === $("against").value);
  const { mask } = sampleOf(result);
  const [after, before] = [$("after"), $("before")];
  showPicture(after, result.image, result.file);
  after.alt = `Result: ${promptOf(result)}`;
  before.hidden = !other;
  showPicture(before, other?.uri ?? "data:,", other?.file);
  before.alt = other?.label ?? "";
  before.classList.toggle("is-mask", other?.label === "mask");
  $("stage").classList.toggle("single", !other);
  $("before-tag").textContent = other?.label ?? "";
  $("after-tag").textContent = result.label ?? "result";
  $("slider").disabled = !other;
  $("show-mask").disabled = !mask;
  $("mask").hidden = !mask || !$("show-mask").checked;
  $("mask").style.setProperty("--mask", mask ? `url("${mask}")` : "none");
  $("original").href = result.file ?? "";
  showDifference(result, other);
  moveView();
}

// Shows a thumbnail at once, and the original image instead of it as soon as it has loaded. A report without the files beside
// it, for example one that was sent alone, keeps the thumbnail.
function showPicture(image, uri, file) {
  const fit = () => { if (image.id === "after") fitStage(image); describePicture(); };
  image.onload = fit;
  image.dataset.state = file ? "loading" : "thumbnail";
  image.dataset.file = file ?? "";
  image.src = uri;
  if (!file) return;
  const original = new Image();
  const isCurrent = () => image.dataset.file === file && image.dataset.state === "loading";
  original.onload = () => { if (isCurrent()) { image.dataset.state = "original"; image.src = original.src; } };
  original.onerror = () => { if (isCurrent()) { image.dataset.state = "missing"; describePicture(); } };
  original.src = file;
}

// Says whether the stage shows the original image, and its size in pixels.
function describePicture() {
  const image = $("after");
  const { state } = image.dataset;
  const size = `${image.naturalWidth} × ${image.naturalHeight} px`;
  const texts = { original: `Original, ${size}`, loading: "Loading the original …", thumbnail: `Thumbnail, ${size}`, missing: `Thumbnail, ${size}: the original is not beside this page` };
  $("picture-state").textContent = texts[state] ?? "";
  $("original").hidden = !image.dataset.file || state === "missing";
}

function showDifference(result, other) {
  const possible = Boolean(other) && other.label !== "mask";
  const shown = possible && $("show-difference").checked;
  $("show-difference").disabled = !possible;
  $("difference").hidden = !shown;
  $("divider").hidden = shown;
  $("slider").disabled = !other || shown;
  if (!shown) return;
  $("after-tag").textContent = `difference from ${other.label}`;
  $("before-tag").textContent = "";
  drawDifference($("difference"), result.image, other.uri).catch(() => { $("difference").hidden = true; });
}

// Gives the stage the aspect ratio of the picture, within the width and 68 % of the height of the window.
function fitStage(image) {
  const ratio = image.naturalWidth / image.naturalHeight || 1;
  const stage = $("stage");
  stage.style.aspectRatio = String(ratio);
  stage.style.width = `min(100%, ${(68 * ratio).toFixed(1)}vh)`;
  moveView();
}

function showFacts(result) {
  const list = (rows) => make("dl", {}, ...rows.flatMap(([name, value]) => [
    make("dt", { textContent: name }), make("dd", { textContent: value, dir: "auto" }),
  ]));
  const scores = Object.entries(result.scores ?? {}).filter(([, value]) => value !== null).map(([name, value]) => [metricOf(name).title, scoreText(name, value)]);
  const facts = result.status === "ok" ? result.facts : [["Status", "failed"], ...result.facts];
  $("viewer-facts").replaceChildren(
    list([...(result.label ? [["Point", result.label]] : []), ...facts]),
    ...(scores.length ? [make("h3", { textContent: "Scores" }), list(scores)] : []),
  );
}

function step(by) {
  opened.index = (opened.index + by + opened.list.length) % opened.list.length;
  showOpened();
}

function startViewer() {
  startZoom();
  $("against").addEventListener("change", () => { opened.against = $("against").value; showPictures(opened.list[opened.index]); });
  for (const id of ["show-mask", "show-difference"]) $(id).addEventListener("change", () => showPictures(opened.list[opened.index]));
  viewer.querySelector("[data-close]").addEventListener("click", () => viewer.close());
  for (const button of viewer.querySelectorAll("[data-step]")) button.addEventListener("click", () => step(Number(button.dataset.step)));
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => opened.opener?.focus?.());
  viewer.addEventListener("keydown", (event) => {
    if (event.target.matches("input[type=range], select")) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (zoomByKey(event)) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
}

// The pictures of a sample that its result can be compared with.
function sampleComparisons(result) {
  const sample = sampleOf(result);
  return ["input", "control", "reference", "truth", "mask"].map((label) => ({ label, uri: sample[label] }));
}
