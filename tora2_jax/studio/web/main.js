// Wiring: fields, keys, what the page is asked, and what it says.
const PAINTERS = [paintChips, paintCards, paintCanvas, paintTimeline, paintFields];

function paint() {
  keepFocus(() => { for (const painter of PAINTERS) painter(); });
  showProblems();
}

function keepFocus(painter) { // what is painted anew keeps the focus that it had
  const focused = document.activeElement;
  const key = focused && root.contains(focused) ? focused.dataset.key : null;
  painter();
  if (!key || root.contains(document.activeElement)) return;
  const again = root.querySelector('[data-key="' + CSS.escape(key) + '"]');
  (again || canvas).focus({ preventScroll: true });
}

function paintFields() {
  const prompt = find("prompt");
  if (prompt.value !== state.prompt) prompt.value = state.prompt;
  root.querySelectorAll("[data-size]").forEach((input) => {
    if (document.activeElement !== input) input.value = state.sizes[input.dataset.size];
  });
  root.querySelectorAll("[data-tool]").forEach((button) => {
    button.setAttribute("aria-pressed", String(button.dataset.tool === state.tool));
  });
  if (document.activeElement !== find("negative")) find("negative").value = state.negative || "";
  find("fit").value = state.fit;
  find("first").style.display = limits.image || state.image ? "" : "none";
  find("remove").style.display = state.image ? "" : "none";
}

async function ask(name, given) {
  try {
    return (await server[name](given)) || { problems: ["the studio gave no answer"] };
  } catch (error) {
    return { problems: ["the studio cannot be reached or refuses: " + (error.message || error)] };
  }
}

let waiting = null, asked = 0;
function checkSoon() {
  clearTimeout(waiting);
  waiting = setTimeout(check, 200);
}

async function check() {
  const number = ++asked, answer = await ask("check", drawing());
  if (number !== asked) return; // of an older drawing
  tracks = answer.tracks || [];
  problems = (answer.problems || []).map((one) => (typeof one === "string" ? { field: "", text: one } : one));
  find("notes").textContent = (answer.notes || []).join("\n");
  if (answer.image || !state.image) firstFrame = answer.image || null;
  if (!gesture) keepFocus(paintCanvas);
  showProblems();
  root.dataset.checked = String(number);
}

let problems = [], told = []; // of the drawing; of what was just done
let firstFrame = null; // as the model sees it
function tell(more) {
  told = told.concat(more);
  showProblems();
}

function say(text) {
  tell([{ field: "", text }]);
}

function showProblems() { // each beside its field; what has no field at the bottom
  const places = Array.from(root.querySelectorAll("[data-problem]"));
  for (const one of places) one.textContent = "";
  for (const { field, text } of told.concat(problems)) {
    const place = places.find((one) => one.dataset.problem && field.startsWith(one.dataset.problem))
      || places.find((one) => !one.dataset.problem);
    const known = place.dataset.problem ? field.slice(place.dataset.problem.length).replace(/^\./, "") : field;
    place.textContent += (place.textContent ? "\n" : "") + (known ? known + ": " : "") + text;
  }
}

async function lookUpPictures() { // what the encoders see of pictures that were loaded
  const names = state.entities.flatMap((entity) => entity.images).filter((name) => !seen[name]);
  if (!names.length) return;
  Object.assign(seen, (await ask("pictures", names)).seen || {});
  paint();
}

function receive() { // a drawing from the page
  const text = JSON.stringify(props.value || {});
  if (text === lastSent) return;
  load(props.value || {});
  future.length = 0;
  const own = JSON.stringify(drawing());
  if (own !== past[past.length - 1]) past.push(own); // what was there can be had back
  lastSent = own;
  if (own !== text) props.value = JSON.parse(own); // there is one form of a drawing
  problems = told = [];
  paint();
  checkSoon();
  lookUpPictures();
}

