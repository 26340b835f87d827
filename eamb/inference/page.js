"use strict";
// The page of scored photographs; `describe` and `settings_of` in page.py say what `rows` and `settings` hold.
// Only the cards in view are in the document.

const { rows, settings } = JSON.parse(document.getElementById("data").textContent);
const { emotions, ratings, ends, picks, series } = settings;
const byId = (id) => document.getElementById(id);
const grid = byId("grid"), panel = byId("panel"), histogram = byId("histogram");
const handles = [...document.querySelectorAll(".handle")];
const GAP = 12, HEADING = 38, BINS = 48, AHEAD = 600;  // pixels; bars of the histogram; pixels drawn out of view

const photographs = rows.filter((row) => row.picture);
const selected = new Set(photographs.filter((row) => row.picked));
const cards = new Map();  // photograph or heading -> its element, of those in the document
const spare = [];  // cards that are not in the document now
let shown = [], blocks = [], columns = 1, side = 0;  // what passes the filters, in order; the rows of the grid
let current = null, anchor = null;  // the photograph that keys act on; where a range of Shift begins
let reversed = false, saved = true, opened = [];  // `opened`: the one or two photographs in the panel
let folder = location.href;  // what links to originals are relative to

const percent = (share) => `${(100 * share).toFixed(0)} %`;
const counted = (number) => number.toLocaleString("en");
const isFlipped = (row) => Boolean(row.picked) !== selected.has(row);

function append(parent, name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  parent.append(made);
  return made;
}

// ---- sorting and filtering

const collator = new Intl.Collator("en", { numeric: true });  // IMG_9 before IMG_10
[...photographs].sort((a, b) => collator.compare(a.path, b.path)).forEach((row, place) => { row.place = place; });
const ranked = [...photographs].sort((a, b) => b.score - a.score);
ranked.forEach((row, place) => { row.rank = place + 1; });
const least = ranked.at(-1)?.score ?? 0, most = ranked[0]?.score ?? 0;
let range = [least, most];
for (const row of photographs) {
  row.strongest = row.emotions.indexOf(Math.max(...row.emotions));
  row.words = [row.path, emotions[row.strongest], row.camera, row.time, row.error].join("\n").toLowerCase();
}

const ORDERS = {  // name: [compares two photographs, the heading that one stands under]
  series: [(a, b) => a.series - b.series || b.score - a.score, seriesHeading],
  score: [(a, b) => b.score - a.score],
  time: [(a, b) => compareTexts(a.time ?? "~", b.time ?? "~"), (row) => row.time?.slice(0, 10) ?? "no time known"],
  name: [(a, b) => a.place - b.place],
  emotion: [(a, b) => a.strongest - b.strongest || b.emotions[b.strongest] - a.emotions[a.strongest],
    (row) => emotions[row.strongest]],
};
if (!picks) delete ORDERS.series;
if (!photographs.some((row) => row.time)) delete ORDERS.time;
if (!emotions.length) delete ORDERS.emotion;

function compareTexts(a, b) { return a < b ? -1 : Number(a > b); }

function seriesHeading(row) {  // photographs that are the only one of their series stand together
  const { size, words } = series[row.series];
  return size > 1 ? [`Series ${row.series}`, words].filter(Boolean).join(": ") : "Only one of each";
}

function chosenOrder() {
  const name = byId("order").value;
  return ORDERS[name] ?? [(a, b) => b.emotions[name] - a.emotions[name]];  // an emotion, by its number
}

function inRange(row) { return row.score >= range[0] && row.score <= range[1]; }

function update() {  // after any change of filters or order
  const emotion = byId("emotion").value, words = byId("find").value.toLowerCase().split(/\s+/);
  const passing = photographs.filter((row) =>
    (emotion === "" || row.strongest === Number(emotion)) && words.every((word) => row.words.includes(word)));
  const [compare] = chosenOrder();
  shown = passing.filter(inRange).sort((a, b) => compare(a, b) || a.place - b.place);
  if (reversed) shown.reverse();
  if (!shown.includes(current)) current = shown[0] ?? null;
  byId("nothing").hidden = shown.length > 0;
  grid.hidden = !shown.length;
  byId("reset").style.visibility = shown.length === photographs.length ? "hidden" : "visible";  // keeps its place
  drawHistogram(passing);
  layOut();
  report();
}

