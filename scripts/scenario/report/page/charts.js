// Charts over time. They share the axis, the cursor, and the pointer that moves it.

/** A chart of areas on top of each other, with lines over them.
 *
 * `layers` and `lines` are {name, label, values}, from the bottom up; `limit` is {label, value}.
 */
function stackChart(container, { layers, lines = [], limit = null, height = 190, label, labelled = false }) {
  const tops = times.map((_, at) => layers.reduce((sum, layer) => sum + layer.values[at], 0));
  const most = Math.max(1, limit ? limit.value : 0, ...tops, ...lines.flatMap((line) => line.values)) * 1.06;
  const plot = html("div");
  container.append(plot);
  let cursor = null, place = null;
  redrawn(container, (width) => {
    place = frame(width);
    const bottom = height - 22, top = 6;
    const y = (pages) => bottom - (pages / most) * (bottom - top);
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
    for (const tick of sizeTicks(most, 4)) {
      picture.append(
        svg("line", { class: "grid", x1: place.left, x2: place.right, y1: y(tick), y2: y(tick) }),
        svg("text", { x: place.left - 6, y: y(tick) + 4, "text-anchor": "end" }, size(tick)),
      );
    }
    let below = times.map(() => 0);
    const texts = [];
    for (const layer of layers) {
      const above = below.map((value, at) => value + layer.values[at]);
      picture.append(svg("path", { class: "area", fill: colour(layer.name), d: band(place, y, below, above) },
        svg("title", {}, layer.label)));
      if (labelled) texts.push(bandLabel(place, y, below, above, layer.label));
      below = above;
    }
    for (const line of lines) {
      picture.append(svg("path", { class: "curve", stroke: colour(line.name), d: curve(place, y, line.values),
        "stroke-dasharray": line.dashes ?? null }));
    }
    if (limit) {
      picture.append(
        svg("line", { class: "budget-line", x1: place.left, x2: place.right, y1: y(limit.value), y2: y(limit.value) }),
        svg("text", { class: "budget", x: place.right - 2, y: y(limit.value) - 5, "text-anchor": "end" }, limit.label),
      );
    }
    picture.append(...texts.filter((text) => text));
    timeAxis(picture, place, bottom);
    cursor = svg("line", { class: "cursor", y1: top, y2: bottom });
    picture.append(cursor);
    plot.replaceChildren(picture);
    move(moment.index);
  });
  function move(index) {
    if (!cursor) return;
    const x = place.x(times[index]);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
  }
  watchers.push(move);
  pointed(container, () => place);
  const entries = [...layers].reverse().map((layer) => [layer.name, layer.label, (at) => size(layer.values[at])]);
  const over = lines.map((line) => [line.name, line.label, (at) => size(line.values[at]), true]);
  container.after(legend([...over, ...entries]));
}

function band(place, y, below, above) {
  const forth = above.map((value, at) => `${place.x(times[at]).toFixed(1)} ${y(value).toFixed(1)}`);
  const back = below.map((value, at) => `${place.x(times[at]).toFixed(1)} ${y(value).toFixed(1)}`).reverse();
  return `M${forth.join("L")}L${back.join("L")}Z`;
}

function curve(place, y, values) {
  return `M${values.map((value, at) => `${place.x(times[at]).toFixed(1)} ${y(value).toFixed(1)}`).join("L")}`;
}

/** The label of a band where it is thick enough for as long as the label needs; null where it is not. */
function bandLabel(place, y, below, above, label) {
  const needed = label.length * 7.2 + 10;
  let best = null;
  for (let begin = 0; begin < times.length; begin += Math.max(1, times.length >> 7)) {
    let top = Infinity, bottom = -Infinity;
    let highest = -Infinity, lowest = Infinity;
    const from = place.x(times[begin]);
    let at = begin;
    for (; at < times.length && place.x(times[at]) <= from + needed; at++) {
      highest = Math.max(highest, y(above[at]));
      lowest = Math.min(lowest, y(below[at]));
    }
    if (at >= times.length && place.x(times[last]) < from + needed) break;
    top = highest; bottom = lowest;
    if (!best || bottom - top > best.room) best = { room: bottom - top, x: from + needed / 2, y: (top + bottom) / 2 };
  }
  if (!best || best.room < 15) return null;
  return svg("text", { class: "on", x: best.x, y: best.y + 4, "text-anchor": "middle" }, label);
}

/** Have the pointer on `container` move the cursor: a click, or a drag. */
function pointed(container, place) {
  const go = (event) => {
    const at = place();
    if (!at) return;
    const x = event.clientX - container.getBoundingClientRect().left;
    showTime(((x - at.left) / (at.right - at.left)) * data.duration);
  };
  container.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    go(event);
    if (event.pointerType !== "touch") container.setPointerCapture(event.pointerId);
  });
  container.addEventListener("pointermove", (event) => { if (event.buttons & 1) go(event); });
}

