// The page: it shows one radiograph at a time, asks the server for answers, and reacts to sliders, keys and dropped files.

import { RANGES, RadiographView, greyOf } from "./radiograph.js";
import { showAgreement, showAnswer, showError, showHundred, showVerdict } from "./panel.js";

const $ = (id) => document.getElementById(id);
const VIEW_SETTINGS = ["window", "level", "invert"]; // kept by the view of the radiograph, the others by the state
const START = { outline: 100, heat: 0 };
const state = { about: null, items: [], index: -1, answer: null, ...START, map: "classifier", requests: 0, saving: Promise.resolve() };
const view = new RadiographView($("radiograph"), showView);

const BUSY = 503; // too many radiographs at once; the server says after how many seconds to ask again
const MOST_ASKED = 30;

/** The server's answer as JSON, asked for again while it is busy and the answer is still wanted; throws an Error with a sentence for the user. */
async function ask(address, options, wanted = () => false) {
  let reply;
  for (let asked = 1; ; asked++) {
    try {
      reply = await fetch(address, options);
    } catch {
      throw new Error("The program behind this page has ended. Start keras-pneumo view again.");
    }
    if (reply.status !== BUSY || asked === MOST_ASKED) break;
    await new Promise((resolve) => setTimeout(resolve, 1000 * (reply.headers.get("retry-after") || 2)));
    if (!wanted()) break;
  }
  const json = await reply.json().catch(() => ({ error: "The program's answer cannot be read. Load the page again." }));
  if (!reply.ok) throw new Error(json.error ?? "The program refused this. Load the page again.");
  return json;
}

/** An item is {name, load}: load asks the server for the answer, as long as wanted() is true. */
function folderItem(name, number) {
  return { name, load: (wanted) => ask(`/api/folder/${number}`, {}, wanted) };
}

function droppedItem(file) {
  const load = async (wanted) => {
    if (file.size > state.about.max_bytes) {
      throw new Error(`${file.name} cannot be shown: it is larger than ${state.about.max_bytes / 2 ** 20} MiB, the limit of this page.`);
    }
    let body;
    try {
      body = await file.arrayBuffer();
    } catch {
      throw new Error(`${file.name} cannot be read. It is a folder, or it was moved, changed or locked after it was dropped. Drop the files again, not their folder.`);
    }
    return ask(`/api/drop?name=${encodeURIComponent(file.name)}`, { method: "POST", body }, wanted);
  };
  return { name: file.name, load };
}

async function show(index) {
  if (index < 0 || index >= state.items.length) return;
  state.index = index;
  const request = ++state.requests;
  state.answer = null; // a verdict must be on the radiograph that is shown, and this one is not shown yet
  delete document.body.dataset.shown;
  document.body.classList.add("reading");
  showPosition();
  showVerdict(null);
  showReadings();
  showError(null);
  $("busy").hidden = false;
  $("welcome").hidden = true;
  try {
    const item = state.items[index];
    const answer = { ...(await item.load(() => request === state.requests)), index };
    const names = Object.keys(answer.maps);
    const [picture, ...maps] = await Promise.all([answer.pixels, ...names.map((name) => answer.maps[name])].map(greyOf));
    if (request !== state.requests) return; // the user went on to another radiograph meanwhile
    state.answer = answer;
    item.verdict = answer.verdict;
    view.show(answer, picture, Object.fromEntries(names.map((name, i) => [name, maps[i]])));
    view.drawHeat(state.map, state.heat / 100);
    showAnswer(answer, state.about);
    showVerdict(answer.verdict);
    showReadings();
    showView();
    document.body.dataset.shown = answer.key;
    const next = state.items[index + 1];
    if (next && !next.fetched) { next.fetched = true; next.load().catch(() => { next.fetched = false; }); } // the server keeps the answer
  } catch (error) {
    if (request === state.requests) clear(error.message);
  } finally {
    if (request === state.requests) {
      $("busy").hidden = true;
      document.body.classList.remove("reading");
    }
  }
}

function clear(sentence) {
  state.answer = null;
  view.picture = null;
  $("stage").hidden = true;
  $("answer").hidden = true;
  $("facts").textContent = $("state").textContent = "";
  $("welcome").hidden = false;
  delete document.body.dataset.shown;
  showVerdict(null);
  showReadings();
  showError(sentence);
}

function add(files) {
  if (!files.length) return;
  const first = state.items.length;
  state.items.push(...[...files].map(droppedItem));
  show(first);
}

