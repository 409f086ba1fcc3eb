// The prompt, its words, and a card for each entity with its reference images.
const WORD = /[\p{L}\p{N}_]+(?:['’-][\p{L}\p{N}_]+)*/gu;

function words() { // of the prompt, a repeated one with its number, counted as a request counts
  return Array.from(state.prompt.matchAll(WORD)).slice(0, 200).map((match) => {
    const word = match[0], plain = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    const same = new RegExp("(?<![\\p{L}\\p{N}_])" + plain + "(?![\\p{L}\\p{N}_])", "giu");
    const number = Array.from(state.prompt.matchAll(same)).filter((one) => one.index <= match.index).length;
    return number > 1 ? word + "#" + number : word;
  });
}

function paintChips() {
  const chips = find("chips");
  chips.replaceChildren();
  for (const word of words()) {
    const index = state.entities.findIndex((entity) => entity.word.toLowerCase() === word.toLowerCase());
    const chip = tag("button", "chip", chips);
    chip.type = "button";
    chip.textContent = word;
    chip.dataset.word = word;
    chip.dataset.key = "chip" + word;
    if (index >= 0) {
      chip.style.background = colorOf(index);
      chip.style.color = "white";
    }
    chip.title = index >= 0 ? "Select this entity" : "Add it as an entity";
    chip.addEventListener("click", () => {
      if (index >= 0) { choose(index); return; }
      if (state.entities.length >= limits.entities) {
        say("This model takes at most " + limits.entities + " entities; remove one first.");
        return;
      }
      state.entities.push({ word, kind: "auto", images: [], points: [], hidden: [0] });
      choose(state.entities.length - 1);
      remember();
    });
  }
}

function choose(index) {
  if (state.active !== index) state.point = -1;
  state.active = index;
  paint();
}

function paintCards() {
  const cards = find("cards");
  cards.replaceChildren();
  state.entities.forEach((entity, index) => paintCard(entity, index, cards));
  if (!state.entities.length) tag("div", "hint", cards).textContent = "No entities yet.";
}

function paintCard(entity, index, cards) {
  const card = tag("div", "card" + (index === state.active ? " active" : ""), cards);
  card.dataset.entity = index;
  card.style.borderColor = colorOf(index);
  card.addEventListener("click", (event) => { if (event.target === card) choose(index); });
  const head = tag("div", "row", card);
  const name = action(entity.word, head, () => choose(index), "name" + index);
  name.style.fontWeight = "bold";
  const kind = tag("select", "", head);
  kind.dataset.key = "kind" + index;
  kind.setAttribute("aria-label", "Kind of " + entity.word);
  for (const option of ["auto", "human", "object"]) kind.add(new Option(option, option));
  kind.value = entity.kind;
  kind.addEventListener("change", () => { entity.kind = kind.value; remember(); });
  action("Remove", head, () => {
    state.entities.splice(index, 1);
    state.active = Math.min(state.active, state.entities.length - 1);
    state.point = -1;
    remember();
  }, "remove" + index);
  paintPictures(entity, index, card);
  tag("div", "problem", card).dataset.problem = "entities[" + index + "]";
}

function paintPictures(entity, index, card) {
  const box = tag("div", "row pictures", card);
  entity.images.forEach((picture, at) => {
    const figure = tag("figure", "", box), image = tag("img", "", figure);
    if (seen[picture]) image.src = seen[picture];
    image.alt = "Reference " + (at + 1) + " of " + entity.word;
    image.title = "What the encoders see of it";
    action("×", figure, () => { entity.images.splice(at, 1); remember(); }, "picture" + index + "-" + at).setAttribute(
      "aria-label", "Remove reference " + (at + 1) + " of " + entity.word);
  });
  const input = tag("input", "", box);
  input.type = "file";
  input.multiple = true;
  input.accept = "image/*";
  input.setAttribute("aria-label", "Reference images of " + entity.word);
  input.addEventListener("change", () => addPictures(index, input.files));
  box.addEventListener("dragover", (event) => { event.preventDefault(); box.classList.add("over"); });
  box.addEventListener("dragleave", () => box.classList.remove("over"));
  box.addEventListener("drop", (event) => {
    event.preventDefault();
    box.classList.remove("over");
    addPictures(index, event.dataTransfer.files);
  });
}

async function addPictures(index, files) {
  const word = state.entities[index].word, more = [];
  for (const file of files) {
    const name = await addPicture(file, "entities[" + index + "]");
    const entity = state.entities.find((one) => one.word === word); // it may have changed meanwhile
    if (!entity) return;
    if (!name) continue;
    if (entity.images.length < limits.references) entity.images.push(name);
    else more.push(file.name);
    state.active = state.entities.indexOf(entity);
    remember();
  }
  if (more.length) {
    say("This model takes at most " + limits.references + " references of an entity; left out: " + more.join(", "));
  }
}

async function addPicture(file, field) { // gives it to the page; its name there, or null
  if (file.size > 24e6) {
    tell([{ field, text: file.name + ": larger than 24 MB; make it smaller." }]);
    return null;
  }
  const given = await ask("add_picture", { name: file.name, data: await base64(file) });
  if (given.problems) { tell(given.problems.map((text) => ({ field, text }))); paint(); return null; }
  seen[given.name] = given.seen;
  return given.name;
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result).split(",", 2)[1] || "");
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