const SHAPES = {
  start: "M-4 -5L5 0L-4 5Z",
  end: "M-4 -4H4V4H-4Z",
  bad: "M-5 -3L-3 -5L0 -2L3 -5L5 -3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0Z",
  decision: "M0 -5L5 0L0 5L-5 0Z",
  other: "M-1.5 -5H1.5V5H-1.5Z",
};

function kindOf(name) {
  if (isBad(name)) return "bad";
  return name === "started" ? "start" : name === "finished" ? "end" : "other";
}

/** One line for each machine: from its start to its end, with its phases and events; and one for the policy. */
function marksChart(container) {
  const plot = html("div");
  container.append(plot);
  const asked = data.decisions.filter((decision) => decision[2] || decision[3]);
  // A machine that fails also ends: what went wrong is drawn over the rest.
  const noted = data.events.filter((event) => event[1] !== "phase").sort((one, other) => isBad(one[1]) - isBad(other[1]));
  const rows = [...data.vms.map((vm) => vm.name), ...(asked.length ? ["policy"] : [])];
  const ROW = 24;
  let cursor = null, place = null;
  redrawn(container, (width) => {
    place = frame(width);
    const bottom = 4 + rows.length * ROW;
    const label = `Events of ${data.vms.length} machines over time; the list below has them as text`;
    const picture = svg("svg", { viewBox: `0 0 ${width} ${bottom + 22}`, height: bottom + 22, role: "img", "aria-label": label });
    data.vms.forEach((vm, row) => picture.append(...lifeline(vm, place, 4 + row * ROW, ROW)));
    rows.forEach((name, row) => {
      // Names of many machines differ at their end.
      const fits = Math.floor((place.left - 11) / 6.9);
      const short = name.length > fits + 1 ? `…${name.slice(-fits)}` : name;
      picture.append(svg("text", { class: "name", x: place.left - 9, y: 4 + row * ROW + ROW / 2 + 4, "text-anchor": "end" },
        short, svg("title", {}, name)));
    });
    for (const [t, name, vm, text] of noted) {
      const row = rows.indexOf(vm);
      if (row >= 0) picture.append(markAt(kindOf(name), place.x(t), 4 + row * ROW + ROW / 2, `${clock(t)} ${name} ${text}`));
    }
    for (const [t, reason, actions, problem] of asked) {
      const y = 4 + (rows.length - 1) * ROW + ROW / 2;
      picture.append(markAt(problem ? "bad" : "decision", place.x(t), y, `${clock(t)} ${actions}: ${reason} ${problem}`));
    }
    timeAxis(picture, place, bottom);
    cursor = svg("line", { class: "cursor", y1: 0, y2: bottom });
    picture.append(cursor);
    plot.replaceChildren(picture);
    move(moment.index);
  });
  function move(index) {
    if (!cursor) return;
    const x = place.x(times[index]);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
  }
  watchers.push(move);
  pointed(container, () => place);
  const labels = { start: "started", end: "finished", bad: "killed or failed", decision: "the policy acts", other: "other events" };
  const used = new Set([...noted.map((event) => kindOf(event[1])), ...(asked.length ? ["decision"] : [])]);
  for (const [kind, text] of Object.entries(labels).filter(([kind]) => used.has(kind))) {
    const glyph = svg("svg", { viewBox: "-7 -7 14 14", "aria-hidden": "true" }, svg("path", { class: `mark ${kind}`, d: SHAPES[kind] }));
    document.getElementById("marks-legend").append(html("li", {}, glyph, text));
  }
}

function markAt(kind, x, y, title) {
  return svg("path", { class: `mark ${kind}`, d: SHAPES[kind], transform: `translate(${x.toFixed(1)} ${y})` }, svg("title", {}, title));
}

function lifeline(vm, place, top, row) {
  const parts = [];
  const begin = vm.states.find(([, state]) => state !== "waiting");
  if (!begin) return parts;
  const killed = vm.states.find(([, state]) => state === "oom-killed");
  const started = data.events.find((event) => event[1] === "started" && event[2] === vm.name);
  const from = place.x(started ? started[0] : begin[0]), to = place.x(killed ? killed[0] : data.duration);
  parts.push(svg("rect", { class: "life", x: from, y: top + 3, width: Math.max(1, to - from), height: row - 6, rx: 3 }));
  const phases = data.events.filter((event) => event[1] === "phase" && event[2] === vm.name);
  phases.forEach(([t, , , name], at) => {
    const x = place.x(t);
    const end = at + 1 < phases.length ? place.x(phases[at + 1][0]) : place.x(vm.finished_at ?? (killed ? killed[0] : data.duration));
    const width = Math.max(0.5, end - x);
    parts.push(svg("rect", { class: at % 2 ? "phase odd" : "phase", x, y: top + 3, width, height: row - 6 },
      svg("title", {}, `${clock(t)} ${vm.name}: ${name}`)));
    if (width > name.length * 6 + 16) parts.push(svg("text", { class: "phase-name", x: x + 9, y: top + row / 2 + 4 }, name));
  });
  return parts;
}
