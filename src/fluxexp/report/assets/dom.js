// The page's data, and the few ways in which scripts make elements of it: as text, never as HTML.
const page = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

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

// A picture that is small by itself is shown pixel by pixel; one that was made small is not.
function isSmall(image) {
  const side = Math.max(image.naturalWidth, image.naturalHeight);
  return side <= 160 && side < page.side;
}

const nothing = (text) => make("span", { className: "none", dir: "auto", textContent: text });

function digits(value, number = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(number - 1);
  if (size >= 10 ** number) return value.toFixed(0);
  return Number(value.toPrecision(number)).toString();
}

const metrics = new Map((page.metrics ?? []).map((metric) => [metric.name, metric]));
const metricOf = (name) => metrics.get(name) ?? { name, title: name, unit: "", higher: null, about: "" };
const scoreText = (name, value) => `${digits(value)} ${metricOf(name).unit}`.trim();
const sampleOf = (result) => page.samples?.[result.sample] ?? {};
const promptOf = (result) => result.prompt ?? sampleOf(result).prompt ?? result.sample;

// Which of two scores is better comes first where `sign` is 1; what has no score comes last either way.
function byScore(name, sign) {
  const direction = (metricOf(name).higher === false ? -1 : 1) * sign;
  return (a, b) => {
    const [x, y] = [a.scores?.[name] ?? null, b.scores?.[name] ?? null];
    if (x === null || y === null) return (x === null) - (y === null);
    return (y - x) * direction;
  };
}

function addOptions(select, options) {
  select.append(...options.map(([value, textContent]) => make("option", { value, textContent })));
}

// How far two pictures are apart, pixel by pixel, as brightness and colour of a ramp that everybody can read.
const DIFFERENCE_GAIN = 4;
const DIFFERENCE_FLOOR = 6;
async function drawDifference(canvas, uri, otherUri) {
  const [image, other] = await Promise.all([uri, otherUri].map(decoded));
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const [ours, theirs] = [image, other].map((drawn) => {
    context.drawImage(drawn, 0, 0, canvas.width, canvas.height);
    return context.getImageData(0, 0, canvas.width, canvas.height);
  });
  for (let at = 0; at < ours.data.length; at += 4) {
    let most = 0;
    for (let channel = 0; channel < 3; channel += 1) {
      most = Math.max(most, Math.abs(ours.data[at + channel] - theirs.data[at + channel]));
    }
    const value = Math.min(1, (Math.max(0, most - DIFFERENCE_FLOOR) * DIFFERENCE_GAIN) / 255);
    ours.data.set(ramp(value), at);
  }
  context.putImageData(ours, 0, 0);
}

const RAMP = [[0, 0, 4], [0, 66, 128], [110, 110, 120], [200, 180, 90], [255, 245, 120]];
function ramp(value) {
  const place = value * (RAMP.length - 1);
  const [low, high] = [RAMP[Math.floor(place)], RAMP[Math.ceil(place)]];
  return [...low.map((part, channel) => part + (high[channel] - part) * (place % 1)), 255];
}

async function decoded(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  return image;
}
