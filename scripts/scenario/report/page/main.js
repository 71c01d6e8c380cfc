// Puts the page together, and lets time be moved.

function header() {
  document.getElementById("title").textContent = data.title;
  document.getElementById("sentence").textContent = data.sentence;
  const { policy, seed, virtual, seconds } = data.facts;
  document.getElementById("facts").textContent =
    `${virtual ? "Virtual run" : "Real run"} · policy ${policy} · seed ${seed} · ${clock(seconds)}${data.facts.interrupted ? " · interrupted" : ""}`;
  const score = data.score, tiles = document.getElementById("score");
  const part = Math.round((100 * score.peak_bytes) / (data.budget * 4096));
  const tile = (name, value, note = "", bad = false) =>
    tiles.append(html("div", { class: bad ? "bad" : null }, html("dt", {}, name), html("dd", {}, value, html("small", {}, note))));
  tile("Host memory over time", decimals(score.host_gib_minutes, 3), "GiB·minutes");
  tile("Peak", bytes(score.peak_bytes), `${part} % of ${size(data.budget)}`);
  tile("Given back, needed again", bytes(score.refaulted_bytes), "refaulted");
  tile("Programs waited", `${decimals(score.stall_seconds, 2)} s`, "for memory");
  tile("Out of memory", String(score.oom_events), score.killed_vms ? `${score.killed_vms} killed` : "events", score.oom_events > 0);
  tile("Control actions", String(score.control_actions), "of the policy");
  tile("CPU to reclaim", `${decimals(score.reclaim_cpu_seconds, 2)} s`, "of the host");
  if (score.corrupted_pages) tile("Corrupted", String(score.corrupted_pages), "pages", true);
}

/** A number with so many decimals, none if it is large. */
function decimals(value, count) {
  return value < 1000 ? value.toFixed(count) : Math.round(value).toLocaleString("en");
}

function hostChart() {
  const layers = data.vms.map((vm, at) => ({ name: `v${at % 8}`, label: vm.name, values: vm.resident }));
  if (data.others) layers.push({ name: "others", label: `${data.others.count} others`, values: data.others.resident });
  stackChart(document.getElementById("host"), {
    layers, height: 260, labelled: true, label: "Host memory by machine over time",
    limit: { label: `budget ${size(data.budget)}`, value: data.budget },
  });
  const pressure = data.host.pressure;
  if (!pressure.some((value) => value)) return;
  const told = html("p", { class: "quiet pressure" });
  document.getElementById("host").parentElement.append(told);
  watchers.push((index) => {
    told.textContent = pressure[index] === null ? "" : `Memory pressure at this moment: ${short(pressure[index])} %.`;
  });
}

function ledgerChart() {
  const sums = {};
  for (const cause of Object.keys(CAUSES)) {
    const parts = data.vms.map((vm) => vm.causes[cause]).filter((values) => values);
    if (parts.length) sums[cause] = times.map((_, at) => parts.reduce((sum, values) => sum + values[at], 0));
  }
  const section = document.getElementById("ledger-section");
  if (Object.keys(sums).length === 0) { section.hidden = true; return; }
  stackChart(document.getElementById("ledger"), { layers: causeLayers(sums), height: 180, label: "Free memory that is still backed, by cause" });
}

function timebar() {
  const scrubber = document.getElementById("scrubber"), output = document.getElementById("clock");
  scrubber.max = data.duration;
  scrubber.step = "any";
  watchers.push((index) => {
    scrubber.value = times[index];
    output.textContent = `${clock(times[index])} / ${clock(data.duration)}`;
    scrubber.setAttribute("aria-valuetext", clock(times[index]));
  });
  scrubber.addEventListener("input", () => showTime(Number(scrubber.value)));
  scrubber.addEventListener("change", remember);
  document.addEventListener("keydown", (event) => {
    // What scrolls sideways by these keys, or chooses by them, keeps them.
    const isTaken = event.target.closest("select, .wide");
    if (isTaken || event.ctrlKey || event.altKey || event.metaKey) return;
    const by = event.shiftKey ? 10 : 1;
    const far = Math.max(1, Math.round(times.length / 10));
    const isScrubber = event.target === scrubber;
    const keys = { ArrowLeft: -by, ArrowRight: by, Home: -last, End: last };
    if (isScrubber) Object.assign(keys, { ArrowDown: -by, ArrowUp: by, PageDown: -far, PageUp: far });
    if (event.key in keys) {
      event.preventDefault();
      show(moment.index + keys[event.key]);
      remember();
    } else if (event.key === " " && !event.target.closest("button, a, [tabindex='0']")) {
      event.preventDefault();
      playing.toggle();
    }
  });
}

/** The address of the page has the moment, so it can be linked to. */
function remember() {
  try {
    history.replaceState(null, "", `#t=${times[moment.index]}`);
  } catch {
    // Too many in a short time, or a page that has no address of its own.
  }
}

const playing = {
  frame: 0,
  SECONDS: 20,
  toggle() {
    if (this.frame) return this.stop();
    if (moment.index === last) show(0);
    let before = performance.now(), t = times[moment.index];
    const step = (now) => {
      t += ((now - before) / 1000 / this.SECONDS) * data.duration;
      before = now;
      const index = indexAt(t);
      if (index !== moment.index) show(index);
      if (moment.index === last) return this.stop();
      this.frame = requestAnimationFrame(step);
    };
    this.frame = requestAnimationFrame(step);
    this.draw("Pause", "M3 1h4v14H3zM9 1h4v14H9z");
  },
  stop() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.draw("Play", "M3 1l11 7-11 7z");
  },
  draw(label, path) {
    const button = document.getElementById("play");
    button.setAttribute("aria-label", label);
    button.querySelector("path").setAttribute("d", path);
  },
};

function start() {
  header();
  timebar();
  document.getElementById("play").addEventListener("click", () => playing.toggle());
  hostChart();
  marksChart(document.getElementById("marks"));
  ledgerChart();
  const machines = document.getElementById("machines"), waiting = [];
  for (const vm of data.vms) {
    const card = machineCard(vm);
    machines.append(card);
    waiting.push(() => fillCard(card, vm));
  }
  if (data.others) {
    const note = document.getElementById("not-shown");
    note.hidden = false;
    note.textContent = `The ${data.vms.length} that the host held most for; ${data.others.count} others are in samples.csv.`;
  }
  eventList(document.getElementById("events"));
  if (data.compare) whatIf(document.getElementById("what-if"));
  else document.getElementById("what-if-section").hidden = true;
  const wanted = /^#t=([0-9.]+)$/.exec(location.hash);
  show(wanted ? indexAt(Number(wanted[1])) : busiest());
  performance.mark("interactive");
  later(waiting);
}

/** A moment when the host held about as much as ever, in the middle of such moments: more to see than at the end. */
function busiest() {
  const most = Math.max(...data.host.used);
  const full = times.map((_, at) => at).filter((at) => data.host.used[at] >= 0.97 * most);
  return full[full.length >> 1];
}

/** Do the work piece by piece, so that the page answers in between. */
function later(waiting) {
  if (waiting.length === 0) {
    performance.mark("complete");
    return;
  }
  setTimeout(() => {
    const known = watchers.length;
    waiting.shift()();
    for (const watcher of watchers.slice(known)) watcher(moment.index);
    later(waiting);
  });
}

start();