function reset() {
  byId("find").value = byId("emotion").value = "";
  range = [least, most];
  update();
}

function toggleOrder() {
  reversed = !reversed;
  byId("reverse").setAttribute("aria-pressed", reversed);
  update();
}

// ---- the histogram and its two handles

function outline(list) {  // an SVG path of bars; those of all photographs reach to the top
  const counts = (those) => {
    const bins = new Array(BINS).fill(0);
    for (const { score } of those) bins[Math.min(BINS - 1, Math.floor(BINS * (score - least) / (most - least || 1)))]++;
    return bins;
  };
  const tallest = Math.max(1, ...counts(photographs));
  return counts(list).map((count, i) => count ? `M${i} 1V${1 - Math.max(count / tallest, 0.04)}h.8V1z` : "").join("");
}

function drawHistogram(passing) {
  histogram.querySelector(".all").setAttribute("d", outline(passing));
  histogram.querySelector(".shown").setAttribute("d", outline(passing.filter(inRange)));
  handles.forEach((handle, i) => {
    handle.style.left = `${100 * (range[i] - least) / (most - least || 1)}%`;
    const values = { valuemin: i ? range[0] : least, valuemax: i ? most : range[1], valuenow: range[i] };
    for (const [name, value] of Object.entries(values)) handle.setAttribute(`aria-${name}`, value.toFixed(2));
  });
  byId("between").textContent = `${range[0].toFixed(2)} to ${range[1].toFixed(2)}`;
}

function setRange(one, other) {
  const clamp = (score) => Math.min(most, Math.max(least, score));
  range = [clamp(Math.min(one, other)), clamp(Math.max(one, other))];
  update();
}

function dragRange(event) {  // from a handle: moves it; elsewhere: a new range
  const box = histogram.getBoundingClientRect();
  const at = ({ clientX }) => least + (most - least) * (clientX - box.left) / box.width;
  const held = handles.indexOf(event.target), fixed = held < 0 ? at(event) : range[1 - held];
  event.preventDefault();
  if (held >= 0) event.target.focus();
  histogram.setPointerCapture(event.pointerId);
  histogram.onpointermove = (moved) => setRange(fixed, at(moved));
  histogram.onpointerup = () => { histogram.onpointermove = histogram.onpointerup = null; };
}

function moveHandle(event) {
  const i = handles.indexOf(event.target), step = (most - least) / BINS;
  const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -5, PageUp: 5, Home: -BINS, End: BINS };
  if (!(event.key in steps)) return;
  event.preventDefault();
  event.stopPropagation();
  const wanted = range[i] + step * steps[event.key];
  setRange(i ? range[0] : Math.min(wanted, range[1]), i ? Math.max(wanted, range[0]) : range[1]);
}

// ---- the grid: where each photograph is, and the cards in view

function layOut() {
  const style = getComputedStyle(grid), width = grid.clientWidth;
  const [, heading] = chosenOrder();
  columns = Math.max(2, Math.floor((width + GAP) / (parseFloat(style.getPropertyValue("--least")) + GAP)));
  side = (width - GAP * (columns - 1)) / columns;
  const height = Math.round(0.8 * side) + parseFloat(style.getPropertyValue("--words"));
  grid.style.setProperty("--side", `${side}px`);
  grid.style.setProperty("--height", `${height}px`);
  blocks = [];
  let top = 0;
  for (let first = 0, last; first < shown.length; first = last) {
    const title = heading?.(shown[first]);
    for (last = first; last < shown.length && heading?.(shown[last]) === title;) last++;
    if (title) blocks.push({ top, height: HEADING, title, first, last: first, count: last - first });
    if (title) top += HEADING;
    for (let i = first; i < last; i += columns, top += height + GAP) {
      blocks.push({ top, height, first: i, last: Math.min(i + columns, last) });
    }
  }
  grid.style.height = `${top}px`;
  draw(true);
}

function blockAt(test) {  // the first block for which an increasing test holds, by bisection
  let low = 0, high = blocks.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (test(blocks[middle])) high = middle; else low = middle + 1;
  }
  return low;
}

