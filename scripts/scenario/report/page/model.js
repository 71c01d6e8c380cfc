"use strict";
// What the page shows: the data, and the moment that it shows. Memory is in pages of 4 KiB, times in seconds.

performance.mark("begin");
const data = JSON.parse(document.getElementById("data").textContent);
const times = data.times;
const last = times.length - 1;

const LAYERS = ["used", "balloon", "free", "reported"];
const LEVELS = 8;

/** The functions that are called when another moment is shown, with its index. */
const watchers = [];
const moment = { index: last };

function show(index) {
  moment.index = Math.min(Math.max(index, 0), last);
  for (const watcher of watchers) watcher(moment.index);
}

function showTime(t) {
  show(indexAt(t));
}

/** The index of the last moment that is not after `t`. */
function indexAt(t) {
  let low = 0, high = last;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (times[middle] <= t + 1e-9) low = middle; else high = middle - 1;
  }
  return low;
}

/** The map of a machine that was taken nearest to `t`; null while it has no memory. */
function mapAt(machine, t) {
  if (!machine.maps || !hasMemory(machine, t)) return null;
  let found = null;
  for (const round of machine.maps.rounds) {
    if (found && Math.abs(round[0] - t) > Math.abs(found[0] - t)) break;
    found = round;
  }
  return found;
}

function stateAt(machine, t) {
  let state = "waiting";
  for (const [since, name] of machine.states) {
    if (since > t + 1e-9) break;
    state = name;
  }
  return state;
}

function hasMemory(machine, t) {
  return !["waiting", "oom-killed"].includes(stateAt(machine, t));
}

/** The levels of a layer's text: a letter, a to i, with the number of cells after it if it is not one. */
function decode(text) {
  const levels = [];
  for (const [, letter, count] of text.matchAll(/([a-i])([0-9]*)/g)) {
    const level = letter.charCodeAt(0) - 97;
    for (let left = count ? Number(count) : 1; left > 0; left--) levels.push(level);
  }
  return levels;
}

/** A size as people read it, from pages. */
function size(pages) {
  return bytes(pages * 4096);
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit++; }
  // Three digits; a round number without the zeros.
  return `${Number(count.toPrecision(count >= 100 ? 4 : 3))} ${units[unit]}`;
}

/** A time on the axis: seconds, or h:mm:ss in a long run. */
function clock(t) {
  if (data.duration < 120) return `${t.toFixed(data.duration < 20 ? 2 : 1)} s`;
  const whole = Math.round(t), seconds = String(whole % 60).padStart(2, "0");
  const minutes = Math.floor(whole / 60) % 60, hours = Math.floor(whole / 3600);
  return hours || data.duration >= 3600
    ? `${hours}:${String(minutes).padStart(2, "0")}:${seconds}` : `${minutes}:${seconds}`;
}

function isBad(name) {
  return ["oom_killed", "oom-killed", "failed", "out_of_memory", "corrupted", "queue_stopped", "refused"].includes(name);
}
