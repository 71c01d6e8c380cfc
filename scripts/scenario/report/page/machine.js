// One machine: its memory over time, what holds its free memory, and its physical memory at the moment.

const CAUSES = {
  below_order: ["v0", "smaller than the reporting order"],
  watermark: ["v1", "kept for the watermark"],
  high_residue: ["v5", "left below the high-water mark"],
  delay: ["v4", "waiting for the delay"],
  budget: ["v2", "waiting for the next pass"],
  pcp: ["v3", "on per-CPU lists"],
  poison: ["v6", "poisoned"],
  inhibited: ["v7", "reporting is off"],
  refused: ["bad", "refused by the host"],
  unacknowledged: ["others", "not yet acknowledged"],
  unknown: ["backed", "unknown"],
};

function causeLayers(causes) {
  return Object.entries(causes).map(([cause, values]) => ({ name: CAUSES[cause][0], label: CAUSES[cause][1], values }));
}

function machineCard(vm) {
  const state = html("span", { class: "state" });
  const card = html("article", { class: "machine", "aria-label": vm.name },
    html("div", { class: "head" }, html("h3", {}, vm.name), state, html("span", { class: "quiet" }, factsOf(vm))));
  const reason = html("p", { class: "quiet" }, vm.reason ? `${vm.state}: ${vm.reason}` : "");
  card.append(reason);
  watchers.push((index) => {
    state.textContent = stateAt(vm, times[index]);
    // Why it ended is known from then on; its end may come after the last sample but one.
    reason.hidden = !vm.reason || (state.textContent !== vm.state && index < times.length - 1);
    state.className = isBad(state.textContent) ? "state bad" : "state";
  });
  return card;
}

function factsOf(vm) {
  const reporter = vm.reporter ? `reporter ${vm.reporter}` : "no reporter";
  const parts = [size(vm.memory), vm.kind, vm.kind === "linux" ? "the kernel's own reporter" : reporter, vm.work];
  parts.push(`peak ${size(vm.peak)}`, `${vm.gib_minutes.toFixed(3)} GiB·min`);
  if (vm.refaulted) parts.push(`${size(vm.refaulted)} refaulted`);
  if (vm.stall_seconds >= 0.005) parts.push(`${vm.stall_seconds.toFixed(2)} s stalled`);
  return parts.filter((part) => part).join(" · ");
}

/** Fill the card, which is in the page by now: charts need their width. */
function fillCard(card, vm) {
  const chart = html("div", { class: "chart" });
  card.append(html("h4", {}, "Memory: as the machine sees it, and what the host holds"), chart);
  const unreported = vm.free.map((free, at) => Math.max(0, free - vm.reported[at]));
  stackChart(chart, {
    label: `Memory of ${vm.name} over time`,
    height: 170,
    layers: [
      { name: "allocated", label: "in use", values: vm.allocated.map((all, at) => Math.max(0, all - vm.cache[at])) },
      { name: "cache", label: "page cache", values: vm.cache },
      { name: "balloon", label: "in the balloon", values: vm.balloon },
      { name: "free", label: "free, not reported", values: unreported },
      { name: "reported", label: "free and reported", values: vm.reported },
    ].filter((layer) => layer.values.some((value) => value)),
    lines: [{ name: "resident", label: "held by the host", values: vm.resident }],
  });
  if (Object.keys(vm.causes).length) {
    const ledger = html("div", { class: "chart" });
    card.append(html("h4", {}, "Free, but still backed: why"), ledger);
    stackChart(ledger, { label: `What holds free memory of ${vm.name}`, height: 96, layers: causeLayers(vm.causes) });
  }
  if (vm.maps) card.append(pictures(vm));
}

function pictures(vm) {
  const hasGuest = vm.maps.rounds.some((round) => round[1] !== null);
  const box = html("div", { class: "pictures" });
  const told = html("p", { class: "quiet told" });
  const views = [];
  if (hasGuest) {
    views.push(memoryPicture(vm, told, "Physical memory, as the machine uses it", guestParts,
      [["used", "in use"], ["balloon", "in the balloon"], ["free", "free, not reported"], ["reported", "free and reported"]]));
  }
  const title = hasGuest ? "The same pages, as the host backs them" : "Physical memory, as the host backs it";
  views.push(memoryPicture(vm, told, title, hasGuest ? hostParts : plainHostParts,
    hasGuest ? [["backed", "backed"], ["free", "backed, though free"], ["hole", "not backed"]] : [["backed", "backed"], ["hole", "not backed"]]));
  box.append(...views);
  if (hasGuest) box.append(blocksPicture(vm));
  // What a cell is, unless the pointer is on one.
  watchers.push(() => { told.textContent = mapFacts(vm); });
  return html("div", {}, box, told);
}

