// One bar per entity: when its path reaches each point, where it rests, where it is hidden.
const timeline = find("timeline");

function paintTimeline() {
  timeline.replaceChildren();
  state.entities.forEach((entity, index) => {
    if (!entity.points.length) return;
    const bar = tag("div", "bar", timeline), name = tag("span", "name", bar), track = tag("div", "track", bar);
    name.textContent = entity.word;
    paintParts(entity, index, track);
    entity.points.forEach((point, at) => paintMark(entity, index, at, track));
  });
  const slider = find("frame");
  slider.max = Math.max(state.sizes.frames - 1, 0);
  slider.value = state.frame;
  showClock();
}

function paintParts(entity, index, track) {
  const times = [0, ...entity.points.map((point) => point.time), 1];
  for (let gap = 0; gap < times.length - 1; gap++) {
    if (times[gap + 1] - times[gap] < LEAST) continue;
    const a = entity.points[gap - 1], b = entity.points[gap];
    const rests = a && b ? a.x === b.x && a.y === b.y : true;
    const part = tag("button", "part" + (rests ? " rest" : "") + (entity.hidden[gap] ? " hidden" : ""), track);
    part.type = "button";
    part.dataset.key = "part" + index + "-" + gap;
    part.style.left = 100 * times[gap] + "%";
    part.style.width = 100 * (times[gap + 1] - times[gap]) + "%";
    part.style.background = colorOf(index);
    const where = !a ? "before its first point" : !b ? "after its last point"
      : "between points " + gap + " and " + (gap + 1);
    part.title = entity.word + " is " + (entity.hidden[gap] ? "hidden " : rests ? "at rest " : "moving ") + where
      + "; click to " + (entity.hidden[gap] ? "show" : "hide") + " it there";
    part.setAttribute("aria-label", part.title);
    part.addEventListener("click", () => {
      entity.hidden[gap] = entity.hidden[gap] ? 0 : HIDDEN;
      state.active = index;
      remember();
    });
  }
}

function paintMark(entity, index, at, track) {
  const point = entity.points[at];
  const mark = tag("button", "mark" + (index === state.active && at === state.point ? " chosen" : ""), track);
  mark.type = "button";
  mark.dataset.key = "mark" + index + "-" + at;
  mark.style.left = 100 * point.time + "%";
  mark.style.borderColor = colorOf(index);
  mark.title = "Point " + (at + 1) + " of " + entity.word + " at " + Math.round(100 * point.time) + " % of the clip";
  mark.setAttribute("aria-label", mark.title);
  mark.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    state.active = index;
    state.point = at;
    const before = entity.points.map((one) => one.time), box = track.getBoundingClientRect();
    const move = (moved) => {
      moveInTime(entity, at, before, clamp((moved.clientX - box.left) / box.width, 0, 1));
      mark.style.left = 100 * point.time + "%";
    };
    const done = (ended) => {
      window.removeEventListener("pointermove", move);
      window.removeEventListener("pointerup", done);
      window.removeEventListener("pointercancel", done);
      if (ended.type === "pointercancel") entity.points.forEach((one, i) => { one.time = before[i]; });
      remember();
      paint();
    };
    window.addEventListener("pointermove", move);
    window.addEventListener("pointerup", done);
    window.addEventListener("pointercancel", done);
  });
  mark.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.01, ArrowRight: 0.01 }[event.key];
    if (!step) return;
    event.preventDefault();
    const before = entity.points.map((one) => one.time);
    state.active = index;
    state.point = at;
    moveInTime(entity, at, before, clamp(point.time + step, 0, 1));
    remember();
  });
}

function moveInTime(entity, at, before, time) { // the ends take the whole path along
  const points = entity.points, last = points.length - 1;
  if (at > 0 && at < last) {
    points[at].time = clamp(time, before[at - 1] + LEAST, before[at + 1] - LEAST);
    return;
  }
  if (!last) { points[0].time = time; return; }
  const start = at === 0 ? Math.max(0, Math.min(time, before[last] - 0.05)) : before[0];
  const end = at === 0 ? before[last] : Math.max(time, before[0] + 0.05);
  points.forEach((point, index) => {
    point.time = start + ((before[index] - before[0]) * (end - start)) / (before[last] - before[0]);
  });
  keepRising(points);
}

function showClock() {
  find("clock").textContent = "frame " + (state.frame + 1) + " of " + state.sizes.frames;
}

let playing = null;
function play() {
  const button = root.querySelector('[data-action="play"]');
  if (playing) {
    clearInterval(playing);
    playing = null;
    button.textContent = "Play";
    return;
  }
  button.textContent = "Stop playing";
  playing = setInterval(() => {
    state.frame = (state.frame + 1) % state.sizes.frames;
    if (!gesture) keepFocus(paintCanvas);
    find("frame").value = state.frame;
    showClock();
  }, 1000 / clamp(state.sizes.fps, 1, 60));
}
