"use strict";
// Arrays as grids of cells, and the cells that a step lights up. page.js, which follows in the same
// script, has the state of the page: `launch`, `block`, `state`, `cells`, `lit`, `owned`.

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}
const colour = (warp) => "c" + (warp % 8);
const plural = (n, one, many) => n + " " + (n === 1 ? one : many);

// --- grids

// The last axis is a run of neighbours in memory, the one before it a row of runs, the third from
// the right the rows of a panel; the rest number the panels. Cells follow each other as in memory.
function layout(shape) {
  const n = shape.length, last = shape[n - 1] ?? 1;
  if (n <= 1) return { rows: Math.ceil(last / 32), runs: 4, run: 8 };
  if (n === 2) {
    const beside = shape[0] > 12 && last <= 16 ? Math.floor(32 / last) : 1;
    return { rows: Math.ceil(shape[0] / beside), runs: beside, run: last };
  }
  return { rows: shape[n - 3], runs: shape[n - 2], run: last, heads: true };
}

function indexOf(shape, flat) {
  const index = [];
  for (const side of [...shape].reverse()) { index.unshift(flat % side); flat = Math.floor(flat / side); }
  return index;
}

function drawArray(array, number) {
  const box = make("section", "array");
  const title = make("h2");
  title.append(make("span", "index", array.name + "(" + array.shape.join(", ") + ")"));
  title.append(make("small", "", array.dtype +
    (array.space === "shared" ? ", shared by the threads of a block" : ", global memory")));
  const scroll = make("div", "scroll"), panels = make("div", "panels");
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "application");
  scroll.setAttribute("aria-label", "Cells of " + array.name + ": arrow keys walk from one to the next");
  const size = array.shape.reduce((a, b) => a * b, 1), mine = [];
  const { rows, runs, run, heads } = layout(array.shape), each = rows * runs * run;
  for (let first = 0; first < size; first += each) {
    const panel = make("div", "panel"), leading = array.shape.slice(0, -3);
    if (heads && leading.length && size > each) {
      const at = indexOf(leading, first / each);
      panel.append(make("p", "index", array.name + "[" + at.join(", ") + "]"));
    }
    if (heads) {
      const line = make("div", "line heads");
      line.append(make("b"));
      for (let j = 0; j < runs; j++) {
        const head = make("span", "run", j);
        head.style.width = "calc((var(--size) + 1px) * " + run + " - 1px)";
        line.append(head);
      }
      panel.append(line);
    }
    for (let i = 0; i < rows && first + i * runs * run < size; i++) {
      const line = make("div", "line"), start = first + i * runs * run;
      line.append(make("b", "", heads ? i : array.shape.length === 2 ? start / run : start));
      for (let j = 0; j < runs; j++) {
        const group = make("span", "run");
        for (let k = 0; k < run; k++) {
          const flat = start + j * run + k;
          if (flat >= size) break;
          const cell = make("i", "cell");
          cell.dataset.cell = flat;
          mine.push(cell);
          group.append(cell);
        }
        line.append(group);
      }
      panel.append(line);
    }
    panels.append(panel);
  }
  scroll.append(panels);
  const info = make("p", "info");
  info.setAttribute("role", "status");
  box.append(title, scroll, info);
  box.dataset.array = array.name;
  let cursor = -1;
  const point = (flat) => { info.textContent = flat < 0 ? "" : describe(number, flat); };
  const cellOf = (event) => event.target.dataset.cell === undefined ? -1 : +event.target.dataset.cell;
  scroll.addEventListener("pointerover", (event) => point(cellOf(event)));
  scroll.addEventListener("pointerleave", () => point(cursor));
  scroll.addEventListener("click", (event) => moveTo(cellOf(event)));
  scroll.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -runs * run, ArrowDown: runs * run }[event.key];
    if (event.key === "Escape") moveTo(-1);
    if (by === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    const to = cursor < 0 ? 0 : cursor + by;
    if (to >= 0 && to < size) moveTo(to);
  });
  function moveTo(flat) {
    if (cursor >= 0) mine[cursor].classList.remove("cursor");
    cursor = flat;
    if (cursor >= 0) {
      mine[cursor].classList.add("cursor");
      mine[cursor].scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    point(cursor);
  }
  box.refresh = () => point(cursor);
  // Smaller cells, down to a limit, spare sideways scrolling.
  box.fit = () => {
    const room = box.clientWidth - 80 - 5 * runs, least = innerWidth > 900 ? 10 : 13;
    const size = Math.floor(room / (runs * run)) - 1;
    box.style.setProperty("--size", Math.max(least, Math.min(15, size)) + "px");
  };
  cells.push(mine);
  return box;
}