function draw(all = false) {  // `all`: places have changed too
  // Pixels of the grid that are scrolled away; of a grid that became shorter the browser says so only later.
  const above = Math.min(-grid.getBoundingClientRect().top, parseFloat(grid.style.height) - AHEAD);
  const from = blockAt((block) => block.top + block.height > above - AHEAD);
  const to = blockAt((block) => block.top > above + innerHeight + AHEAD);
  const wanted = new Map();  // block or photograph -> its block, in order
  for (const block of blocks.slice(from, to)) {
    if (block.title) wanted.set(block, block);
    for (let i = block.first; i < block.last; i++) wanted.set(shown[i], block);
  }
  if (current && !wanted.has(current)) wanted.set(current, blockOf(shown.indexOf(current)));  // has the focus
  for (const [key, card] of cards) {
    if (wanted.has(key)) continue;
    card.remove();
    if (!key.title) empty(card);
    cards.delete(key);
  }
  const inOrder = [];
  for (const [key, block] of wanted) {
    const isNew = !cards.has(key);
    if (isNew) cards.set(key, key.title ? makeHeading(block) : makeCard(key));
    if (!key.title && (isNew || all)) arrange(cards.get(key), key, block);
    inOrder.push(cards.get(key));
  }
  if (inOrder.some((card, i) => card !== grid.children[i])) grid.replaceChildren(...inOrder);
  if (current) grid.setAttribute("aria-activedescendant", `photograph-${current.place}`);
}

function blockOf(place) { return blocks[blockAt((block) => block.last > place)]; }

function makeHeading({ top, title, count }) {
  const made = document.createElement("div");
  made.className = "heading";
  made.setAttribute("role", "presentation");
  made.style.transform = `translateY(${top}px)`;
  append(made, "span", title);
  append(made, "small", count);
  return made;
}

function makeCard(row) {
  const card = spare.pop() ?? byId("card").content.firstElementChild.cloneNode(true);
  card.id = `photograph-${row.place}`;
  card.querySelector("strong").textContent = row.score.toFixed(2);
  card.querySelector(".name").textContent = row.name;
  card.querySelector(".where").textContent = row.where ?? "";
  fillPicture(card, row);
  drawThumbnail(card, row);
  showState(card, row);
  return card;
}

function empty(card) {  // frees the memory of its pictures now, and keeps it for another photograph
  for (const image of card.querySelectorAll("img")) image.removeAttribute("src");
  card.querySelector("canvas").getContext("bitmaprenderer").transferFromImageBitmap(null);
  spare.push(card);
}

function drawThumbnail(card, row) {  // on a canvas: Chromium keeps a thousand <img> decoded that left the page
  const image = card.querySelector(".source");
  image.onload = async () => {
    const bitmap = await createImageBitmap(image);
    if (cards.get(row) === card) card.querySelector("canvas").getContext("bitmaprenderer").transferFromImageBitmap(bitmap);
    else bitmap.close();
  };
  image.src = row.picture;
}

function arrange(card, row, block) {  // what depends on the order
  const place = shown.indexOf(row), order = byId("order").value;
  const emotion = ORDERS[order] ? row.strongest : order;
  const words = row.emotions.length ? `${emotions[emotion]} ${percent(row.emotions[emotion])}` : "";
  card.style.transform = `translate(${(place - block.first) * (side + GAP)}px, ${block.top}px)`;
  card.setAttribute("aria-posinset", place + 1);
  card.setAttribute("aria-setsize", shown.length);
  card.querySelector(".more").textContent = words;
  const label = [row.name, `score ${row.score.toFixed(2)}`, words, row.where].filter(Boolean);
  card.setAttribute("aria-label", label.join(", "));
}

function showState(card, row) {
  card.setAttribute("aria-selected", selected.has(row));
  card.classList.toggle("current", row === current);
}

function fillPicture(part, row) {
  const map = part.querySelector(".map"), aspect = row.width / row.height;
  part.style.setProperty("--aspect", aspect);
  map.hidden = !row.map;
  if (!row.map) return;
  map.src = row.map;
  const across = settings.crop ?? aspect;  // a network may see only the middle of a picture
  map.style.width = `${100 * Math.min(1, across / aspect)}%`;
  map.style.height = `${100 * Math.min(1, aspect / across)}%`;
}

function makeCurrent(row) {
  if (!row) return;
  const before = current;
  current = row;
  const place = shown.indexOf(row);
  if (place >= 0) {
    const { top, height } = blockOf(place), start = grid.getBoundingClientRect().top + top;
    const [ceiling, floor] = [covered("header"), innerHeight - covered("footer")];
    if (start < ceiling + HEADING) scrollBy(0, start - ceiling - HEADING);
    else if (start + height > floor) scrollBy(0, start + height - floor + GAP);
  }
  draw();
  for (const each of [before, row]) if (cards.has(each)) showState(cards.get(each), each);
}

