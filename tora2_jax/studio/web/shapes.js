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
  entity.hidden = Array(entity.points.length + 1).fill(false);
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
  const way = [0], rest = [0];
  for (let i = 1; i < count; i++) {
    const a = points[i - 1], b = points[i], length = Math.hypot(b.x - a.x, b.y - a.y);
    way.push(way[i - 1] + length);
    rest.push(rest[i - 1] + (length ? 0 : Math.max(b.time - a.time, 0)));
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
  for (let i = 1; i < points.length; i++) {
    points[i].time = Math.max(points[i].time, points[i - 1].time + LEAST);
  }
  const last = points[points.length - 1];
  if (last.time <= 1) return;
  last.time = 1;
  for (let i = points.length - 2; i >= 0; i--) {
    points[i].time = Math.max(0, Math.min(points[i].time, points[i + 1].time - LEAST));
  }
}

function addPoints(entity, added) { // at the end of the path, which then ends when it ended
  const old = entity.points, start = old.length ? old[0].time : 0;
  const end = old.length > 1 ? old[old.length - 1].time : 1;
  entity.points = old.concat(added.map(([x, y]) => ({ x, y, time: 0 })));
  entity.hidden = entity.hidden.concat(Array(added.length).fill(false)).slice(0, entity.points.length + 1);
  while (entity.hidden.length < entity.points.length + 1) entity.hidden.push(false);
  retime(entity, "even", old.length > 1 ? start : 0, end);
  state.point = entity.points.length - 1;
}

function removePoint() {
  const entity = active();
  if (!entity || state.point < 0 || state.point >= entity.points.length) return;
  entity.points.splice(state.point, 1);
  entity.hidden.splice(state.point + (state.point ? 0 : 1), 1);
  state.point = Math.min(state.point, entity.points.length - 1);
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
  const rest = Math.min(0.2, (end - start) / 2);
  if (index < points.length - 1) {
    for (const point of points.slice(index + 1)) {
      point.time = time + rest + ((point.time - time) * (end - time - rest)) / (end - time || 1);
    }
  } else {
    for (const point of points) point.time = start + ((point.time - start) * (end - start - rest)) / (end - start || 1);
  }
  points.splice(index + 1, 0, { x, y, time: points[index].time + rest });
  entity.hidden.splice(index + 1, 0, false);
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
