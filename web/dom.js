// Building the document. Text from the server enters it as text nodes only: nothing here takes markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  add(element, children);
  return element;
}

// Appends nodes and texts; nested lists are flattened, and null, undefined and false are left out.
export function add(element, children) {
  for (const child of children) {
    if (child === undefined || child === null || child === false) continue;
    if (Array.isArray(child)) add(element, child);
    else element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export function replace(element, ...children) {
  element.replaceChildren();
  return add(element, children);
}

// As `replace`, for what is drawn again while somebody may be in it: the focus goes to what took the place of what
// had it.
export function redraw(element, ...children) {
  const had = element.contains(document.activeElement) ? document.activeElement : null;
  const name = had && nameOf(had);
  replace(element, ...children);
  if (name === null) return;
  const heir = [...element.querySelectorAll("a, button, summary, [tabindex]")].find((each) => nameOf(each) === name);
  heir?.focus({ preventScroll: true });
}
const nameOf = (element) => `${element.tagName} ${element.getAttribute("aria-label") ?? element.getAttribute("href") ?? element.textContent}`;

export function icon(name, extra = "") {
  const use = s("use", { href: `#i-${name}` });
  return s("svg", { class: `icon ${extra}`, "aria-hidden": "true", focusable: "false" }, use);
}

// Says something to screen readers, without moving the focus. The same words twice are said twice.
let odd = false;
export function announce(text, loud = false) {
  odd = !odd;
  const region = document.getElementById(loud ? "loud" : "polite");
  if (region) region.textContent = text + (odd ? "\u00a0" : "");
}

// A button that copies a text; it says so for two seconds.
export function copyButton(text, what = "Copy") {
  const label = h("span", {}, what);
  const button = h("button", { type: "button", class: "button small copy", "aria-label": `${what}: ${text}` }, icon("copy"), label);
  let timer = 0;
  button.addEventListener("click", async () => {
    const done = await copy(text);
    clearTimeout(timer);
    button.replaceChildren(icon(done ? "check" : "close"), h("span", {}, done ? "Copied" : "Select it"));
    announce(done ? "Copied" : "Copying is not allowed here; select the text");
    timer = setTimeout(() => button.replaceChildren(icon("copy"), h("span", {}, what)), 2000);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // No clipboard outside a secure context: plain HTTP on another host is one.
    const area = h("textarea", { class: "sr", "aria-hidden": "true", value: text });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

// A command to run elsewhere, with its copy button.
export function command(text) {
  return h("div", { class: "command" }, h("code", {}, text), copyButton(text));
}

export function skeleton(lines, kind = "line") {
  return h("div", { class: "skeletons", "aria-hidden": "true" }, Array.from({ length: lines }, () => h("div", { class: `skeleton ${kind}` })));
}

export function empty(title, text, ...more) {
  return h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), text && h("p", {}, text), more);
}

export function problem(error, retry) {
  const again = retry && h("button", { type: "button", class: "button", onclick: retry }, "Try again");
  return h("div", { class: "empty bad" }, h("p", { class: "empty-title" }, "This could not be loaded"), h("p", {}, error.message), again);
}

export const debounce = (wait, run) => {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...values), wait);
  };
};