async function readPaths(file) {
  const answer = await ask("read_paths", { name: file.name, data: await base64(file), canvas: state.canvas });
  if (answer.problems) { answer.problems.forEach(say); return; }
  if (!state.entities.length) { say("Click a word of the prompt first: a path belongs to an entity."); return; }
  const first = answer.paths.length > 1 ? 0 : Math.max(state.active, 0);
  answer.paths.slice(0, state.entities.length - first).forEach((path, index) => {
    Object.assign(state.entities[first + index], pointsOf(path));
  });
  if (answer.paths.length > state.entities.length - first) {
    say(file.name + " holds " + answer.paths.length + " paths; those beyond the entities were left out.");
  }
  remember();
}

async function savePaths(form) {
  const answer = await ask("write_paths", { drawing: drawing(), form });
  if (answer.problems) { answer.problems.forEach(say); return; }
  for (const { name, text } of answer.files) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}

function setSize(name, value) {
  if (!Number.isFinite(value) || value < 1) { paintFields(); return; }
  state.sizes[name] = Math.round(value);
  state.frame = Math.min(state.frame, state.sizes.frames - 1);
  if (name === "width" || name === "height") {
    const high = rounded((state.canvas[0] * state.sizes.height) / state.sizes.width);
    for (const entity of state.entities) {
      for (const point of entity.points) point.y *= high / state.canvas[1];
    }
    state.canvas = [state.canvas[0], high];
  }
  remember();
}

const ACTIONS = {
  undo, redo, play, pause: pauseAtPoint, delete: removePoint,
  clear: () => {
    if (!active()) return;
    Object.assign(active(), { points: [], hidden: [0] });
    state.point = -1;
    remember();
  },
};

root.addEventListener("click", (event) => {
  const button = event.target.closest("[data-tool], [data-action]");
  if (!button || !root.contains(button)) return;
  told = [];
  showProblems();
  if (button.dataset.tool) { state.tool = button.dataset.tool; paint(); }
  else ACTIONS[button.dataset.action]();
});

root.addEventListener("keydown", (event) => {
  if (gesture || /^(TEXTAREA|INPUT|SELECT)$/.test(event.target.tagName)) return;
  const key = event.key.toLowerCase(), control = event.ctrlKey || event.metaKey;
  if (control && key === "z") (event.shiftKey ? redo : undo)();
  else if (control && key === "y") redo();
  else if (control) return;
  else if (key === "delete" || key === "backspace") removePoint();
  else if (key === "d" || key === "v") { state.tool = key === "d" ? "draw" : "select"; paint(); }
  else if (key === "p") pauseAtPoint();
  else if (key === " " && event.target.tagName !== "BUTTON") play();
  else return;
  event.preventDefault();
});

find("prompt").addEventListener("input", (event) => {
  state.prompt = event.target.value;
  remember("prompt");
});
find("negative").addEventListener("input", (event) => {
  state.negative = event.target.value.trim() ? event.target.value : null;
  remember("negative");
});
find("fit").addEventListener("change", (event) => { state.fit = event.target.value; remember(); });
find("frame").addEventListener("input", (event) => {
  state.frame = Number(event.target.value);
  paintCanvas();
  showClock();
});
root.querySelectorAll("[data-size]").forEach((input) => {
  input.addEventListener("change", () => setSize(input.dataset.size, Number(input.value)));
});
function chooseOnce(role, use) { // a list that does something and goes back to its first line
  const list = find(role);
  list.addEventListener("change", () => {
    const value = list.value;
    list.value = "";
    if (value) use(value);
  });
}
find("shape").add(new Option("choose...", ""));
for (const name in SHAPES) find("shape").add(new Option(name, name));
chooseOnce("shape", useShape);
chooseOnce("format", savePaths);
chooseOnce("speed", setSpeed);
find("paths").addEventListener("change", (event) => {
  if (event.target.files.length) readPaths(event.target.files[0]);
  event.target.value = "";
});
find("image").addEventListener("change", async (event) => {
  if (!event.target.files.length) return;
  const name = await addPicture(event.target.files[0], "");
  event.target.value = "";
  if (name) { state.image = name; remember(); }
});
root.drawing = drawing; // for tests
find("remove").addEventListener("click", () => { state.image = null; firstFrame = null; remember(); });
new ResizeObserver(() => { if (!gesture) keepFocus(paintCanvas); }).observe(canvas);
watch("value", receive);
receive();
