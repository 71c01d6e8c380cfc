// Elements, colours, and the two axes.

const SVG = "http://www.w3.org/2000/svg";

/** A new element with attributes and children; text is never taken for markup. */
function html(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function colour(name) {
  return `var(--${name})`;
}

function cssValue(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Where the plot is in a chart `width` wide: the same in all of them, so that one cursor goes through all. */
function frame(width) {
  const left = parseFloat(cssValue("--left")), right = parseFloat(cssValue("--right"));
  return { left, right: width - right, x: (t) => left + (t / data.duration) * (width - right - left) };
}

/** Round numbers of bytes from 0 to `most` pages, at most `count` of them. */
function sizeTicks(most, count) {
  const raw = Math.max(1, most / count);
  let step = 1;
  while (step < raw) step *= 2;
  const ticks = [];
  for (let at = 0; at <= most; at += step) ticks.push(at);
  return ticks;
}

function timeTicks(width) {
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400];
  const count = Math.max(2, Math.floor(width / 90));
  const step = steps.find((one) => data.duration / one <= count) ?? data.duration / count;
  const ticks = [];
  for (let at = 0; at <= data.duration + 1e-9; at += step) ticks.push(at);
  return ticks;
}

function tickLabel(t) {
  if (data.duration < 120) return `${Number(t.toFixed(1))} s`;
  return clock(t);
}

/** The axis of time below a plot that ends at `bottom`. */
function timeAxis(target, place, bottom) {
  for (const t of timeTicks(place.right - place.left)) {
    const x = place.x(t);
    const anchor = x > place.right - 24 ? "end" : t === 0 ? "start" : "middle";
    target.append(
      svg("line", { class: "axis", x1: x, x2: x, y1: bottom, y2: bottom + 4 }),
      svg("text", { x, y: bottom + 15, "text-anchor": anchor }, tickLabel(t)),
    );
  }
}

/** Draw `draw(width)` into `container` now and whenever its width changes. */
function redrawn(container, draw) {
  let width = 0;
  const again = () => {
    const now = Math.floor(container.clientWidth);
    if (now === width || now === 0) return;
    width = now;
    draw(width);
  };
  again();
  new ResizeObserver(again).observe(container);
}

function swatch(name, thin = false) {
  return html("i", { class: thin ? "thin" : null, style: `background:${colour(name)}`, "aria-hidden": "true" });
}

/** A legend whose entries have a value that changes with time. `entries` are [colour, label, value(index), thin]. */
function legend(entries) {
  const values = entries.map(() => html("b"));
  const list = html("ul", { class: "legend" });
  entries.forEach(([name, label, , thin], at) => list.append(html("li", {}, swatch(name, thin), `${label} `, values[at])));
  watchers.push((index) => entries.forEach(([, , value], at) => { values[at].textContent = value(index); }));
  return list;
}
