// Making elements. Text goes in as text only, so nothing that a model writes is ever markup.

const SVG = "http://www.w3.org/2000/svg";

/** The element of the page with this id. */
export const byId = (id) => document.getElementById(id);

/** A new element. `attributes` are attributes, but for `text`, which is its text. */
export const element = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);

/** The same in a drawing. */
export const shape = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

/** Sets an element's text if it is another one, so that nothing is announced or drawn again that did not change. */
export const setText = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};

const fill = (made, { text, ...attributes }, children) => {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
};
