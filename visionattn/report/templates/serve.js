"use strict";

const at = (id) => document.getElementById(id);
const most = Number(document.body.dataset.maxBytes);
let file = null; // the one that is shown
let original = ""; // address of the chosen image
let overlay = ""; // address of the image with its classes
let latest = 0; // number of the last request

function say(text, isError = false) {
  at("status").textContent = text;
  at("status").classList.toggle("error", isError);
}

async function ask(path, chosen) {
  for (let attempt = 0; ; attempt++) {
    const response = await fetch(path, { method: "POST", body: chosen });
    const answer = await response.json();
    if (response.ok) return answer;
    const seconds = Number(response.headers.get("retry-after"));
    if (!(response.status === 503 && seconds && attempt < 3)) {
      throw new Error(answer.error.what + (answer.error.why ? `: ${answer.error.why}` : ""));
    }
    say(`${answer.error.what}, next try in ${seconds} s ...`);
    await new Promise((done) => setTimeout(done, 1000 * seconds));
  }
}

function draw() {
  at("picture").src = overlay && at("masked").checked ? overlay : original;
}

function drawBars(bars) {
  at("bars").replaceChildren(
    ...bars.map((entry) => {
      const item = document.createElement("li");
      const parts = ["text", "track", "name", "value", "bar"].map((name) => {
        const part = document.createElement(name === "name" || name === "value" ? "span" : "div");
        part.className = name;
        return part;
      });
      const [text, track, name, value, bar] = parts;
      name.textContent = entry.name;
      value.textContent = `${(100 * entry.share).toFixed(1)} %`;
      bar.style.width = `${100 * entry.share}%`;
      if (entry.colour) bar.style.background = entry.colour;
      text.append(name, value);
      track.append(bar);
      item.append(text, track);
      return item;
    }),
  );
}

async function choose(chosen) {
  if (!chosen) return;
  const number = ++latest;
  if (chosen.size > most) {
    say(`${chosen.name}: ${(chosen.size / 1e6).toFixed(1)} MB, the limit is ${(most / 1e6).toFixed(1)} MB`, true);
    return;
  }
  say(`${chosen.name} ...`);
  try {
    const answer = await ask("/predict?pictures=true", chosen);
    if (number !== latest) return; // another image was chosen meanwhile
    if (original) URL.revokeObjectURL(original);
    file = chosen;
    original = URL.createObjectURL(chosen);
    overlay = answer.pictures.overlay || "";
    at("masks").hidden = !overlay;
    at("name").textContent = chosen.name;
    at("headline").textContent = answer.headline;
    at("meaning").textContent = answer.meaning;
    drawBars(answer.bars);
    draw();
    if (at("explain")) {
      at("explanation").hidden = true;
      at("explain").disabled = false;
    }
    at("result").hidden = false;
    say(`answered in ${answer.seconds} s`);
  } catch (error) {
    if (number === latest) say(`${chosen.name}: ${error.message}`, true);
  }
}

async function explain() {
  const number = latest;
  at("explain").disabled = true;
  say("looking ...");
  try {
    const answer = await ask("/explain", file);
    if (number !== latest) return;
    at("heat").src = answer.picture;
    at("caption").textContent = [`${answer.method}: ${answer.class}, probability ${answer.probability}`, answer.where].filter(Boolean).join(", ");
    at("explanation").hidden = false;
    say("");
  } catch (error) {
    if (number !== latest) return;
    say(error.message, true);
    at("explain").disabled = false;
  }
}

for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
window.addEventListener("dragover", () => at("zone").classList.add("over"));
window.addEventListener("dragleave", () => at("zone").classList.remove("over"));
window.addEventListener("drop", (event) => {
  at("zone").classList.remove("over");
  choose(event.dataTransfer.files[0]);
});
at("file").addEventListener("change", (event) => {
  choose(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
at("masked").addEventListener("change", draw);
if (at("explain")) at("explain").addEventListener("click", explain);