// One sentence about a cell: where, what it holds, who touches it now, who writes it at all.
function describe(number, flat) {
  const array = launch.arrays[number];
  const values = array.values.all ?? array.values[block.number];
  let text = array.name + "[" + indexOf(array.shape, flat).join(", ") + "]";
  if (values) text += " = " + values[flat] + " after the launch";
  if (block.steps.length) {
    const step = stepAt(state.step);
    for (const r of step.requests.filter((r) => r.array === number)) {
      const lanes = r.lanes.filter((_, i) => r.cells[i] === flat);
      if (lanes.length) text += "; " + (step.write ? "written" : "read") + " by warp " + r.warp +
        ", " + (lanes.length > 1 ? "lanes " : "lane ") + ranges(lanes);
    }
  }
  const owner = owned.find((o) => o.array === number && o.flat === flat);
  if (owner) text += "; thread " + owner.thread + " writes it";
  return text;
}

function ranges(numbers) {
  const parts = [];
  for (const n of numbers) {
    const last = parts[parts.length - 1];
    if (last && last[1] === n - 1) last[1] = n; else parts.push([n, n]);
  }
  return parts.map(([a, b]) => (a === b ? a : a + "–" + b)).join(", ");
}

// --- lights

function light(element, ...names) {
  element.classList.add(...names);
  lit.push(element);
}

// Where the followed thread has been in earlier steps of this block.
function trail() {
  if (state.thread === null) return;
  for (let i = 0; i < state.step; i++) for (const [warp, array, lanes, flats] of block.steps[i][3]) {
    if (warp !== Math.floor(state.thread / WARP)) continue;
    const at = lanes.indexOf(state.thread % WARP);
    if (at >= 0) light(cells[array][flats[at]], "been");
  }
}

function lightRequest(step, r) {
  const array = launch.arrays[r.array], mine = cells[r.array], asked = new Map();
  r.cells.forEach((flat) => asked.set(flat, (asked.get(flat) ?? 0) + 1));
  if (array.space === "global" && array.in_order && array.itemsize <= SECTOR) {
    const each = SECTOR / array.itemsize;
    for (const sector of new Set(r.cells.map((flat) => Math.floor((flat + array.skew) / each)))) {
      const first = sector * each - array.skew;
      for (let flat = Math.max(0, first); flat < Math.min(mine.length, first + each); flat++) {
        if (!asked.has(flat) && !mine[flat].matches(".read, .write")) {
          recolour(mine[flat], r.warp);
          light(mine[flat], "along");
        }
      }
    }
  }
  for (const [flat, lanes] of asked) {
    const cell = mine[flat];
    const before = cell.matches(".read, .write") ? +cell.textContent || 1 : 0;
    if (!before) recolour(cell, r.warp);
    cell.classList.remove("along");
    light(cell, step.write ? "write" : "read");
    (cell.warps ??= []).push(r.warp);
    if (cell.warps.length > 1 && !step.write) cell.style.background = stripes(cell.warps);
    if (r.bad) cell.classList.add("bad");
    if (lanes + before > 1) cell.textContent = lanes + before;
  }
  if (state.thread !== null && Math.floor(state.thread / WARP) === r.warp) {
    const at = r.lanes.indexOf(state.thread % WARP);
    if (at >= 0) mine[r.cells[at]].classList.add("followed");
  }
}

// Several warps at one cell: a stripe in the colour of each.
function stripes(warps) {
  const wide = 100 / warps.length;
  return "linear-gradient(90deg, " + warps.map((warp, i) =>
    "var(--w" + warp % 8 + ") " + i * wide + "% " + (i + 1) * wide + "%").join(", ") + ")";
}

function recolour(cell, warp) {
  for (let i = 0; i < 8; i++) cell.classList.remove("c" + i);
  cell.classList.add(colour(warp));
}

