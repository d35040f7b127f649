// Shows one result in a dialog, and compares it with another picture. <dialog> itself handles Escape and keeps the focus
// inside; on close the focus returns to `opener`.
const viewer = $("viewer");
const opened = { list: [], index: 0, against: null, comparisons: [], opener: null };

// Opens the result list[index]. comparisonsOf(result) gives the pictures to compare it with, as { label, uri }.
function openViewer(list, index, comparisonsOf, opener) {
  Object.assign(opened, { list, index, comparisonsOf, opener });
  showOpened();
  if (!viewer.open) viewer.showModal();
}

function showOpened() {
  const result = opened.list[opened.index];
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
  after.onload = () => fitStage(after);
  after.src = result.image;
  after.alt = `Result: ${promptOf(result)}`;
  before.hidden = !other;
  before.src = other?.uri ?? "data:,";
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
  $("original").hidden = !result.file;
  showDifference(result, other);
  slide();
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
  stage.classList.toggle("is-small", isSmall(image));
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

// Moves the divider between the two pictures to the position of the slider.
const slide = () => $("stage").style.setProperty("--at", `${$("slider").value}%`);

function step(by) {
  opened.index = (opened.index + by + opened.list.length) % opened.list.length;
  showOpened();
}

function dragSlider(event) {
  if (event.buttons !== 1 || $("slider").disabled) return;
  const { left, width } = $("stage").getBoundingClientRect();
  $("slider").value = String(((event.clientX - left) / width) * 100);
  slide();
}

function startViewer() {
  $("slider").addEventListener("input", slide);
  for (const name of ["pointerdown", "pointermove"]) $("stage").addEventListener(name, dragSlider);
  $("against").addEventListener("change", () => { opened.against = $("against").value; showPictures(opened.list[opened.index]); });
  for (const id of ["show-mask", "show-difference"]) $(id).addEventListener("change", () => showPictures(opened.list[opened.index]));
  viewer.querySelector("[data-close]").addEventListener("click", () => viewer.close());
  for (const button of viewer.querySelectorAll("[data-step]")) button.addEventListener("click", () => step(Number(button.dataset.step)));
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => opened.opener?.focus?.());
  viewer.addEventListener("keydown", (event) => {
    if (event.target.matches("input[type=range], select")) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
}

// The pictures of a sample that its result can be compared with.
function sampleComparisons(result) {
  const sample = sampleOf(result);
  return ["input", "truth", "mask"].map((label) => ({ label, uri: sample[label] }));
}
