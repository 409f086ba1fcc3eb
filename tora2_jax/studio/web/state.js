// What is drawn: the state, its way to a request and back, undo and redo.
const COLORS = ["#d7263d", "#1b6ec2", "#2a9134", "#e07a00", "#7b2d8b", "#00807a"];
const HIDDEN = 16; // nulls in a row; they hide an entity nearly from one point to the next
const LEAST = 0.002; // of the clip, between two points
const UNDONE = 200;

const state = {
  prompt: "", negative: null, canvas: [256, 256], fit: "stretch", image: null,
  sizes: { frames: 17, width: 64, height: 64, fps: 8 },
  entities: [], active: -1, point: -1, tool: "draw", frame: 0,
};
const seen = {}; // name of a picture -> what the encoders see of it, as a data URL
const limits = { entities: 3, references: 4, image: false, ...(props.limits || {}) };
let tracks = []; // of the last check: for each entity positions and visibility by frame
const past = [], future = [];

const active = () => state.entities[state.active];
const colorOf = (index) => COLORS[index % COLORS.length];
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const rounded = (value) => Math.round(value * 1e4) / 1e4;

function trajectoryOf(entity) {
  if (!entity.points.length) return null;
  const entries = [];
  entity.points.forEach((point, index) => {
    entries.push(...Array(entity.hidden[index]).fill(null));
    const [x, y] = [point.x, point.y].map((value, axis) => Math.min(rounded(value), state.canvas[axis]));
    entries.push([x, y, rounded(point.time)]);
  });
  return entries.concat(Array(entity.hidden[entity.points.length]).fill(null));
}

function pointsOf(trajectory) {
  const points = [], hidden = [0]; // hidden: how many nulls stand before each point, and at the end
  const last = Math.max(trajectory.length - 1, 1);
  trajectory.forEach((entry, index) => {
    if (entry === null) { hidden[points.length] += 1; return; }
    points.push({ x: entry[0], y: entry[1], time: entry.length > 2 ? entry[2] : index / last });
    hidden[points.length] = 0;
  });
  return { points, hidden };
}

function drawing() {
  return {
    prompt: state.prompt, ...(state.negative ? { negative_prompt: state.negative } : {}),
    ...state.sizes, canvas: state.canvas, image: state.image, fit: state.fit,
    entities: state.entities.map((entity) => ({
      word: entity.word, kind: entity.kind, images: entity.images, trajectory: trajectoryOf(entity),
    })),
  };
}

function load(value) {
  state.prompt = value.prompt || "";
  state.negative = value.negative_prompt || null;
  state.canvas = value.canvas || [256, 256];
  state.fit = value.fit || "stretch";
  state.image = value.image || null;
  for (const name in state.sizes) if (value[name]) state.sizes[name] = value[name];
  state.entities = (value.entities || []).map((entity) => ({
    word: entity.word, kind: entity.kind || "auto", images: entity.images || [],
    ...pointsOf(entity.trajectory || []),
  }));
  state.active = clamp(state.active, state.entities.length ? 0 : -1, state.entities.length - 1);
  state.point = -1;
}

let lastSent = "", typing = { field: null, time: 0 };
function remember(field = null) { // after each change: it can be undone, and the page knows it
  const text = JSON.stringify(drawing()), now = Date.now();
  if (text === past[past.length - 1]) return;
  // What is typed in one go is undone in one go.
  const goesOn = field && field === typing.field && now - typing.time < 1500 && past.length > 1;
  typing = { field, time: now };
  if (goesOn) past.pop();
  past.push(text);
  if (past.length > UNDONE) past.shift();
  future.length = 0;
  told = [];
  send(text);
}

function send(text) {
  lastSent = text;
  props.value = JSON.parse(text);
  checkSoon();
  paint();
}

function undo() {
  if (past.length < 2) return;
  future.push(past.pop());
  load(JSON.parse(past[past.length - 1]));
  send(past[past.length - 1]);
}

function redo() {
  if (!future.length) return;
  past.push(future.pop());
  load(JSON.parse(past[past.length - 1]));
  send(past[past.length - 1]);
}
