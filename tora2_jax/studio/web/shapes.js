// Shapes to begin with, and the times of points.
const SHAPES = {
  "stand still": () => [[0.5, 0.5]],
  "line": () => [[0.15, 0.5], [0.85, 0.5]],
  "circle": () => along(16, (u) => [0.5 + 0.33 * Math.cos(2 * Math.PI * u),
    0.5 + 0.33 * Math.sin(2 * Math.PI * u)]),
  "spiral": () => along(24, (u) => [0.5 + 0.38 * u * Math.cos(4 * Math.PI * u),
    0.5 + 0.38 * u * Math.sin(4 * Math.PI * u)]),
  "wave": () => along(20, (u) => [0.12 + 0.76 * u, 0.5 + 0.22 * Math.sin(4 * Math.PI * u)]),
  "bounce": () => along(24, (u) => [0.12 + 0.76 * u, 0.8 - 0.5 * Math.abs(Math.sin(3 * Math.PI * u))]),
};

function along(count, shape) {
  return Array.from({ length: count + 1 }, (_, index) => shape(index / count));
}

function useShape(name) {
  const entity = active();
  if (!entity || !SHAPES[name]) return;
  entity.points = SHAPES[name]().map(([x, y]) => ({
    x: x * state.canvas[0], y: y * state.canvas[1], time: 0 }));
  entity.hidden = Array(entity.points.length + 1).fill(0);
  retime(entity, "even", 0, 1);
  state.point = -1;
  remember();
}

const SPEEDS = {
  even: (u) => u,
  rise: (u) => Math.sqrt(u), // time of a way: slow at first
  fall: (u) => 1 - Math.sqrt(1 - u),
  both: (u) => Math.acos(1 - 2 * clamp(u, 0, 1)) / Math.PI,
};

function retime(entity, speed, start, end) { // by the way between points; a pause keeps its length
  const points = entity.points, count = points.length;
  if (!count) return;
  if (count === 1) { points[0].time = start; return; }
  const way = wayOf(points), rest = [0];
  for (let i = 1; i < count; i++) {
    const stays = way[i] === way[i - 1];
    rest.push(rest[i - 1] + (stays ? Math.max(points[i].time - points[i - 1].time, 0) : 0));
  }
  const whole = way[count - 1], moving = Math.max(end - start - rest[count - 1], 0.1);
  const scale = (end - start) / (moving + rest[count - 1]);
  points.forEach((point, i) => {
    const part = whole ? SPEEDS[speed](way[i] / whole) : i / (count - 1);
    point.time = start + scale * (moving * part + rest[i]);
  });
  keepRising(points);
}

function keepRising(points) {
  const least = Math.min(LEAST, 0.5 / points.length);
  for (let i = 1; i < points.length; i++) {
    points[i].time = Math.max(points[i].time, points[i - 1].time + least);
  }
  const last = points[points.length - 1];
  if (last.time <= 1) return;
  last.time = 1;
  for (let i = points.length - 2; i >= 0; i--) {
    points[i].time = Math.max(0, Math.min(points[i].time, points[i + 1].time - least));
  }
}

function wayOf(points) { // how far along a path each point is
  const way = [0];
  for (let i = 1; i < points.length; i++) {
    way.push(way[i - 1] + Math.hypot(points[i].x - points[i - 1].x, points[i].y - points[i - 1].y));
  }
  return way;
}

function addPoints(entity, added) { // at the end of the path, which then ends when it ended
  const old = entity.points, count = old.length;
  const start = count > 1 ? old[0].time : 0, end = count > 1 ? old[count - 1].time : 1;
  const last = entity.hidden[count] || 0;
  entity.points = old.concat(added.map(([x, y]) => ({ x, y, time: 0 })));
  entity.hidden = entity.hidden.slice(0, count).concat(Array(added.length).fill(0), last);
  state.point = entity.points.length - 1;
  if (count < 2) { retime(entity, "even", start, end); return; }
  // The times that were set keep their proportions; the new part takes its share of the way.
  const way = wayOf(entity.points), share = way[count - 1] / (way[way.length - 1] || 1) || 0.5;
  const turn = start + (end - start) * share;
  for (const point of old) point.time = start + ((point.time - start) * (turn - start)) / (end - start || 1);
  for (let i = count; i < entity.points.length; i++) {
    const rest = (way[i] - way[count - 1]) / (way[way.length - 1] - way[count - 1] || 1);
    entity.points[i].time = turn + (end - turn) * rest;
  }
  keepRising(entity.points);
}

