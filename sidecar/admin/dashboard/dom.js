// Elements, made so that nothing which comes from the network can become markup: text is only ever
// text, and attributes are set by name.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) set(element, name, value);
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined) element.append(child);  // a string becomes a text node
  }
  return element;
}

export function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export function byId(id) {
  return document.getElementById(id);
}

// Set an attribute, or take it away; what has not changed is not touched, so nothing is drawn anew.
export function set(element, name, value) {
  if (value === null || value === undefined || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else {
    const text = value === true ? "" : String(value);
    if (element.getAttribute(name) !== text) element.setAttribute(name, text);
  }
}

export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Elements by key, kept while their key is there: focus and hovering survive each second's news.
export class Keyed {
  constructor(parent) {
    this.parent = parent;
    this.byKey = new Map();
  }

  // items: [key, ...] in order; make(key) an element for a new one; update(element, key) each time.
  show(keys, make, update) {
    const wanted = new Set(keys);
    for (const [key, element] of this.byKey) {
      if (!wanted.has(key)) {
        element.remove();
        this.byKey.delete(key);
      }
    }
    let before = null;
    for (const key of keys) {
      let element = this.byKey.get(key);
      if (!element) {
        element = make(key);
        this.byKey.set(key, element);
      }
      const next = before ? before.nextSibling : this.parent.firstChild;
      // Moving an element takes the focus away: only what is at the wrong place is moved.
      if (element !== next) this.parent.insertBefore(element, next);
      before = element;
      update(element, key);
    }
  }
}

// A table whose cells are texts, or {text, state, note}; heads of rows come first.
export function table(caption, heads, rows) {
  const cell = (value, index) => {
    const { text, state, note } = typeof value === "object" && value !== null ? value : { text: value };
    const inner = state ? el("span", { class: "badge", "data-state": state }, String(text)) : String(text ?? "–");
    return el(index === 0 ? "th" : "td", index === 0 ? { scope: "row" } : {}, inner,
      note ? el("span", { class: "note" }, String(note)) : null);
  };
  return el("table", {},
    el("caption", { class: "hidden" }, caption),
    el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell)))));
}

// Replace what stands there if it says something else: a reader's selection is not lost each second.
export function replace(parent, children) {
  const fresh = el("div", {}, children);
  if (fresh.textContent === parent.textContent && fresh.querySelectorAll("*").length === parent.querySelectorAll("*").length
      && states(fresh) === states(parent)) return;
  parent.replaceChildren(...fresh.childNodes);
}

function states(element) {
  return [...element.querySelectorAll("[data-state]")].map((one) => one.dataset.state).join();
}
