// The picture of all paths, and what a pointer does there.
const SVG = "http://www.w3.org/2000/svg";
const canvas = find("canvas");
const REACH = 9; // screen pixels

function shape(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  parent.appendChild(made);
  return made;
}

function paintCanvas() {
  const [width, height] = state.canvas, unit = width / Math.max(canvas.clientWidth || 400, 1);
  canvas.replaceChildren();
  canvas.setAttribute("viewBox", "0 0 " + width + " " + height);
  canvas.style.aspectRatio = width + " / " + height;
  canvas.style.maxWidth = "calc(60vh * " + width / height + ")";
  if (state.image && firstFrame) {
    shape("image", { href: firstFrame, width, height, preserveAspectRatio: "none" }, canvas);
  }
  for (let i = 1; i < 4; i++) {
    const line = { stroke: "#ddd", "stroke-width": unit };
    shape("line", { x1: (width * i) / 4, x2: (width * i) / 4, y1: 0, y2: height, ...line }, canvas);
    shape("line", { y1: (height * i) / 4, y2: (height * i) / 4, x1: 0, x2: width, ...line }, canvas);
  }
  state.entities.forEach((entity, index) => {
    if (index !== state.active) paintPath(entity, index, unit);
  });
  if (active()) {
    paintPath(active(), state.active, unit);
    paintPoints(active(), unit);
  }
  paintPlaces(unit);
}

function paintPath(entity, index, unit) {
  entity.points.slice(1).forEach((b, i) => {
    const a = entity.points[i];
    shape("line", { x1: a.x, y1: a.y, x2: b.x, y2: b.y, stroke: colorOf(index),
      "stroke-width": (index === state.active ? 3.5 : 2) * unit, "stroke-linecap": "round",
      "stroke-dasharray": entity.hidden[i + 1] ? 5 * unit + " " + 5 * unit : "none" }, canvas);
  });
  const first = entity.points[0];
  if (first && index !== state.active) {
    shape("circle", { cx: first.x, cy: first.y, r: 4 * unit, fill: colorOf(index) }, canvas);
  }
}

function paintPoints(entity, unit) {
  entity.points.forEach((point, index) => {
    const chosen = index === state.point;
    const dot = shape("circle", { cx: point.x, cy: point.y, r: 6 * unit, tabindex: 0, role: "button",
      fill: chosen ? "#222" : "white", stroke: colorOf(state.active), "stroke-width": 2 * unit,
      "data-point": index, "data-key": "point" + index, "aria-label": "Point " + (index + 1) + " of " + entity.word }, canvas);
    dot.addEventListener("focus", () => {
      if (state.point === index) return;
      state.point = index;
      keepFocus(paintTimeline);
    });
    const next = entity.points[index + 1];
    if (next && next.x === point.x && next.y === point.y) return; // the last one there is named
    let first = index;
    while (first && entity.points[first - 1].x === point.x && entity.points[first - 1].y === point.y) first--;
    const label = shape("text", { x: point.x + 8 * unit, y: point.y - 7 * unit,
      "font-size": 11 * unit, fill: "#333" }, canvas);
    label.textContent = first < index ? first + 1 + "-" + (index + 1) : index + 1;
  });
}

function paintPlaces(unit) { // where each entity is in the frame that is shown
  tracks.forEach((track, index) => {
    const entity = state.entities[index];
    if (!track || !entity || !entity.points.length) return;
    const frame = Math.min(state.frame, track.positions.length - 1);
    if (!track.visible[frame]) return;
    const [x, y] = track.positions[frame];
    shape("circle", { cx: x * state.canvas[0], cy: y * state.canvas[1], r: 9 * unit, "fill-opacity": 0.45,
      fill: colorOf(index), "pointer-events": "none", class: "place" }, canvas);
  });
}

function place(event) { // of a pointer, in canvas units, kept inside
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(canvas.getScreenCTM().inverse());
  return [clamp(at.x, 0, state.canvas[0]), clamp(at.y, 0, state.canvas[1])];
}

function reach() { // canvas units
  return (REACH * state.canvas[0]) / Math.max(canvas.clientWidth, 1);
}

