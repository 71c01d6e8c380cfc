// The list of events and decisions, and the what-if table.

function eventList(container) {
  const rows = [
    ...data.events.map(([t, name, vm, text]) => ({ t, vm: vm ?? "", what: name.replaceAll("_", " "), text, bad: isBad(name), kind: "event" })),
    ...data.decisions.map(([t, reason, actions, problem]) => ({
      t, vm: "", what: actions || "no action", text: [reason, problem].filter((part) => part).join("; "), bad: Boolean(problem), kind: "decision" })),
  ].sort((one, other) => one.t - other.t);
  const body = html("tbody");
  for (const row of rows) {
    const jump = html("button", { type: "button" }, clock(row.t));
    jump.addEventListener("click", () => showTime(row.t));
    row.line = html("tr", { class: row.bad ? "bad" : null },
      html("td", {}, jump), html("td", {}, row.kind === "decision" ? "policy" : row.vm), html("td", {}, row.what), html("td", {}, row.text));
    body.append(row.line);
  }
  const head = html("tr", {}, ...["Time", "Machine", "What", "Details"].map((name) => html("th", { scope: "col" }, name)));
  const list = html("div", { id: "list", tabindex: "0", role: "region", "aria-label": "Events and decisions" },
    html("table", {}, html("thead", {}, head), body));
  container.append(filters(rows), list, leftOut());
  let current = null;
  watchers.push((index) => {
    let found = null;
    for (const row of rows) {
      if (row.t > times[index] + 1e-9) break;
      if (!row.line.hidden) found = row;
    }
    if (found === current) return;
    current?.line.removeAttribute("aria-current");
    current = found;
    const between = found?.kind === "decision" && found.text ? "; " : " ";
    document.getElementById("now").textContent = found ? `${found.vm || "policy"}: ${found.what}${between}${found.text}`.trim() : "";
    if (!found) return;
    found.line.setAttribute("aria-current", "true");
    // Only the list scrolls, never the page.
    list.scrollTop = Math.max(0, found.line.offsetTop - list.clientHeight / 2);
  });
}

function filters(rows) {
  const machines = html("select", {}, html("option", { value: "" }, "all machines"),
    ...data.vms.map((vm) => html("option", { value: vm.name }, vm.name)));
  const kinds = html("select", {}, html("option", { value: "" }, "events and decisions"),
    html("option", { value: "event" }, "events only"), html("option", { value: "decision" }, "decisions only"));
  const apply = () => {
    for (const row of rows) {
      const isOther = (machines.value && row.vm !== machines.value) || (kinds.value && row.kind !== kinds.value);
      row.line.hidden = Boolean(isOther);
    }
    show(moment.index);
  };
  machines.addEventListener("change", apply);
  kinds.addEventListener("change", apply);
  return html("div", { class: "tools" }, html("label", { class: "quiet" }, "Of ", machines), html("label", { class: "quiet" }, "Show ", kinds));
}

function leftOut() {
  const names = Object.entries(data.left_out).map(([name, count]) => `${count} ${name.replaceAll("_", " ")}`);
  return html("p", { class: "quiet" }, names.length ? `Not in this list, but in events.jsonl: ${names.join(", ")}.` : "");
}

function whatIf(container) {
  const { columns, rows } = data.compare;
  const first = rows[0];
  const head = html("tr", {}, html("th", { scope: "col" }, "Variant"), ...columns.map((name) => html("th", { scope: "col" }, name)));
  const body = rows.map((row, number) => html("tr", {}, html("th", { scope: "row" }, row.variant),
    ...row.cells.map(([mean, deviation, differs], at) => {
      const base = first.cells[at][0];
      const change = number && base ? `${mean < base ? "−" : "+"}${Math.abs((100 * (mean - base)) / base).toFixed(0)} %` : "";
      const value = row.seeds > 1 ? `${short(mean)} ± ${short(deviation, 2)}` : short(mean);
      return html("td", {}, value, html("small", { class: differs ? "differs" : null }, `${change}${differs ? " *" : ""}`));
    })));
  const seeds = Math.max(...rows.map((row) => row.seeds));
  const note = seeds > 1
    ? `${seeds} seeds each, mean ± standard deviation; less is better. A star: differs from the first by more than the spread over the seeds.`
    : "One run each; less is better.";
  container.append(html("table", {}, html("thead", {}, head), html("tbody", {}, ...body)), html("p", { class: "quiet" }, note));
}

function short(value, digits = 3) {
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(digits)));
}