function showPosition() {
  $("position").textContent = state.items.length ? `${state.index + 1} of ${state.items.length}` : "–";
  $("previous").disabled = state.index <= 0;
  $("next").disabled = state.index >= state.items.length - 1;
}

/** The verdict buttons and the agreement of the reader with the detector. */
function showReadings() {
  for (const button of document.querySelectorAll("[data-verdict]")) button.disabled = state.answer?.probability == null;
  const read = state.items.filter((item) => item.verdict).length;
  showAgreement(state.about.agreement, read, state.items.length, state.about.readings);
}

/** Set the sliders, their numbers and the picture from the state. */
function showView() {
  const values = {
    window: [Math.round(view.window)], level: [Math.round(view.level)], zoom: [Math.round(100 * view.zoom), "%"],
    "outline-strength": [state.outline, "%"], "heat-strength": [state.heat, "%"],
  };
  for (const [id, [value, unit]] of Object.entries(values)) {
    $(id).value = value;
    $(id).nextElementSibling.textContent = `${value}${unit ?? ""}`;
  }
  $("outline").style.opacity = state.outline / 100;
  $("invert").setAttribute("aria-pressed", String(view.invert));
  document.querySelector(`[name=map][value=${state.map}]`).checked = true;
  $("state").textContent = state.answer ? `W ${values.window[0]}  L ${values.level[0]}  ${values.zoom[0]}%${view.invert ? "  inverted" : ""}` : "";
}

function set(changes) {
  for (const [name, value] of Object.entries(changes)) (VIEW_SETTINGS.includes(name) ? view : state)[name] = value;
  view.limit();
  view.draw();
  view.drawHeat(state.map, state.heat / 100);
  showView();
}

function zoom(value) {
  view.zoomTo(value);
  showView();
}

/** Verdicts are saved one after another, so that the last one given is the one kept. */
function giveVerdict(verdict) {
  const { answer } = state;
  if (answer?.probability != null) state.saving = state.saving.then(() => saveVerdict(answer, state.items[answer.index], verdict));
}

/** Save a verdict on an answer. The page may show another radiograph by the time it is saved. */
async function saveVerdict(answer, item, verdict) {
  try {
    const body = JSON.stringify({ key: answer.key, name: answer.name, verdict });
    state.about.agreement = await ask("/api/reading", { method: "POST", body });
    item.verdict = verdict;
    if (state.answer === answer) showVerdict(verdict);
    showReadings();
  } catch (error) {
    showError(`Your verdict on ${answer.name} was not saved: ${error.message}`);
  }
}

const KEYS = {
  ArrowLeft: () => show(state.index - 1), ArrowRight: () => show(state.index + 1),
  f: () => $("files").click(), "?": () => $("keys").showModal(),
  w: () => set({ window: view.window / 1.12 }), W: () => set({ window: view.window * 1.12 }),
  l: () => set({ level: view.level - 6 }), L: () => set({ level: view.level + 6 }),
  "+": () => zoom(view.zoom * 1.25), "=": () => zoom(view.zoom * 1.25), "-": () => zoom(view.zoom / 1.25), 0: () => zoom(1),
  i: () => set({ invert: !view.invert }),
  o: () => set({ outline: state.outline ? 0 : 100 }), h: () => set({ heat: state.heat ? 0 : 60 }),
  m: () => set({ map: state.map === "classifier" ? "segmenter" : "classifier", heat: state.heat || 60 }),
  r: () => reset(),
  a: () => giveVerdict("agree"), d: () => giveVerdict("disagree"), u: () => giveVerdict("unsure"),
};

function reset() {
  view.reset();
  view.layout();
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
  $("prevalence").oninput = () => state.answer?.probability != null && showHundred(state.answer, state.about);
  for (const choice of document.querySelectorAll("[name=map]")) choice.onchange = () => set({ map: choice.value });
  for (const button of document.querySelectorAll("[data-verdict]")) button.onclick = () => giveVerdict(button.dataset.verdict);
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
    showError(error.message);
    return;
  }
  const named = `${state.about.name} ${state.about.version}`.split(/(?<=[_+./])/);
  $("detector").replaceChildren(...named.flatMap((part) => [part, document.createElement("wbr")]));  // not within a word
  $("synthetic").hidden = !state.about.synthetic;
  $("heat-note").textContent = state.about.heat;
  $("prevalence").value = Math.max(1, Math.round(100 * state.about.prevalence));
  state.items = state.about.files.map(folderItem);
  showView();
  showPosition();
  showReadings();
  document.body.dataset.ready = "yes";
  if (state.items.length) show(0);
}

start();
