// The page is one picture of `state`; every control changes `state` and calls show().

const data = JSON.parse(document.getElementById("data").textContent);
const state = { launch: 0, block: 0, step: 0, thread: null, hidden: new Set() };
const $ = (id) => document.getElementById(id);
const WARP = 32, SECTOR = 32;

let launch, block, cells, lit = [], owned = [], playing = null;

// A step as it comes from Python, with names.
function stepAt(number) {
  const [place, occurrence, write, requests] = block.steps[number];
  return {
    place: launch.places[place], number: place, occurrence, write: !!write,
    requests: requests.map(([warp, array, lanes, cells, sectors, ideal, ways, bad]) =>
      ({ warp, array, lanes, cells, sectors, ideal, ways, bad: !!bad })),
  };
}

// --- the source

function drawSource() {
  const box = $("source");
  box.replaceChildren();
  const barriers = new Set(launch.blocks.flatMap((b) => b.marks.map((m) => m[3] + ":" + m[2])));
  launch.sources.forEach((source, number) => {
    box.append(make("div", "file", source.file));
    source.lines.forEach((text, i) => {
      const n = source.first + i, row = make("div", "row");
      if (text.trimStart().startsWith("#")) row.classList.add("comment");
      if (barriers.has(source.file + ":" + n)) row.classList.add("barrier");
      row.dataset.line = number + ":" + n;
      row.append(make("span", "n", n), make("pre", "", text || " "));
      row.text = text;
      box.append(row);
    });
  });
}

function showLine(place) {
  const box = $("source"), old = box.querySelector(".now");
  if (old) {
    old.classList.remove("now");
    old.removeAttribute("aria-current");
    old.querySelector("pre").textContent = old.text || " ";
  }
  if (!place) return;
  const row = box.querySelector('[data-line="' + place.source + ":" + place.line + '"]');
  if (!row) return;
  row.classList.add("now");
  row.setAttribute("aria-current", "step");
  if (place.columns) {
    const [from, to] = place.columns, letters = [...row.text];
    row.querySelector("pre").replaceChildren(letters.slice(0, from).join(""),
      make("mark", "", letters.slice(from, to).join("")), letters.slice(to).join(""));
  }
  const mark = row.querySelector("mark");
  if (mark) {
    const right = mark.offsetLeft + mark.offsetWidth + 16;
    box.scrollLeft = right > box.clientWidth ? Math.min(right - box.clientWidth, mark.offsetLeft - 60) : 0;
  }
  // Not scrollIntoView, which would move the page as well.
  const top = row.offsetTop, height = box.clientHeight;
  if (top < box.scrollTop + 20 || top > box.scrollTop + height - 40) box.scrollTop = top - height / 2;
}

// --- time

function drawTimeline() {
  const n = block.steps.length, slider = $("step"), last = Math.max(1, n - 1);
  slider.max = Math.max(0, n - 1);
  slider.disabled = n === 0;
  $("timeline").setAttribute("viewBox", "0 0 " + last + " 8");
  const half = Math.min(0.4, 7 * last / ($("timeline").clientWidth || 300));
  const paths = { reads: "", writes: "", bads: "" };
  block.steps.forEach(([, , write, requests], i) => {
    const kind = requests.some((r) => r[7]) ? "bads" : write ? "writes" : "reads";
    const [top, height] = write ? [4, 4] : [0, 4];  // reads above, writes below
    paths[kind] += "M" + (i - half) + " " + top + "h" + 2 * half + "v" + height + "h" + -2 * half + "z";
  });
  $("timeline").innerHTML = "";
  for (const [kind, d] of Object.entries(paths)) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("class", kind);
    path.setAttribute("d", d);
    $("timeline").append(path);
  }
  $("marks").replaceChildren(...block.marks.map(([after, call, line]) => {
    const mark = make("i");
    mark.dataset.after = after;
    mark.style.left = Math.min(100, Math.max(0, (after - 0.5) / last * 100)) + "%";
    mark.title = call + ", line " + line;
    return mark;
  }));
}

// --- showing

function showLaunch() {
  launch = data.launches[state.launch];
  lit = []; owned = []; cells = [];
  state.hidden.clear();
  document.title = launch.kernel + " · tinyconv";
  $("kernel").textContent = launch.kernel;
  const [blocks, threads] = [launch.blocks.length, launch.block.reduce((a, b) => a * b, 1)];
  $("launched").textContent = launch.title + " · " + plural(blocks, "block", "blocks") + " of " +
    plural(threads, "thread", "threads") + ", " + plural(Math.ceil(threads / WARP), "warp", "warps");
  $("thread").max = threads - 1;
  if (state.thread >= threads) $("thread").value = state.thread = null;
  $("block").replaceChildren(...launch.blocks.map((b) => {
    const option = make("option", "", b.number);
    option.value = b.number;
    return option;
  }));
  $("arrays").replaceChildren(...launch.arrays.map(drawArray));
  fit();
  drawSource();
  drawTotals();
  state.block = Math.min(state.block, blocks - 1);
  showBlock();
}