function covered(name) {  // pixels at an edge of the window that a bar lies over
  const bar = document.querySelector(name);
  return getComputedStyle(bar).position === "sticky" ? bar.offsetHeight : 0;
}

function move(key) {
  const place = shown.indexOf(current), block = blockOf(Math.max(place, 0));
  if (!block) return;
  const rowsOnly = blocks.filter((each) => !each.title), row = rowsOnly.indexOf(block);
  const across = (other) => other && shown[Math.min(other.first + place - block.first, other.last - 1)];
  const page = Math.max(1, Math.floor((innerHeight - covered("header") - covered("footer")) / (block.height + GAP)));
  const clamp = (number) => rowsOnly[Math.max(0, Math.min(rowsOnly.length - 1, number))];
  makeCurrent({
    ArrowLeft: () => shown[place - 1],
    ArrowRight: () => shown[place + 1],
    ArrowUp: () => across(rowsOnly[row - 1]),
    ArrowDown: () => across(rowsOnly[row + 1]),
    PageUp: () => across(clamp(row - page)),
    PageDown: () => across(clamp(row + page)),
    Home: () => shown[0],
    End: () => shown.at(-1),
  }[key]());
}

// ---- selecting and saving

function select(row, wanted = !selected.has(row)) {
  if (wanted) selected.add(row); else selected.delete(row);
  saved = false;
  if (cards.has(row)) showState(cards.get(row), row);
}

function toggle(row = current) {
  if (!row) return;
  select(row);
  anchor = row;
  report();
}

function selectTo(row) {  // all from the last one that was clicked
  const [first, last] = [shown.indexOf(anchor ?? row), shown.indexOf(row)].sort((a, b) => a - b);
  for (const each of shown.slice(Math.max(first, 0), last + 1)) select(each, true);
  report();
}

function selectAll(wanted) {
  for (const row of wanted ? shown : [...selected]) select(row, wanted);
  report();
}

function chosen() {  // what is saved
  return selected.size ? photographs.filter((row) => selected.has(row)) : shown;
}

function report(more) {
  const count = counted(selected.size), saving = `Save ${counted(chosen().length)} as`;
  const all = `${counted(photographs.length)} photograph${photographs.length === 1 ? "" : "s"}`;
  const words = [shown.length === photographs.length ? all : `${counted(shown.length)} of ${all} shown`];
  if (picks) words.push(`${count} picked, ${photographs.filter(isFlipped).length} changed`);
  else if (selected.size) words.push(`${count} selected`);
  byId("status").textContent = [...words, more].filter(Boolean).join(" · ");
  byId("clear").hidden = picks || !selected.size;
  byId("compare").disabled = shown.length < 2;
  byId("save").firstElementChild.textContent = picks ? `Save ${settings.file}` : `${saving} csv`;
  byId("list").firstElementChild.textContent = `${saving} list`;
  showPressed();
}

function save() {
  const lines = picks ? rows.map((row) => isFlipped(row) ? row.other : row.line) : chosen().map((row) => row.line);
  download(settings.header + lines.join(""), "text/csv", settings.file);
  saved = true;
}

function saveList() {  // a path a line, in the bytes of the file system, which need not be UTF-8
  const onDisk = location.protocol === "file:", encoder = new TextEncoder();
  const paths = chosen().map((row) => onDisk ? pathOf(original(row)) : encoder.encode(row.path));
  const usable = paths.filter((path) => !path.includes(10));
  const left = paths.length - usable.length;
  saved ||= !picks;
  download(new Blob(usable.flatMap((path) => [path, "\n"])), "text/plain", settings.list);
  if (left) report(`${left} with a line break in the name left out of ${settings.list}`);
}

function pathOf(link) {
  const bytes = [];
  const text = new URL(link).pathname.replace(/^\/(?=[A-Za-z]:)/, "");  // Windows: /C:/
  for (let i = 0; i < text.length; i++) {
    const escaped = /^%([0-9a-f]{2})/i.exec(text.slice(i, i + 3));
    bytes.push(escaped ? parseInt(escaped[1], 16) : text.charCodeAt(i));
    if (escaped) i += 2;
  }
  return new Uint8Array(bytes);
}

