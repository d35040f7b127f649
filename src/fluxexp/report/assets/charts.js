// Draws the page's plots, with colors for light or dark mode.

// The color-blind-safe palette of Okabe and Ito, with a few changes for enough contrast on each background.
const OKABE_ITO = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8a8a00", "#777777"];
const OKABE_ITO_DARK = ["#56B4E9", "#E69F00", "#2fc49b", "#e39cc5", "#F0E442", "#ff8a3d", "#7fa8ff", "#a9a9a9"];
const dark = matchMedia("(prefers-color-scheme: dark)");

function chartConfig() {
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, line] = ["--ink", "--soft", "--line"].map((name) => style.getPropertyValue(name).trim());
  const font = getComputedStyle(document.body).fontFamily;
  const colors = dark.matches ? OKABE_ITO_DARK : OKABE_ITO;
  return {
    background: null,
    font,
    padding: { left: 2, right: 6, top: 4, bottom: 2 },
    view: { stroke: null },
    axis: {
      labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 11,
      titleFontSize: 11.5, titleFontWeight: "normal", titlePadding: 6, labelLimit: 150, labelOverlap: "parity", labelSeparation: 6,
    },
    axisY: { domain: false, ticks: false },
    legend: { labelColor: ink, titleColor: soft, labelFontSize: 11.5, titleFontSize: 11.5, titleFontWeight: "normal", symbolSize: 90, symbolOpacity: 1, rowPadding: 1, columnPadding: 10 },
    text: { color: ink, font },
    range: { category: colors, ordinal: { scheme: "cividis" }, heatmap: { scheme: "cividis" }, ramp: { scheme: "cividis" } },
    mark: { color: colors[0] },
    rule: { color: soft },
    style: { "soft-line": { stroke: soft }, ink: { fill: ink }, leader: { stroke: ink, strokeWidth: 0.7 }, ring: { stroke: ink } },
    tick: { color: soft },
  };
}

// Vega-Lite puts a label at its mark. This lets Vega move the texts of the layer `labels` to where they cover no mark and
// no other label, and leave out a label without such a place. A label at a distance gets a line to its mark, so that it is
// clear which mark it names. Points in the answer get their labels first. `vega` is the compiled specification.
const LABEL_PLACES = ["top-left", "bottom-right", "top-right", "bottom-left", "right", "left", "top", "bottom"];
const LABEL_DISTANCES = [6, 12, 18, 25, 32, 40, 48, 60, 75, 90];
function placeLabels(vega) {
  const labels = vega.marks.find(({ name }) => name === "labels_marks");
  if (!labels) return vega;
  const avoidMarks = vega.marks.filter((mark) => mark !== labels && mark.name).map(({ name }) => name);
  labels.transform = [{
    type: "label", size: { signal: "[max(width, 1), max(height, 1)]" }, avoidMarks,
    sort: { field: "datum.answer", order: "descending" },
    anchor: LABEL_DISTANCES.flatMap(() => LABEL_PLACES),
    offset: LABEL_DISTANCES.flatMap((distance) => LABEL_PLACES.map(() => distance)),
  }];
  const { x, y } = labels.encode.update;
  const [markX, markY] = [`scale('${x.scale}', datum.datum.${x.field})`, `scale('${y.scale}', datum.datum.${y.field})`];
  const isFar = `abs(datum.x - ${markX}) + abs(datum.y - ${markY}) > 16`;
  vega.marks.push({
    type: "rule", name: "leaders", style: ["leader"], from: { data: "labels_marks" }, interactive: false, aria: false,
    encode: { update: {
      x: { field: "x" }, y: { field: "y" }, x2: { signal: markX }, y2: { signal: markY },
      opacity: { signal: `datum.opacity && ${isFar} ? 0.7 : 0` },
    } },
  });
  return vega;
}

async function drawChart(container) {
  const name = container.dataset.chart;
  const spec = page.charts?.[name];
  if (!spec) return;
  try {
    const { view } = await window.vegaEmbed(container, spec, {
      actions: false, renderer: "svg", config: chartConfig(), tooltip: { disableDefaultStyle: true },
      // Without `eval` and without styles of its own, which the page's content security policy refuses.
      ast: true, defaultStyle: false, patch: placeLabels,
    });
    // A click on a mark of a sweep's plot opens the images of its point (see startGrid).
    view.addEventListener("click", (_event, item) => {
      const point = item?.datum?.point;
      if (point !== undefined && point !== null) document.dispatchEvent(new CustomEvent("point", { detail: { point } }));
    });
    container.dataset.drawn = "yes";
  } catch (error) {
    container.replaceChildren(make("p", { className: "chart-failed", textContent: `The browser could not draw this plot: ${error.message}` }));
  }
}

async function drawCharts() {
  // Plots are drawn from top to bottom. The timeout between two plots lets the browser handle input.
  for (const container of document.querySelectorAll("[data-chart]")) {
    await drawChart(container);
    await new Promise((done) => setTimeout(done, 0));
  }
  document.documentElement.dataset.charts = "drawn";
}

dark.addEventListener("change", drawCharts);
