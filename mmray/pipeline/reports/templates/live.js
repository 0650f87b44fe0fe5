"use strict";
// The page of `mmray serve`. A query is a photo of the index, {id, name}, or a file, {blob, name}
// with perhaps a box in pixels of the upright photo. The part of the URL after # names it, so that
// the browser's Back returns to it.

const at = (id) => document.getElementById(id);
const version = document.querySelector(".live").dataset.version;
const columns = [...document.querySelectorAll(".column")];
const shown = at("shown"), frame = at("box"), canvas = at("canvas");

const files = []; // queries of this visit that are files
let query = null; // the one that is shown
let labels = new Map(), kept = new Map(); // id -> "right" or "wrong": on the page, and saved
let running = null; // AbortController of the search that runs

// -- asking the server ---------------------------------------------------------------------------

async function ask(url, options) {
  const answer = await fetch(url, options);
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told.error || `the server answered ${answer.status}`);
  return told;
}

function parameters(more = {}) {
  const given = new URLSearchParams(more);
  if (query.box) given.set("box", query.box.map((x) => x.toFixed(1)).join(","));
  return given;
}

async function search() {
  running?.abort();
  const mine = (running = new AbortController());
  const { signal } = mine;
  labels = new Map();
  kept = new Map();
  at("saved").textContent = "";
  document.body.classList.add("waiting");
  at("state").textContent = "Searching…";
  tell("");
  try {
    const found = query.blob
      ? await ask(`/api/search?${parameters()}`, { method: "POST", body: query.blob, signal })
      : await ask(`/api/similar/${query.id}`, { signal });
    if (mine === running) show(found);
  } catch (error) {
    if (mine !== running || !query) return;
    at("state").textContent = "";
    columns.forEach((column) => column.querySelector(".hits").replaceChildren());
    tell(error.message === "Failed to fetch" ? "The server does not answer." : error.message);
  } finally {
    if (mine === running) document.body.classList.remove("waiting");
  }
}

function tell(problem) {
  at("problem").textContent = problem;
  at("problem").hidden = !problem;
}

// -- results -------------------------------------------------------------------------------------

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function show({ indexes, milliseconds }) {
  const ids = indexes.map((each) => new Set((each.results || []).map((hit) => hit.id)));
  indexes.forEach(({ results }, place) => {
    const others = ids[1 - place];
    const hits = (results || []).map((hit, rank) =>
      entry(hit, rank + 1, others && others.size && !others.has(hit.id)));
    columns[place].querySelector(".hits").replaceChildren(...hits);
    columns[place].querySelector(".nothing").hidden = results !== null;
  });
  const count = Math.max(...indexes.map(({ results }) => (results || []).length));
  at("state").textContent = `${count} most similar photos, ${Math.round(milliseconds)} ms`;
  markDuplicates(indexes[0].results || [], query);
}

function entry(hit, rank, onlyHere) {
  const image = element("img", { src: `/thumbnail/${hit.id}?v=${version}`, alt: hit.name, loading: "lazy" });
  const tile = element("span", { className: "tile", title: hit.location }, image);
  image.onerror = () =>
    image.replaceWith(element("span", { className: "missing", textContent: "not readable" }));
  const link = element("a", { href: `/image/${hit.id}`, target: "_blank", rel: "noopener" }, tile);
  const more = element("button", { type: "button", className: "more", textContent: "similar" });
  more.setAttribute("aria-label", `More like ${hit.name}`);
  more.onclick = () => go(`photo-${hit.id}`);
  const place = element("div", { className: "place" });
  if (rank) place.append(element("b", { textContent: rank }),
    element("span", { className: "cosine", textContent: hit.similarity.toFixed(3) }));
  place.append(more);
  const verdicts = element("div", { className: "verdicts" }, ...["right", "wrong"].map((verdict) => {
    const text = verdict === "right" ? "✓ right" : "✕ wrong";
    const button = element("button", { type: "button", textContent: text });
    button.dataset.as = verdict;
    button.setAttribute("aria-label", `${hit.name} is ${verdict}`);
    button.setAttribute("aria-pressed", "false");
    button.onclick = () => judge(hit.id, verdict);
    return button;
  }));
  const made = element("li", { className: "hit" }, link, place, verdicts);
  made.dataset.id = hit.id;
  if (onlyHere) made.append(element("span", { className: "mark", textContent: "only here" }));
  return made;
}

