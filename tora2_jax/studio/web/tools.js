// Small helpers of the other files, which share this scope; see `editor.py`.
const root = element.querySelector(".editor");
const find = (role) => root.querySelector('[data-role="' + role + '"]');

function tag(name, kind, parent) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  parent.appendChild(made);
  return made;
}

function action(text, parent, use, key) {
  const button = tag("button", "", parent);
  button.type = "button";
  button.textContent = text;
  if (key) button.dataset.key = key;
  button.addEventListener("click", (event) => { event.stopPropagation(); use(); });
  return button;
}