function fit() {
  for (const box of $("arrays").children) box.fit();
}

function showBlock() {
  block = launch.blocks[state.block];
  $("block").value = state.block;
  for (const { element } of owned) element.classList.remove("owned");
  owned = [];
  for (const [, , write, requests] of block.steps) if (write) for (const r of requests) {
    const [warp, array, lanes, flats] = r;
    if (launch.arrays[array].space !== "global") continue;
    flats.forEach((flat, i) => owned.push(
      { element: cells[array][flat], array, flat, warp, thread: warp * WARP + lanes[i] }));
  }
  drawTimeline();
  state.step = Math.max(0, Math.min(state.step, block.steps.length - 1));
  show();
}

function show() {
  for (const element of lit) {
    element.className = "cell" + (element.classList.contains("cursor") ? " cursor" : "");
    element.textContent = "";
    element.style.background = "";
    element.warps = null;
  }
  lit = [];
  for (const o of owned) if (!state.hidden.has(o.warp)) light(o.element, "owned", colour(o.warp));
  const step = block.steps.length ? stepAt(state.step) : null;
  if (step) {
    trail();
    for (const r of step.requests) if (!state.hidden.has(r.warp)) lightRequest(step, r);
  }
  showLine(step && step.place);
  showNow(step);
  showRequests(step);
  for (const row of $("totals").rows) {
    row.classList.toggle("now", !!step && row.dataset.place === String(step.number));
  }
  const active = new Set(step ? step.requests.map((r) => r.array) : []);
  [...$("arrays").children].forEach((box, i) => {
    box.classList.toggle("active", active.has(i));
    box.refresh();
  });
  $("back").disabled = state.step === 0;
  $("forth").disabled = state.step >= block.steps.length - 1;
  history.replaceState(null, "", "#" + new URLSearchParams(
    { launch: state.launch, block: state.block, step: state.step }));
}

function showNow(step) {
  const now = $("now"), slider = $("step");
  slider.value = state.step;
  now.replaceChildren();
  if (!step) {
    now.textContent = "The threads of this block touch no array.";
    return;
  }
  const passed = block.marks.filter((m) => m[0] <= state.step).length;
  const names = [...new Set(step.requests.map((r) => launch.arrays[r.array].name))].join(", ");
  const what = (step.write ? "write " : "read ") + names + ", line " + step.place.line;
  const where = "Step " + (state.step + 1) + " of " + block.steps.length;
  let more = step.occurrence ? ", iteration " + (step.occurrence + 1) : "";
  if (block.marks.length) more += ", " + plural(passed, "barrier", "barriers") + " passed";
  now.append(make("b", "", where), ": " + what + more);
  const bad = step.requests.filter((r) => r.bad).length;
  if (bad) {
    const kind = step.requests.some((r) => r.ways > 1) ? "bank conflict" : "not coalesced";
    now.append(" ", make("span", "bad", "✗ " + kind));
  }
  slider.setAttribute("aria-valuetext", where + ": " + what);
}

function showRequests(step) {
  const box = $("requests");
  box.replaceChildren();
  const count = Math.ceil(launch.block.reduce((a, b) => a * b, 1) / WARP);
  for (let warp = 0; warp < count; warp++) {
    const mine = step ? step.requests.filter((r) => r.warp === warp) : [];
    const row = make("button", "request " + colour(warp));
    row.type = "button";
    row.setAttribute("aria-pressed", String(!state.hidden.has(warp)));
    row.title = "Show or hide warp " + warp;
    const lanes = make("span", "lanes"), on = new Set(mine.flatMap((r) => r.lanes));
    for (let lane = 0; lane < WARP; lane++) lanes.append(make("i", on.has(lane) ? "on" : ""));
    const cost = make("span", "cost");
    mine.forEach((r, i) => {
      if (i) cost.append("; ");
      const different = new Set(r.cells).size;
      const many = new Set(r.lanes).size;  // a lane that moves 16 bytes stands there for each element
      let text = plural(many, "lane", "lanes") + ", ";
      text += different === 1 && many > 1 ? "all the same element" :
        plural(different, "element", "elements");
      cost.append(text + ", ");
      cost.append(make("span", r.bad ? "bad-text" : "", r.ways
        ? (r.ways > 1 ? r.ways + " in a queue at one bank" : "no bank conflict")
        : plural(r.sectors, "sector", "sectors") + (r.sectors > r.ideal ? ", " + r.ideal + " would do" : "")));
    });
    if (!mine.length) cost.textContent = "no part in this step";
    row.append(make("span", "name", "warp " + warp), lanes, cost);
    row.addEventListener("click", () => {
      if (!state.hidden.delete(warp)) state.hidden.add(warp);
      show();
      $("requests").children[warp].focus();
    });
    box.append(row);
  }
}