function mapFacts(vm) {
  const round = mapAt(vm, times[moment.index]);
  if (!round) return "No memory at this moment.";
  return `Maps of ${clock(round[0])}. One cell is ${size(vm.maps.cell)}, row by row from the lowest address on.`;
}

/** The layers of a map as levels, or null for one that is unknown. What is in no layer of the machine is in use. */
const decoded = new WeakMap();
function layersOf(round) {
  let found = decoded.get(round);
  if (!found) {
    const [, free, reported, balloon, resident] = round.map((text) => (typeof text === "string" ? decode(text) : null));
    found = { free, reported, balloon, resident };
    if (free) found.used = free.map((level, cell) => Math.max(0, LEVELS - level - reported[cell] - balloon[cell]));
    decoded.set(round, found);
  }
  return found;
}

function guestParts(layers, cell) {
  return LAYERS.map((name) => [name, layers[name][cell]]);
}

/** Pages in use are taken for backed first: so at least the rest is backed though it is free. */
function hostParts(layers, cell) {
  const backed = layers.resident[cell], needed = layers.used[cell];
  const spare = Math.max(0, backed - needed);
  return [["backed", backed - spare], ["free", spare]];
}

function plainHostParts(layers, cell) {
  return [["backed", layers.resident[cell]]];
}

function memoryPicture(vm, told, title, parts, names) {
  const canvas = html("canvas", { role: "img" });
  const sums = names.map(() => html("b"));
  const key = html("ul", { class: "legend" });
  names.forEach(([name, label], at) => key.append(html("li", {}, swatch(name), `${label} `, sums[at])));
  const figure = html("figure", { style: "margin:0" }, html("h4", {}, title), canvas, key);
  let drawn = null, grid = null;
  const draw = (force) => {
    const round = mapAt(vm, times[moment.index]);
    const width = Math.floor(figure.clientWidth);
    if (!width || (!force && drawn && drawn.round === round && drawn.width === width)) return;
    drawn = { round, width };
    grid = paint(canvas, width, round && layersOf(round), parts, cellCount(vm));
    const pages = round ? totals(layersOf(round), parts, names, vm) : names.map(() => 0);
    pages.forEach((count, at) => { sums[at].textContent = round ? `${Math.round((100 * count) / vm.memory)} %` : ""; });
    const said = names.map(([, label], at) => `${label} ${sums[at].textContent}`).join(", ");
    canvas.setAttribute("aria-label", round ? `${title}, ${vm.name}: ${said}` : `${title}, ${vm.name}: no memory now`);
  };
  canvas.addEventListener("pointermove", (event) => {
    const round = drawn && drawn.round;
    const cell = round && grid ? grid.cellAt(event.offsetX, event.offsetY) : -1;
    told.textContent = cell >= 0 ? cellText(vm, layersOf(round), cell) : mapFacts(vm);
  });
  canvas.addEventListener("pointerleave", () => { told.textContent = mapFacts(vm); });
  watchers.push(() => draw(false));
  new ResizeObserver(() => draw(false)).observe(figure);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(true));
  return figure;
}

function cellCount(vm) {
  return Math.ceil(vm.memory / vm.maps.cell);
}

function totals(layers, parts, names, vm) {
  const sums = Object.fromEntries(names.map(([name]) => [name, 0]));
  const cells = layers.resident.length;
  for (let cell = 0; cell < cells; cell++) {
    let rest = LEVELS;
    for (const [name, level] of parts(layers, cell)) { sums[name] += level; rest -= level; }
    if ("hole" in sums) sums.hole += rest;
  }
  return names.map(([name]) => (sums[name] / LEVELS / cells) * vm.memory);
}

function cellText(vm, layers, cell) {
  const at = cell * vm.maps.cell * 4096;
  const share = (level) => `${Math.round((100 * level) / LEVELS)} %`;
  const guest = layers.free
    ? [["in use", layers.used], ["in the balloon", layers.balloon], ["free", layers.free], ["reported", layers.reported]]
      .filter(([, levels]) => levels[cell]).map(([name, levels]) => `${name} ${share(levels[cell])}`) : [];
  return `0x${at.toString(16)}, ${bytes(vm.maps.cell * 4096)}: ${[...guest, `backed ${share(layers.resident[cell])}`].join(", ")}`;
}

