// Elements from data. Text goes through textContent alone: nothing that was recorded is ever parsed as HTML.

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; strings among the children become text. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, given] of Object.entries(attributes)) {
    if (given === true) made.setAttribute(name, "");
    else if (given !== false && given !== null && given !== undefined) made.setAttribute(name, given);
  }
  made.append(...children);
  return made;
}

/** Change the text only where it differs, so that a selection survives and nothing is laid out again for nothing. */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Make the children of a parent exactly these, moving as few as possible. */
export function setChildren(parent, children) {
  children.forEach((child, index) => {
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
  while (parent.children.length > children.length) parent.lastElementChild.remove();
}