// Before there is a query: some photos of the index to begin with, from all parts of it.
function showSome() {
  const count = Number(document.querySelector(".live").dataset.count), wanted = Math.min(count, 24);
  const hits = Array.from({ length: wanted }, (_, place) => {
    const id = Math.floor(((place + Math.random()) * count) / wanted);
    return entry({ id, name: `photo ${id}`, location: `photo ${id}` }, 0, false);
  });
  columns.forEach((column, place) => column.querySelector(".hits").replaceChildren(...(place ? [] : hits)));
  at("state").textContent = "Some photos of the index. Search with a photo of yours, or for more like one of these.";
}

// Once the thumbnails are there, whose hashes tell it; of the first index alone.
async function markDuplicates(results, asked) {
  if (results.length < 2) return;
  const ids = results.map((hit) => hit.id);
  const given = new URLSearchParams(ids.map((id) => ["id", id]));
  const { groups } = await ask(`/api/near-duplicates?${given}`).catch(() => ({ groups: {} }));
  if (asked !== query) return;
  const rank = new Map(ids.map((id, place) => [id, place + 1]));
  for (const hit of columns[0].querySelectorAll(".hit")) {
    const first = groups[hit.dataset.id];
    if (first === undefined || first === Number(hit.dataset.id)) continue;
    const mark = element("span", { className: "mark", textContent: `≈ ${rank.get(first)}` });
    mark.title = `Nearly the same photo as result ${rank.get(first)}`;
    mark.setAttribute("aria-label", mark.title);
    mark.setAttribute("role", "note");
    hit.append(mark);
  }
}

// -- the query -----------------------------------------------------------------------------------

function go(name) {
  if (location.hash === `#${name}`) open();
  else location.hash = name;
}

function take(blob, name) {
  files.push({ blob, name, url: URL.createObjectURL(blob), box: null });
  go(`file-${files.length}`);
}

function open() {
  const [, kind, number] = location.hash.match(/^#(photo|file)-(\d+)$/) || [];
  if (kind === "photo") query = { id: Number(number), name: `photo ${number}`, url: `/image/${number}`, box: null };
  else if (kind === "file") query = files[number - 1] || null;
  else query = null;
  at("query").hidden = at("tools").hidden = at("box-help").hidden = !query;
  document.body.classList.toggle("idle", !query);
  if (!query) {
    running?.abort();
    tell("");
    showSome();
    return;
  }
  const known = document.querySelector(`.hit[data-id="${query.id}"] img`);
  if (known) query.name = known.alt;
  canvas.querySelector(".unshown")?.remove();
  shown.hidden = false;
  shown.src = query.url;
  shown.alt = query.name;
  at("query-name").textContent = query.name;
  drawBox();
  search();
}

shown.onerror = () => {
  shown.hidden = true; // HEIC and TIFF: browsers show neither, the server reads both
  canvas.append(element("p", { className: "unshown", textContent: "This browser cannot show the photo." }));
};
shown.onload = drawBox;

at("file").onchange = (event) => {
  const [file] = event.target.files;
  if (file) take(file, file.name);
  event.target.value = "";
};
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) take(file, file.name);
});
addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) take(file, file.name || "pasted photo");
});
addEventListener("hashchange", open);

// -- the box -------------------------------------------------------------------------------------

function drawBox() {
  const width = shown.naturalWidth, height = shown.naturalHeight;
  const box = query && query.box;
  frame.hidden = !(box && width);
  at("whole").disabled = !box;
  if (frame.hidden) return;
  const [left, top, right, bottom] = box;
  frame.style.left = `${(100 * left) / width}%`;
  frame.style.top = `${(100 * top) / height}%`;
  frame.style.width = `${(100 * (right - left)) / width}%`;
  frame.style.height = `${(100 * (bottom - top)) / height}%`;
}

// A photo of the index is searched by its descriptor; a part of it has none, and needs the file.
async function searchBox() {
  if (!query.blob) {
    const asked = query;
    try {
      const answer = await fetch(query.url);
      if (!answer.ok) throw new Error("the photo can no longer be read");
      asked.blob = await answer.blob();
    } catch (error) {
      tell(error.message);
      return;
    }
    if (asked !== query) return;
  }
  search();
}

function withoutBox() {
  if (!query.box) return;
  query.box = null;
  drawBox();
  search();
}

