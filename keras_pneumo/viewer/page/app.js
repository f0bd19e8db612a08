// The page: which radiograph is shown, what is asked of the server, and what the sliders, the keys and a drop do.

import { Film, RANGES, greyOf } from "./film.js";
import { showAgreement, showAnswer, showFault, showHundred, showVerdict } from "./panel.js";

const $ = (id) => document.getElementById(id);
const FILMS = ["window", "level", "invert"]; // settings that the film itself keeps
const START = { outline: 100, heat: 0 };
const state = { about: null, items: [], at: -1, found: null, ...START, map: "classifier", asked: 0, judged: Promise.resolve() };
const film = new Film($("film"), showView);

async function ask(address, options) {
  let reply;
  try {
    reply = await fetch(address, options);
  } catch {
    throw new Error("The program behind this page has ended. Start keras-pneumo view again.");
  }
  const found = await reply.json().catch(() => ({ error: "The program gave no answer that can be read." }));
  if (!reply.ok) throw new Error(found.error ?? "The program refused.");
  return found;
}

/** Items are {name, load}: load asks the server for the answer. */
function folderItem(name, number) {
  return { name, load: () => ask(`/api/folder/${number}`) };
}

function droppedItem(file) {
  const load = async () => {
    if (file.size > state.about.max_bytes) {
      throw new Error(`${file.name} cannot be shown: it is larger than the ${state.about.max_bytes / 2 ** 20} MiB that the page takes.`);
    }
    let body;
    try {
      body = await file.arrayBuffer();
    } catch {
      throw new Error(`${file.name} cannot be read. It is a folder, or was moved, changed or locked since it was dropped. Drop the files themselves, again.`);
    }
    return ask(`/api/drop?name=${encodeURIComponent(file.name)}`, { method: "POST", body });
  };
  return { name: file.name, load };
}

async function show(at) {
  if (at < 0 || at >= state.items.length) return;
  state.at = at;
  const mine = ++state.asked;
  state.found = null; // what is judged must be what is shown, and this is not yet
  delete document.body.dataset.shown;
  document.body.classList.add("reading");
  showPlace();
  showVerdict(null);
  showReading();
  showFault(null);
  $("busy").hidden = false;
  $("welcome").hidden = true;
  try {
    const item = state.items[at];
    const found = { ...(await item.load()), at };
    const names = Object.keys(found.maps);
    const [picture, ...maps] = await Promise.all([found.pixels, ...names.map((name) => found.maps[name])].map(greyOf));
    if (mine !== state.asked) return; // another was asked for meanwhile
    state.found = found;
    item.verdict = found.verdict;
    film.show(found, picture, Object.fromEntries(names.map((name, i) => [name, maps[i]])));
    film.drawHeat(state.map, state.heat / 100);
    showAnswer(found, state.about);
    showVerdict(found.verdict);
    showReading();
    showView();
    document.body.dataset.shown = found.key;
    const next = state.items[at + 1];
    if (next && !next.fetched) { next.fetched = true; next.load().catch(() => {}); } // the server keeps it
  } catch (error) {
    if (mine === state.asked) clear(error.message);
  } finally {
    if (mine === state.asked) {
      $("busy").hidden = true;
      document.body.classList.remove("reading");
    }
  }
}

function clear(sentence) {
  state.found = null;
  film.picture = null;
  $("stage").hidden = true;
  $("answer").hidden = true;
  $("facts").textContent = $("state").textContent = "";
  $("welcome").hidden = false;
  delete document.body.dataset.shown;
  showVerdict(null);
  showReading();
  showFault(sentence);
}

function add(files) {
  if (!files.length) return;
  const first = state.items.length;
  state.items.push(...[...files].map(droppedItem));
  show(first);
}

function showPlace() {
  $("place").textContent = state.items.length ? `${state.at + 1} of ${state.items.length}` : "–";
  $("previous").disabled = state.at <= 0;
  $("next").disabled = state.at >= state.items.length - 1;
}

function showReading() {
  for (const button of document.querySelectorAll("[data-verdict]")) button.disabled = !state.found;
  const read = state.items.filter((item) => item.verdict).length;
  showAgreement(state.about.agreement, read, state.items.length, state.about.readings);
}