/** Paint the cells row by row; each is filled from below by its parts. Returns the grid, to find a cell again. */
function paint(canvas, width, layers, parts, cells) {
  const scale = window.devicePixelRatio || 1;
  const columns = cells > 256 ? 32 : cells > 64 ? 16 : 8;
  const side = Math.max(2, Math.floor((width * scale) / columns));
  const rows = Math.ceil(cells / columns);
  const tall = Math.max(2, Math.floor(Math.min(side, (width * scale * 0.9) / rows)));
  const gap = side >= 5 ? 1 : 0;
  canvas.width = side * columns;
  canvas.height = tall * rows;
  canvas.style.aspectRatio = `${canvas.width} / ${canvas.height}`;
  const context = canvas.getContext("2d");
  const colours = Object.fromEntries([...LAYERS, "backed", "hole"].map((name) => [name, cssValue(`--${name}`)]));
  for (let cell = 0; cell < cells; cell++) {
    const x = (cell % columns) * side, y = Math.floor(cell / columns) * tall;
    const w = side - gap, h = tall - gap;
    context.fillStyle = colours.hole;
    context.fillRect(x, y, w, h);
    let level = 0;
    for (const [name, part] of layers ? parts(layers, cell) : []) {
      if (!part) continue;
      const top = Math.round((h * (LEVELS - level - part)) / LEVELS), bottom = Math.round((h * (LEVELS - level)) / LEVELS);
      context.fillStyle = colours[name];
      context.fillRect(x, y + top, w, Math.max(1, bottom - top));
      level += part;
    }
  }
  const ratio = () => canvas.width / canvas.clientWidth;
  return {
    cellAt: (x, y) => {
      const cell = Math.floor((y * ratio()) / tall) * columns + Math.min(columns - 1, Math.floor((x * ratio()) / side));
      return cell >= 0 && cell < cells ? cell : -1;
    },
  };
}

/** Free memory by the order of its blocks, with the reported part; the numbers are blocks. */
function blocksPicture(vm) {
  const figure = html("figure", { class: "blocks", style: "margin:0" }, html("h4", {}, "Free blocks by order; the bars are memory"));
  const holder = html("div", { class: "chart", style: "cursor:default" });
  figure.append(holder);
  const orders = 11, height = 232;
  const most = Math.max(1, ...vm.maps.rounds.flatMap((round) => (round[5] ?? []).map((count, order) => count << order)));
  let bars = [];
  redrawn(holder, (width) => {
    const step = width / orders, base = height - 30;
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
    bars = [];
    for (let order = 0; order < orders; order++) {
      const at = { x: order * step + 1, width: step - 3 };
      const all = svg("rect", { class: "all", ...at }), part = svg("rect", { class: "told-part", ...at });
      const count = svg("text", { x: order * step + step / 2, "text-anchor": "middle" });
      const name = svg("text", { x: order * step + step / 2, y: base + 14, "text-anchor": "middle" }, String(order));
      picture.append(all, part, count, name);
      bars.push({ all, part, count });
    }
    picture.append(svg("text", { x: 0, y: height - 3 }, "4 KiB"),
      svg("text", { x: width / 2, y: height - 3, "text-anchor": "middle" }, "order of the block"),
      svg("text", { x: width, y: height - 3, "text-anchor": "end" }, "4 MiB"),
      svg("line", { class: "axis", x1: 0, x2: width, y1: base, y2: base }));
    holder.replaceChildren(picture);
    update();
  });
  function update() {
    const round = mapAt(vm, times[moment.index]), base = height - 30, room = base - 18;
    bars.forEach(({ all, part, count }, order) => {
      const blocks = round?.[5]?.[order] ?? 0, told = round?.[6]?.[order] ?? 0;
      const high = (value) => (value ? Math.max(1, (room * (value << order)) / most) : 0);
      for (const [bar, value] of [[all, blocks], [part, told]]) {
        bar.setAttribute("height", high(value));
        bar.setAttribute("y", base - high(value));
      }
      count.textContent = blocks ? (blocks < 10000 ? blocks : `${Math.round(blocks / 1000)}k`) : "";
      count.setAttribute("y", base - high(blocks) - 4);
    });
    const said = (round?.[5] ?? []).map((count, order) => `order ${order}: ${count}, reported ${round[6][order]}`).join("; ");
    holder.firstElementChild?.setAttribute("aria-label", `Free blocks of ${vm.name}: ${said || "no memory now"}`);
  }
  watchers.push(update);
  const key = html("ul", { class: "legend" });
  key.append(html("li", {}, swatch("free"), "not reported"), html("li", {}, swatch("reported"), "reported"));
  figure.append(key);
  return figure;
}
