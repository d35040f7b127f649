// Zooms and pans the pictures of the viewer: with the wheel, a double click or tap, two fingers, keys and buttons.
// `zoom` is 1 when the whole picture fits. `x` and `y` are the position of the picture's corner, as fractions of the stage.
const view = { zoom: 1, x: 0, y: 0 };
const MAX_ZOOM = 40;
const KEY_ZOOM = 1.5;
const KEY_PAN = 0.15;
// From this number of screen pixels for a pixel of the picture, the browser shows sharp pixels.
const SHARP_PIXELS = 3;

const resetView = () => Object.assign(view, { zoom: 1, x: 0, y: 0 });

// Moves the pictures and the divider. The divider stays at the position of the slider, whatever the zoom is.
function moveView() {
  const stage = $("stage");
  view.zoom = Math.min(MAX_ZOOM, Math.max(1, view.zoom));
  for (const side of ["x", "y"]) view[side] = Math.min(0, Math.max(1 - view.zoom, view[side]));
  const at = Number($("slider").value);
  const clip = Math.min(100, Math.max(0, (at - 100 * view.x) / view.zoom));
  const values = { "--at": `${at}%`, "--clip": `${clip}%`, "--zoom": view.zoom, "--x": `${view.x * 100}%`, "--y": `${view.y * 100}%` };
  for (const [name, value] of Object.entries(values)) stage.style.setProperty(name, value);
  stage.classList.toggle("is-zoomed", view.zoom > 1);
  for (const image of [$("before"), $("after")]) {
    const pixel = (stage.clientWidth * view.zoom) / (image.naturalWidth || 1);
    image.classList.toggle("is-sharp", pixel >= SHARP_PIXELS);
  }
  $("zoom-text").textContent = `${view.zoom.toFixed(view.zoom < 10 ? 1 : 0)} ×`;
  $("zoom-out").disabled = $("zoom-fit").disabled = view.zoom <= 1;
  $("zoom-in").disabled = view.zoom >= MAX_ZOOM;
}

// Changes the zoom by a factor. The point (x, y) of the stage (fractions; the middle by default) stays where it is.
function zoomBy(factor, x = 0.5, y = 0.5) {
  const zoom = Math.min(MAX_ZOOM, Math.max(1, view.zoom * factor));
  view.x = x - ((x - view.x) * zoom) / view.zoom;
  view.y = y - ((y - view.y) * zoom) / view.zoom;
  view.zoom = zoom;
  moveView();
}

// The zoom at which a pixel of the picture is a pixel of the screen, or 3 for a small picture.
function actualZoom() {
  const zoom = $("after").naturalWidth / ($("stage").clientWidth * devicePixelRatio);
  return zoom > 1.2 ? zoom : 3;
}

function placeOf(event) {
  const { left, top, width, height } = $("stage").getBoundingClientRect();
  return { x: (event.clientX - left) / width, y: (event.clientY - top) / height };
}

// Handles a key of the viewer. Returns whether the key was for zoom or pan.
function zoomByKey(event) {
  const pans = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  if (event.key === "+" || event.key === "=") zoomBy(KEY_ZOOM);
  else if (event.key === "-") zoomBy(1 / KEY_ZOOM);
  else if (event.key === "0") zoomBy(0);
  else if (event.shiftKey && pans[event.key]) {
    view.x += pans[event.key][0] * KEY_PAN;
    view.y += pans[event.key][1] * KEY_PAN;
    moveView();
  } else return false;
  event.preventDefault();
  return true;
}

// One pointer drags the divider, or the picture if it is zoomed and the pointer is not at the divider. Two pointers zoom.
const pointers = new Map();
const DIVIDER_PX = 18;
let isDividerHeld = false;

function pointerDown(event) {
  const { x } = placeOf(event);
  pointers.set(event.pointerId, event);
  const distance = Math.abs(x - Number($("slider").value) / 100) * $("stage").clientWidth;
  isDividerHeld = !$("slider").disabled && (view.zoom === 1 || distance <= DIVIDER_PX);
  // With two fingers, no finger holds the divider.
  if (pointers.size > 1) isDividerHeld = false;
  else $("stage").setPointerCapture(event.pointerId);
  // A finger may be the first of two, so that it moves the divider only when it moves.
  if (isDividerHeld && event.pointerType !== "touch") moveDivider(event);
}

function pointerMove(event) {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  pointers.set(event.pointerId, event);
  if (pointers.size === 2) pinch(before, event);
  else if (isDividerHeld) moveDivider(event);
  else if (view.zoom > 1) {
    const [from, to] = [placeOf(before), placeOf(event)];
    view.x += to.x - from.x;
    view.y += to.y - from.y;
    moveView();
  }
}

function pinch(before, event) {
  const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
  const distance = (pointer) => Math.hypot(pointer.clientX - other.clientX, pointer.clientY - other.clientY) || 1;
  const [a, b] = [placeOf(event), placeOf(other)];
  zoomBy(distance(event) / distance(before), (a.x + b.x) / 2, (a.y + b.y) / 2);
}

function moveDivider(event) {
  $("slider").value = String(placeOf(event).x * 100);
  moveView();
}

function startZoom() {
  const stage = $("stage");
  $("slider").addEventListener("input", moveView);
  stage.addEventListener("pointerdown", pointerDown);
  stage.addEventListener("pointermove", pointerMove);
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, (event) => pointers.delete(event.pointerId));
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const { x, y } = placeOf(event);
    zoomBy(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.002)), x, y);
  }, { passive: false });
  stage.addEventListener("dblclick", (event) => {
    const { x, y } = placeOf(event);
    zoomBy(view.zoom > 1 ? 0 : actualZoom(), x, y);
  });
  $("zoom-in").addEventListener("click", () => zoomBy(KEY_ZOOM));
  $("zoom-out").addEventListener("click", () => zoomBy(1 / KEY_ZOOM));
  $("zoom-fit").addEventListener("click", () => zoomBy(0));
  new ResizeObserver(moveView).observe(stage);
}