/** Sliders, their numbers and the picture, from the state. */
function showView() {
  const values = {
    window: [Math.round(film.window)], level: [Math.round(film.level)], zoom: [Math.round(100 * film.zoom), "%"],
    "outline-strength": [state.outline, "%"], "heat-strength": [state.heat, "%"],
  };
  for (const [id, [value, unit]] of Object.entries(values)) {
    $(id).value = value;
    $(id).nextElementSibling.textContent = `${value}${unit ?? ""}`;
  }
  $("outline").style.opacity = state.outline / 100;
  $("invert").setAttribute("aria-pressed", String(film.invert));
  document.querySelector(`[name=map][value=${state.map}]`).checked = true;
  $("state").textContent = state.found ? `W ${values.window[0]}  L ${values.level[0]}  ${values.zoom[0]}%${film.invert ? "  inverted" : ""}` : "";
}

function set(changes) {
  for (const [name, value] of Object.entries(changes)) (FILMS.includes(name) ? film : state)[name] = value;
  film.limit();
  film.draw();
  film.drawHeat(state.map, state.heat / 100);
  showView();
}

function zoom(value) {
  film.zoomTo(value);
  showView();
}

/** Verdicts go out one after another, so that the last one given is the one kept. */
function judge(verdict) {
  const { found } = state;
  if (found) state.judged = state.judged.then(() => keep(found, state.items[found.at], verdict));
}

/** File a verdict on an answer. The page may show another radiograph by the time it is kept. */
async function keep(found, item, verdict) {
  try {
    const body = JSON.stringify({ key: found.key, name: found.name, verdict });
    state.about.agreement = await ask("/api/reading", { method: "POST", body });
    item.verdict = verdict;
    if (state.found === found) showVerdict(verdict);
    showReading();
  } catch (error) {
    showFault(`What you said of ${found.name} was not kept: ${error.message}`);
  }
}

const KEYS = {
  ArrowLeft: () => show(state.at - 1), ArrowRight: () => show(state.at + 1),
  f: () => $("files").click(), "?": () => $("keys").showModal(),
  w: () => set({ window: film.window / 1.12 }), W: () => set({ window: film.window * 1.12 }),
  l: () => set({ level: film.level - 6 }), L: () => set({ level: film.level + 6 }),
  "+": () => zoom(film.zoom * 1.25), "=": () => zoom(film.zoom * 1.25), "-": () => zoom(film.zoom / 1.25), 0: () => zoom(1),
  i: () => set({ invert: !film.invert }),
  o: () => set({ outline: state.outline ? 0 : 100 }), h: () => set({ heat: state.heat ? 0 : 60 }),
  m: () => set({ map: state.map === "classifier" ? "segmenter" : "classifier", heat: state.heat || 60 }),
  r: () => reset(),
  a: () => judge("agree"), d: () => judge("disagree"), u: () => judge("unsure"),
};

function reset() {
  film.reset();
  film.place();
  set({ ...START });
}

function listen() {
  for (const [name, [min, max]] of Object.entries(RANGES)) Object.assign($(name), { min, max });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
    const slides = event.target.matches("input[type=range], input[type=radio]") && event.key.startsWith("Arrow");
    const act = KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
    if (act && !slides) { event.preventDefault(); act(); }
  });
  $("previous").onclick = KEYS.ArrowLeft;
  $("next").onclick = KEYS.ArrowRight;
  $("open").onclick = KEYS.f;
  $("help").onclick = KEYS["?"];
  $("invert").onclick = KEYS.i;
  $("reset").onclick = KEYS.r;
  $("files").onchange = () => { add($("files").files); $("files").value = ""; };
  $("window").oninput = () => set({ window: Number($("window").value) });
  $("level").oninput = () => set({ level: Number($("level").value) });
  $("zoom").oninput = () => zoom($("zoom").value / 100);
  $("outline-strength").oninput = () => set({ outline: Number($("outline-strength").value) });
  $("heat-strength").oninput = () => set({ heat: Number($("heat-strength").value) });
  $("prevalence").oninput = () => state.found && showHundred(state.found, state.about);
  for (const choice of document.querySelectorAll("[name=map]")) choice.onchange = () => set({ map: choice.value });
  for (const button of document.querySelectorAll("[data-verdict]")) button.onclick = () => judge(button.dataset.verdict);
  document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    add(event.dataTransfer.files);
  });
}

async function start() {
  listen();
  try {
    state.about = await ask("/api/about");
  } catch (error) {
    showFault(error.message);
    return;
  }
  $("detector").textContent = `${state.about.name} ${state.about.version}`;
  $("heat-note").textContent = state.about.heat;
  $("prevalence").value = Math.max(1, Math.round(100 * state.about.prevalence));
  state.items = state.about.files.map(folderItem);
  showView();
  showPlace();
  showReading();
  document.body.dataset.ready = "yes";
  if (state.items.length) show(0);
}

start();
