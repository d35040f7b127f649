// Reads the page's data, and has the helpers that all other scripts use. Data becomes text in the page, never HTML.
const page = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

// Creates an element. Properties that the element does not have become attributes.
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function picture(uri, alt, kind = "") {
  const image = make("img", { className: `picture ${kind}`, loading: "lazy", decoding: "async", alt });
  image.addEventListener("load", () => image.classList.toggle("is-small", isSmall(image)));
  image.src = uri;
  return image;
}

// Whether the original picture is small. The page upsamples such a picture with sharp pixels.
// A picture as large as the thumbnails (page.side) was probably larger and got downsampled.
function isSmall(image) {
  const side = Math.max(image.naturalWidth, image.naturalHeight);
  return side <= 160 && side < page.side;
}

const placeholder = (text) => make("span", { className: "none", dir: "auto", textContent: text });

// A number as text with `number` significant digits.
function digits(value, number = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(number - 1);
  if (size >= 10 ** number) return value.toFixed(0);
  return Number(value.toPrecision(number)).toString();
}

const metrics = new Map((page.metrics ?? []).map((metric) => [metric.name, metric]));
const metricOf = (name) => metrics.get(name) ?? { name, title: name, unit: "", higher_is_better: null, description: "" };
const scoreText = (name, value) => `${digits(value)} ${metricOf(name).unit}`.trim();
const sampleOf = (result) => page.samples?.[result.sample] ?? {};
const promptOf = (result) => result.prompt ?? sampleOf(result).prompt ?? result.sample;

// Compares two results by a metric, for sorting: the best first if `sign` is 1, the worst first if it is -1.
// Results without a score always come last.
function byScore(name, sign) {
  const direction = (metricOf(name).higher_is_better === false ? -1 : 1) * sign;
  return (a, b) => {
    const [x, y] = [a.scores?.[name] ?? null, b.scores?.[name] ?? null];
    if (x === null || y === null) return (x === null) - (y === null);
    return (y - x) * direction;
  };
}

function addOptions(select, options) {
  select.append(...options.map(([value, textContent]) => make("option", { value, textContent })));
}

// Draws the difference of two pictures: for each pixel the largest difference of its three channels (0 to 255), less
// DIFFERENCE_FLOOR (which hides noise of the thumbnails' compression), times DIFFERENCE_GAIN, as a color of the ramp.
// The ramp gets brighter from end to end, so that color-blind readers can read it.
const DIFFERENCE_GAIN = 4;
const DIFFERENCE_FLOOR = 6;
async function drawDifference(canvas, uri, otherUri) {
  const [image, other] = await Promise.all([uri, otherUri].map(decoded));
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  // RGBA bytes of both pictures. The canvas scales the other picture to the size of the first.
  const [pixels, otherPixels] = [image, other].map((source) => {
    context.drawImage(source, 0, 0, canvas.width, canvas.height);
    return context.getImageData(0, 0, canvas.width, canvas.height);
  });
  for (let offset = 0; offset < pixels.data.length; offset += 4) {
    let largest = 0;
    for (let channel = 0; channel < 3; channel += 1) {
      largest = Math.max(largest, Math.abs(pixels.data[offset + channel] - otherPixels.data[offset + channel]));
    }
    const value = Math.min(1, (Math.max(0, largest - DIFFERENCE_FLOOR) * DIFFERENCE_GAIN) / 255);
    pixels.data.set(ramp(value), offset);
  }
  context.putImageData(pixels, 0, 0);
}

// RGB colors at equal distances from 0 to 1.
const RAMP = [[0, 0, 4], [0, 66, 128], [110, 110, 120], [200, 180, 90], [255, 245, 120]];
function ramp(value) {
  const position = value * (RAMP.length - 1);
  const [low, high] = [RAMP[Math.floor(position)], RAMP[Math.ceil(position)]];
  return [...low.map((part, channel) => part + (high[channel] - part) * (position % 1)), 255];
}

async function decoded(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  return image;
}