function download(content, type, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  report(`saved as ${name}`);
}

// ---- the panel: one photograph, or two side by side

function original(row) { return new URL(row.link, folder).href; }

function openOriginal() { if (current) open(original(current), "_blank", "noreferrer"); }

function show(...list) {
  opened = list;
  panel.querySelector(".panes").replaceChildren(...opened.map(makePane));
  panel.classList.toggle("two", opened.length > 1);
  panel.setAttribute("aria-label", opened.map((row) => row.name).join(" and "));
  panel.querySelector("[data-key=w]").hidden = opened.length < 2;
  panel.querySelector("[data-key=c]").hidden = opened.length > 1 || shown.length < 2;
  makeCurrent(opened.at(-1));
  if (!panel.open) {
    panel.showModal();
    panel.querySelector(".panes").focus();
  }
  showPressed();
}

function makePane(row) {
  const pane = byId("pane").content.firstElementChild.cloneNode(true), large = pane.querySelector(".original");
  fillPicture(pane, row);
  pane.querySelector(".thumbnail").src = row.picture;
  pane.querySelector(".thumbnail").alt = row.name;
  large.onload = () => { large.hidden = false; };  // where the browser cannot show it, the thumbnail stays
  if (settings.upright) large.src = original(row);
  pane.querySelector("h2").textContent = row.name;
  pane.querySelector(".path").textContent = row.path;
  pane.querySelector(".score strong").textContent = row.score.toFixed(2);
  const words = [ends ? `of ${ends[0]} to ${ends[1]}` : ""];
  if (row.percentile !== null) words.push(`above ${row.percentile.toFixed(0)} % of the ratings in training`);
  if (row.std != null) words.push(`ratings vary by ${row.std.toFixed(2)}`);
  if (row.models != null) words.push(`the networks differ by ${row.models.toFixed(2)}`);
  pane.querySelector(".score span").textContent = words.filter(Boolean).join(", ");
  const rank = `number ${counted(row.rank)} of ${counted(photographs.length)} by score`;
  pane.querySelector(".rank").textContent = ends ? rank : "";  // without a scale, only scores of a series compare
  const charts = pane.querySelector(".charts"), byShare = emotions.map((name, i) => [name, row.emotions[i]]);
  if (row.emotions.length) drawBars(charts, "Emotions", byShare.sort((a, b) => b[1] - a[1]));
  if (row.shares.length) drawBars(charts, "Predicted ratings", ratings.map((rating, i) => [rating, row.shares[i]]));
  pane.querySelector(".taken").textContent = [row.time, row.camera, row.where, row.error].filter(Boolean).join(" · ");
  pane.querySelector("a").href = original(row);
  pane.querySelector("button").addEventListener("click", () => toggle(row));
  return pane;
}

function drawBars(charts, title, values) {
  const chart = append(charts, "div", "");
  append(chart, "h3", title);
  const list = append(chart, "dl", "", "bars"), tallest = Math.max(...values.map(([, share]) => share));
  for (const [name, share] of values) {
    const line = append(list, "div", "");
    append(line, "dt", name);
    append(line, "dd", percent(share)).style.setProperty("--share", share / tallest);
  }
}

function compare() {  // the two that are selected, or this one and the next
  const two = shown.filter((row) => selected.has(row)), place = shown.indexOf(current);
  if (!panel.open && !picks && two.length === 2) show(...two);
  else if (shown.length > 1) show(...(place + 1 < shown.length ? shown.slice(place, place + 2) : shown.slice(-2)));
}

function step(by) {  // of two, the right one changes
  const fixed = opened.length > 1 ? opened[0] : null, rest = shown.filter((row) => row !== fixed);
  const next = rest[rest.indexOf(opened.at(-1)) + by];
  if (next) show(...(fixed ? [fixed, next] : [next]));
}

function showPressed() {  // of the buttons that are on or off
  const maps = document.body.classList.contains("maps");
  for (const button of document.querySelectorAll("[data-key=m]")) button.setAttribute("aria-pressed", maps);
  panel.querySelectorAll(".pane button").forEach((button, i) => button.setAttribute("aria-pressed", selected.has(opened[i])));
}

function toggleMaps() {
  if (byId("maps").hidden) return;
  document.body.classList.toggle("maps");
  showPressed();
}

// ---- keys and pointers