let corner = null; // where the pointer went down, in pixels of the photo
const point = (event) => {
  const place = shown.getBoundingClientRect();
  const share = (value, start, length) => Math.min(Math.max((value - start) / length, 0), 1);
  return [
    share(event.clientX, place.left, place.width) * shown.naturalWidth,
    share(event.clientY, place.top, place.height) * shown.naturalHeight,
  ];
};
canvas.onpointerdown = (event) => {
  if (event.button || !shown.naturalWidth || shown.hidden) return;
  canvas.setPointerCapture(event.pointerId);
  corner = point(event);
};
canvas.onpointermove = (event) => {
  if (!corner) return;
  const [x, y] = point(event);
  query.box = [Math.min(x, corner[0]), Math.min(y, corner[1]), Math.max(x, corner[0]), Math.max(y, corner[1])];
  drawBox();
};
canvas.onpointerup = () => {
  if (!corner) return;
  corner = null;
  const box = query.box;
  if (!box) return;
  const least = shown.naturalWidth / 50;
  if (box[2] - box[0] < least || box[3] - box[1] < least) withoutBox(); // a click
  else searchBox();
};
canvas.onpointercancel = () => { corner = null; };
canvas.onkeydown = (event) => {
  const width = shown.naturalWidth, height = shown.naturalHeight;
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (!width || shown.hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "b" || event.key === "B") {
    query.box = [width / 4, height / 4, (3 * width) / 4, (3 * height) / 4];
  } else if (event.key in steps && query.box) {
    const [x, y] = steps[event.key].map((step, axis) => (step * [width, height][axis]) / 25);
    let [left, top, right, bottom] = query.box;
    if (event.shiftKey) {
      right = Math.min(Math.max(right + x, left + width / 25), width);
      bottom = Math.min(Math.max(bottom + y, top + height / 25), height);
    } else {
      const dx = Math.min(Math.max(x, -left), width - right), dy = Math.min(Math.max(y, -top), height - bottom);
      [left, top, right, bottom] = [left + dx, top + dy, right + dx, bottom + dy];
    }
    query.box = [left, top, right, bottom];
  } else if (event.key === "Enter" && query.box) searchBox();
  else if (event.key === "Escape") withoutBox();
  else return;
  event.preventDefault();
  drawBox();
};
at("whole").onclick = withoutBox;

// -- labels --------------------------------------------------------------------------------------

at("label").onclick = () => {
  const on = document.body.classList.toggle("labels");
  at("label").setAttribute("aria-pressed", on);
  at("labelling").hidden = !on;
};

function judge(id, verdict) {
  if (labels.get(id) === verdict) labels.delete(id);
  else labels.set(id, verdict);
  for (const hit of document.querySelectorAll(`.hit[data-id="${id}"]`)) {
    for (const each of ["right", "wrong"]) {
      hit.classList.toggle(each, labels.get(id) === each);
      hit.querySelector(`[data-as="${each}"]`).setAttribute("aria-pressed", labels.get(id) === each);
    }
  }
  const counts = ["right", "wrong"].map((each) => [...labels.values()].filter((x) => x === each).length);
  at("save").disabled = !labels.size && !kept.size;
  at("saved").textContent = `${counts[0]} right, ${counts[1]} wrong, not saved yet`;
}

at("save").onclick = async () => {
  const cleared = [...kept.keys()].filter((id) => !labels.has(id)).map((id) => ["cleared", id]);
  const given = parameters([...[...labels].map(([id, verdict]) => [verdict, id]), ...cleared]);
  if (!query.blob) given.set("query", query.id);
  at("save").disabled = true;
  try {
    const told = await ask(`/api/label?${given}`, { method: "POST", body: query.blob });
    kept = new Map(labels);
    at("saved").textContent =
      `Saved. The set has ${told.queries} ${told.queries === 1 ? "query" : "queries"} and ${told.images} images: ` +
      `mmray evaluate --images ${told.folder} --ground-truth ${told.ground_truth}`;
  } catch (error) {
    at("saved").textContent = `Not saved: ${error.message}`;
    at("save").disabled = false;
  }
};

// -- the keyboard among results ------------------------------------------------------------------

at("columns").onkeydown = (event) => {
  const hit = event.target.closest(".hit");
  if (!hit || event.ctrlKey || event.metaKey || event.altKey) return;
  const hits = [...hit.parentElement.children], place = hits.indexOf(hit);
  const row = hits.findIndex((each) => each.offsetTop > hits[0].offsetTop);
  const across = row < 0 ? hits.length : row;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across };
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in steps) hits[place + steps[key]]?.querySelector("a").focus();
  else if (key === "s") hit.querySelector(".more").click();
  else if (key === "r" && document.body.classList.contains("labels")) judge(Number(hit.dataset.id), "right");
  else if (key === "w" && document.body.classList.contains("labels")) judge(Number(hit.dataset.id), "wrong");
  else return;
  event.preventDefault();
};

if (location.search) history.replaceState(null, "", `/${location.hash}`); // the token is in a cookie
open();