function setSpeed(speed) { // a long straight way needs points in between to be uneven
  const entity = active();
  if (!entity || entity.points.length < 2) { say("Draw a path first."); return; }
  const start = entity.points[0].time, end = entity.points[entity.points.length - 1].time;
  const whole = wayOf(entity.points).pop();
  for (let i = entity.points.length - 2; speed !== "even" && i >= 0; i--) {
    const a = entity.points[i], b = entity.points[i + 1];
    const parts = Math.ceil((12 * Math.hypot(b.x - a.x, b.y - a.y)) / (whole || 1));
    const inner = along(parts, (u) => ({ x: a.x + u * (b.x - a.x), y: a.y + u * (b.y - a.y),
      time: a.time + u * (b.time - a.time) })).slice(1, -1);
    entity.points.splice(i + 1, 0, ...inner);
    entity.hidden.splice(i + 1, 0, ...Array(inner.length).fill(entity.hidden[i + 1]));
  }
  retime(entity, speed, start, end);
  state.point = -1;
  remember();
}

function removePoint() {
  const entity = active(), at = state.point;
  if (!entity || at < 0 || at >= entity.points.length) return;
  entity.points.splice(at, 1);
  entity.hidden.splice(at, 2, Math.max(entity.hidden[at], entity.hidden[at + 1]));
  state.point = Math.min(at, entity.points.length - 1);
  remember();
}

function insertPoint(entity, segment, x, y, share) { // between points segment and segment + 1
  const a = entity.points[segment], b = entity.points[segment + 1];
  entity.points.splice(segment + 1, 0, { x, y, time: a.time + share * (b.time - a.time) });
  entity.hidden.splice(segment + 1, 0, entity.hidden[segment + 1]);
  keepRising(entity.points);
  state.point = segment + 1;
}

function pauseAtPoint() {
  const entity = active(), index = state.point;
  if (!entity || index < 0 || index >= entity.points.length) {
    say("Select the point at which the entity rests first.");
    return;
  }
  const points = entity.points, { x, y, time } = points[index];
  const start = points[0].time, end = points.length > 1 ? points[points.length - 1].time : 1;
  const middle = index < points.length - 1;
  const rest = Math.min(0.2, (middle ? end - time : end - start) / 2);
  if (middle) {
    for (const point of points.slice(index + 1)) {
      point.time = time + rest + ((point.time - time) * (end - time - rest)) / (end - time || 1);
    }
  } else {
    for (const point of points) point.time = start + ((point.time - start) * (end - start - rest)) / (end - start || 1);
  }
  points.splice(index + 1, 0, { x, y, time: points[index].time + rest });
  entity.hidden.splice(index + 1, 0, 0);
  keepRising(points);
  remember();
}

function simplified(points, tolerance) { // Ramer, Douglas and Peucker
  if (points.length < 3) return points;
  const [ax, ay] = points[0], [bx, by] = points[points.length - 1];
  const length = Math.hypot(bx - ax, by - ay);
  let far = 0, at = 0;
  points.forEach(([x, y], index) => {
    const distance = length ? Math.abs((bx - ax) * (ay - y) - (ax - x) * (by - ay)) / length
      : Math.hypot(x - ax, y - ay);
    if (distance > far) { far = distance; at = index; }
  });
  if (far <= tolerance) return [points[0], points[points.length - 1]];
  return simplified(points.slice(0, at + 1), tolerance).slice(0, -1)
    .concat(simplified(points.slice(at), tolerance));
}