const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End"];
const ANYWHERE = { m: toggleMaps, o: openOriginal, c: compare, "?": () => byId("help").showModal() };
const IN_GRID = {
  ...ANYWHERE,
  ...Object.fromEntries(MOVES.map((key) => [key, () => { grid.focus({ preventScroll: true }); move(key); }])),
  " ": () => toggle(),
  Enter: () => picks ? toggle() : current && show(current),
  i: () => current && show(current),
  s: save,
  l: saveList,
  r: toggleOrder,
  "/": () => byId("find").focus(),
};
const IN_PANEL = {
  ...ANYWHERE,
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  w: () => opened.length > 1 && show(...opened.toReversed()),
  " ": () => toggle(opened.at(-1)),
};

document.addEventListener("keydown", (event) => {
  const { target, key } = event, letter = key.length === 1 ? key.toLowerCase() : key;
  if (target.closest("input, select, [role=slider]") || byId("help").open) return;
  if ((event.ctrlKey || event.metaKey) && letter === "a" && !panel.open) {
    event.preventDefault();
    selectAll(true);
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (target.closest("button, a, summary") && (key === " " || key === "Enter")) return;
  const act = (panel.open ? IN_PANEL : IN_GRID)[letter];
  if (!act || (event.repeat && !MOVES.includes(key))) return;
  event.preventDefault();
  act();
});

grid.addEventListener("click", (event) => {
  const card = event.target.closest(".card"), row = [...cards].find(([, each]) => each === card)?.[0];
  if (!row) return;
  makeCurrent(row);
  const chooses = picks ? !event.target.closest(".large") : event.target.closest(".corner");
  if (event.shiftKey) selectTo(row);
  else if (chooses || event.ctrlKey || event.metaKey) toggle(row);
  else show(row);
});
for (const button of document.querySelectorAll("[data-key]")) {
  button.addEventListener("click", () => (panel.open ? IN_PANEL : IN_GRID)[button.dataset.key]());
}
for (const button of document.querySelectorAll("[data-step]")) {
  button.addEventListener("click", () => step(Number(button.dataset.step)));
}
for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
panel.addEventListener("close", () => {  // comes later; it may be open again
  if (panel.open) return;
  panel.querySelector(".panes").replaceChildren();  // frees the large pictures
  grid.focus({ preventScroll: true });
});
for (const name of ["order", "emotion", "find"]) byId(name).addEventListener("input", update);
for (const handle of handles) handle.addEventListener("keydown", moveHandle);
histogram.addEventListener("pointerdown", dragRange);
histogram.addEventListener("dblclick", () => setRange(least, most));
byId("reverse").addEventListener("click", toggleOrder);
byId("reset").addEventListener("click", reset);
byId("clear").addEventListener("click", () => selectAll(false));
addEventListener("scroll", () => requestAnimationFrame(() => draw()), { passive: true });
addEventListener("beforeunload", (event) => { if (!saved && (picks || selected.size)) event.preventDefault(); });

// ---- what is there at the beginning

function begin() {
  for (const name of Object.keys(ORDERS)) {
    byId("order").add(new Option(name === "emotion" ? "strongest emotion" : name, name));
  }
  for (const [number, name] of emotions.entries()) {
    const count = photographs.filter((row) => row.strongest === number).length;
    byId("order").add(new Option(name, number));
    if (count) byId("emotion").add(new Option(`${name} (${counted(count)})`, number));
  }
  byId("emotion").parentElement.hidden = !emotions.length;
  byId("maps").hidden = !photographs.some((row) => row.map);
  panel.querySelector("[data-key=m]").hidden = byId("maps").hidden;
  const failed = rows.filter((row) => !row.picture);
  byId("failed").hidden = !failed.length;
  byId("failed").querySelector("summary").textContent = `${failed.length} not scored`;
  for (const row of failed) append(byId("failed").querySelector("ul"), "li", `${row.path}: ${row.error}`);
  if (photographs.length && !location.href.startsWith(settings.folder)) {  // the page was moved, perhaps alone
    const probe = new Image();
    probe.onerror = () => { folder = settings.folder; };
    probe.src = original(photographs[0]);
  }
  update();
  let width = 0;
  new ResizeObserver(() => { if (grid.clientWidth !== width) { width = grid.clientWidth; layOut(); } }).observe(grid);
  grid.focus({ preventScroll: true });
}

begin();
