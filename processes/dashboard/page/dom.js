// Helpers to make and change elements.

export const byId = (id) => document.getElementById(id);

/** A new element with text (null: none) and attributes. */
export function make(tag, text, attributes = {}) {
  return fill(document.createElement(tag), text, attributes);
}

/** As `make`, for the elements of a picture. */
export function draw(tag, attributes) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), null, attributes);
}

function fill(node, text, attributes) {
  if (text !== null) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** Changes a text only if it is another one. So a screen reader does not repeat it, and a button keeps its focus. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Changes an attribute only if its value is another one; `null` removes it. */
export function mark(node, name, value) {
  if (node.getAttribute(name) === value) return;
  if (value === null) node.removeAttribute(name);
  else node.setAttribute(name, value);
}