function drawTotals() {
  const table = $("totals"), head = make("tr");
  table.replaceChildren(head);
  const titles = ["line", "source", "array", "", "requests", "sectors", "would do", "longest queue", "in red"];
  titles.forEach((t, i) => head.append(make("th", i && i < 4 ? "text" : "", t)));
  for (const t of launch.totals) {
    const row = make("tr"), place = launch.places[t.place], shared = launch.arrays[t.array].space === "shared";
    row.dataset.place = t.place;
    const columns = place.columns ? [...sourceLine(place)].slice(...place.columns).join("") : place.text;
    const text = [place.line, "", launch.arrays[t.array].name, t.write ? "write" : "read", t.requests,
      shared ? "–" : t.sectors, shared ? "–" : t.ideal, shared ? t.ways : "–", t.bad || "–"];
    text.forEach((value, i) => row.append(make("td", i && i < 4 ? "text" : "", value)));
    row.cells[1].append(make("code", "", columns));
    if (t.bad) row.cells[8].classList.add("bad-text");
    table.append(row);
  }
}

function sourceLine(place) {
  const source = launch.sources[place.source];
  return source.lines[place.line - source.first] ?? place.text;
}

// --- controls

function goTo(step) {
  state.step = Math.max(0, Math.min(block.steps.length - 1, step));
  show();
}

function play(on) {
  clearInterval(playing);
  playing = on ? setInterval(() => {
    if (state.step >= block.steps.length - 1) play(false); else goTo(state.step + 1);
  }, 600) : null;
  $("play").textContent = on ? "Stop" : "Play";
  $("play").setAttribute("aria-label", on ? "Stop" : "Play");
}

data.launches.forEach((l, i) => {
  const option = make("option", "", l.kernel + ": " + l.title);
  option.value = i;
  $("launch").append(option);
});
$("launch").addEventListener("change", (event) => {
  Object.assign(state, { launch: +event.target.value, block: 0, step: 0 });
  showLaunch();
});
$("block").addEventListener("change", (event) => {
  state.block = +event.target.value;
  showBlock();
});
$("thread").addEventListener("input", (event) => {
  const thread = event.target.value === "" ? null : +event.target.value;
  state.thread = thread !== null && thread >= 0 && thread <= +event.target.max ? thread : null;
  show();
});
$("step").addEventListener("input", (event) => goTo(+event.target.value));
$("back").addEventListener("click", () => goTo(state.step - 1));
$("forth").addEventListener("click", () => goTo(state.step + 1));
$("play").addEventListener("click", () => {
  if (playing === null && state.step >= block.steps.length - 1) goTo(0);
  play(playing === null);
});
addEventListener("resize", () => { fit(); drawTimeline(); });
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("select, input[type=number]");
  if (typing || event.ctrlKey || event.altKey || event.metaKey) return;
  const blocks = launch.blocks.length;
  if (event.key === "[" || event.key === "]") {
    state.block = (state.block + (event.key === "]" ? 1 : blocks - 1)) % blocks;
    showBlock();
    return;
  }
  const to = {
    ArrowLeft: state.step - 1, ArrowRight: state.step + 1, PageUp: state.step - 10,
    PageDown: state.step + 10, Home: 0, End: block.steps.length - 1,
  }[event.key];
  // Up, down and the paging keys scroll a box that has the focus.
  const scrolls = event.target.matches(".scroll, #source") && event.key.length > 5 &&
    event.key.startsWith("Page");
  if (to === undefined || scrolls) return;
  event.preventDefault();
  goTo(to);
});

const wanted = new URLSearchParams(location.hash.slice(1));
for (const name of ["launch", "block", "step"]) {
  const number = Number.parseInt(wanted.get(name), 10);
  if (number >= 0) state[name] = number;
}
state.launch = Math.min(state.launch, data.launches.length - 1);
$("launch").value = state.launch;
showLaunch();