function nearest(entity, x, y) { // the nearest place on a path
  let best = { distance: Infinity };
  entity.points.forEach((a, segment) => {
    const b = entity.points[segment + 1] || a, dx = b.x - a.x, dy = b.y - a.y;
    const length = dx * dx + dy * dy;
    const share = length ? clamp(((x - a.x) * dx + (y - a.y) * dy) / length, 0, 1) : 0;
    const distance = Math.hypot(a.x + share * dx - x, a.y + share * dy - y);
    if (distance < best.distance) best = { distance, segment, share };
  });
  return best;
}

function selectAt(x, y) { // clicking again selects the path below
  const under = state.entities.map((entity, index) => index)
    .filter((index) => nearest(state.entities[index], x, y).distance <= reach());
  if (!under.length) { state.point = -1; return; }
  const before = under.indexOf(state.active);
  state.active = under[(before + 1) % under.length];
  state.point = -1;
}

let gesture = null; // what a pressed pointer is doing
canvas.addEventListener("pointerdown", (event) => {
  if (event.button || gesture) return;
  const [x, y] = place(event), point = event.target.dataset && event.target.dataset.point;
  canvas.setPointerCapture(event.pointerId);
  canvas.focus({ preventScroll: true });
  if (point !== undefined && active()) {
    gesture = { kind: "move", moved: false, again: state.point === Number(point), x, y };
    state.point = Number(point);
  } else if (state.tool === "select") {
    gesture = null;
    selectAt(x, y);
  } else if (!active()) {
    say("Click a word of the prompt first: a path belongs to an entity.");
    gesture = null;
  } else {
    gesture = { kind: "draw", way: [[x, y]] };
  }
  if (gesture) gesture.pointer = event.pointerId;
  paint();
});

canvas.addEventListener("pointermove", (event) => {
  if (!gesture || gesture.pointer !== event.pointerId) return;
  const [x, y] = place(event);
  if (gesture.kind === "move") {
    const point = active().points[state.point];
    if (!gesture.moved && Math.hypot(point.x - x, point.y - y) < reach() / 3) return;
    gesture.moved = true;
    point.x = x;
    point.y = y;
    paintCanvas();
    return;
  }
  const [lastX, lastY] = gesture.way[gesture.way.length - 1];
  if (Math.hypot(x - lastX, y - lastY) < reach() / 3) return;
  gesture.way.push([x, y]);
  const unit = state.canvas[0] / canvas.clientWidth;
  shape("line", { x1: lastX, y1: lastY, x2: x, y2: y, stroke: colorOf(state.active),
    "stroke-width": 2 * unit }, canvas);
});

function finishGesture(event) {
  const done = gesture;
  if (!done || done.pointer !== event.pointerId) return;
  gesture = null;
  if (done.again && !done.moved && state.tool === "select") selectAt(done.x, done.y);
  if (done.kind === "draw") addPoints(active(), simplified(done.way, reach() / 3));
  remember();
  paint();
}
canvas.addEventListener("pointerup", finishGesture);
canvas.addEventListener("pointercancel", () => {
  if (!gesture) return;
  gesture = null;
  load(JSON.parse(past[past.length - 1])); // as it was before
  paint();
});

canvas.addEventListener("dblclick", (event) => { // inserts a point into the path
  const entity = active();
  if (!entity || state.tool !== "select" || entity.points.length < 2) return;
  const [x, y] = place(event), near = nearest(entity, x, y);
  if (near.distance > reach() || near.segment > entity.points.length - 2) return;
  insertPoint(entity, near.segment, x, y, near.share);
  remember();
});

canvas.addEventListener("keydown", (event) => {
  if (gesture) return;
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const entity = active(), point = entity && entity.points[state.point];
  if (arrows[event.key] && point) {
    const step = (event.shiftKey ? 10 : 1) * (state.canvas[0] / 256);
    point.x = clamp(point.x + step * arrows[event.key][0], 0, state.canvas[0]);
    point.y = clamp(point.y + step * arrows[event.key][1], 0, state.canvas[1]);
    remember();
  } else if (event.key === "Enter" && entity && state.tool === "draw") {
    addPoints(entity, [[state.canvas[0] / 2, state.canvas[1] / 2]]);
    remember();
  } else {
    return;
  }
  event.preventDefault();
  const dot = canvas.querySelector('[data-point="' + state.point + '"]');
  if (dot) dot.focus();
});
