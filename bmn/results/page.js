"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const player = at("player"), axis = at("axis");
const COLUMNS = [["rank", "#"], ["start", "start"], ["end", "end"], ["length", "length"], ["score", "score"]];
const ROWS = {curves: 64, lane: 18, top: 6, ticks: 20};         // heights in the time line, in pixels

// What is shown: a video of DATA, the most proposals, those in the order of the table, the one that was chosen, the end of the
// stretch that is being played, and how the table is sorted.
const shown = {video: null, most: 10, rows: [], chosen: null, until: null, key: "rank", down: false};

function clock(seconds, digits = 1) {
  const whole = Math.max(0, seconds), minutes = Math.floor(whole / 60);
  const rest = (whole - 60 * minutes).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  return Number(rest) >= 60 ? clock(60 * (minutes + 1), digits) : minutes + ":" + rest;
}

function element(name, attributes, parent, text) {
  const one = ["svg", "rect", "line", "path", "text", "title"].includes(name)
    ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
  if (text !== undefined) one.textContent = text;
  parent.append(one);
  return one;
}

function open(number) {
  const video = DATA[number];
  player.pause();
  Object.assign(shown, {video, chosen: null, until: null});
  at("name").textContent = video.name;
  at("videos").value = number;
  document.title = video.name;
  at("number").max = Math.max(1, video.proposals.length);
  at("number").value = shown.most;
  at("trouble").hidden = !!video.src;
  player.hidden = at("play").disabled = !video.src;
  if (video.src) {
    player.src = video.src;
  } else {
    player.removeAttribute("src");
    player.load();
    trouble("There is no file of this video.");
  }
  refresh();
}

function trouble(text) {
  player.hidden = at("play").disabled = true;
  at("trouble").textContent = text;
  at("trouble").hidden = false;
}

function refresh() {
  const least = Number(at("score").value), most = Number(at("number").value), sign = shown.down ? -1 : 1;
  at("score-shown").textContent = least.toFixed(3);
  at("number-shown").textContent = Math.min(most, shown.video.proposals.length);
  shown.rows = shown.video.proposals.filter((one, index) => index < most && one.score >= least)
    .sort((one, other) => sign * (one[shown.key] - other[shown.key]) || one.rank - other.rank);
  if (!shown.rows.includes(shown.chosen)) shown.chosen = null;
  at("count").textContent = shown.rows.length + " of " + shown.video.proposals.length + " proposals";
  drawTable();
  drawLine();
}

function drawTable() {
  for (const head of at("heads").children) {
    const mine = head.dataset.key === shown.key;
    head.setAttribute("aria-sort", mine ? (shown.down ? "descending" : "ascending") : "none");
    head.firstChild.textContent = head.dataset.title + (mine ? (shown.down ? " ▾" : " ▴") : "");
  }
  at("rows").replaceChildren();
  for (const one of shown.rows) {
    const row = element("tr", {"data-rank": one.rank, class: one === shown.chosen ? "chosen" : ""}, at("rows"));
    element("button", {title: "play proposal " + one.rank}, element("td", {}, row), one.rank);
    for (const key of ["start", "end", "length"]) element("td", {}, row, clock(one[key], 2));
    element("td", {}, row, one.score.toFixed(4));
    row.onclick = () => choose(one);
  }
}

function drawLine() {
  const {video, rows} = shown, width = Math.max(200, axis.clientWidth), across = seconds => seconds / video.seconds * width;
  axis.replaceChildren();
  let down = ROWS.top;
  if (video.start.length) {
    for (const level of [0, 0.5, 1])
      element("line", {class: "grid", x1: 0, x2: width, y1: down + level * ROWS.curves, y2: down + level * ROWS.curves}, axis);
    for (const kind of ["start", "end"]) {
      const points = video[kind].map((value, index) =>
        across(index * video.seconds / video[kind].length).toFixed(1) + " " + (down + (1 - value) * ROWS.curves).toFixed(1));
      element("path", {class: "curve " + kind, d: "M" + points.join("L")}, axis);
    }
    down += ROWS.curves + 8;
  }
  const lanes = [];     // the pixel from which each lane is free
  for (const [first, last, label] of video.actions) {
    const text = element("text", {class: "label"}, axis, label), wide = text.getComputedTextLength() + 8;
    const left = Math.max(0, Math.min(across(first), width - wide)), right = Math.max(across(last), left + wide);
    let lane = lanes.findIndex(free => free <= left);
    if (lane < 0) lane = lanes.length;
    lanes[lane] = right;
    text.setAttribute("x", left + 4);
    text.setAttribute("y", down + lane * ROWS.lane + 10.5);
    const box = element("rect", {class: "truth", x: across(first), width: Math.max(3, across(last) - across(first)),
                                 y: down + lane * ROWS.lane, height: ROWS.lane - 4, rx: 2}, axis);
    element("title", {}, box, label + ", " + clock(first) + " to " + clock(last));
    axis.append(text);
  }
  down += lanes.length * ROWS.lane + (lanes.length ? 4 : 0);
  const height = Math.max(4, Math.min(15, 260 / Math.max(1, rows.length)));
  const best = Math.max(1e-12, ...video.proposals.map(one => one.score));
  for (const one of rows) {
    const left = Math.max(0, across(one.start)), right = Math.min(width, across(one.end));
    const bar = element("rect", {class: "bar" + (one === shown.chosen ? " chosen" : ""), "data-rank": one.rank, rx: 2, x: left,
                                 y: down, width: Math.max(3, right - left), height: height - Math.min(3, height / 4),
                                 "fill-opacity": (0.3 + 0.7 * one.score / best).toFixed(3)}, axis);
    element("title", {}, bar, "proposal " + one.rank + ": " + clock(one.start) + " to " + clock(one.end) + ", score " + one.score.toFixed(4));
    bar.onclick = event => { event.stopPropagation(); choose(one); };
    down += height;
  }
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200];
  const step = steps.find(one => across(one) >= 58) || video.seconds;
  for (let time = 0; time <= video.seconds + 1e-9; time += step) {
    element("line", {class: "grid", x1: across(time), x2: across(time), y1: down + 2, y2: down + 6}, axis);
    const anchor = time === 0 ? "start" : across(time) > width - 20 ? "end" : "middle";
    element("text", {x: across(time), y: down + ROWS.ticks - 2, "text-anchor": anchor}, axis, clock(time, step < 1 ? 1 : 0));
  }
  down += ROWS.ticks;
  axis.setAttribute("height", down);
  axis.setAttribute("viewBox", "0 0 " + width + " " + down);
  element("line", {id: "head", x1: 0, x2: 0, y1: 0, y2: down - ROWS.ticks}, axis).toggleAttribute("hidden", !video.src);
  tell();
}

function tell() {       // where the video is: the line, the words
  const head = at("head"), x = player.currentTime / shown.video.seconds * Math.max(200, axis.clientWidth);
  head.setAttribute("x1", x);
  head.setAttribute("x2", x);
  at("playing").textContent = player.paused ? "play" : "pause";
  at("now").textContent = (shown.video.src ? clock(player.currentTime) + " of " : "") + clock(shown.video.seconds) +
    (shown.chosen ? ", proposal " + shown.chosen.rank : "");
}

function choose(one) {
  shown.chosen = one;
  for (const part of document.querySelectorAll("[data-rank]"))
    part.classList.toggle("chosen", Number(part.dataset.rank) === one.rank);
  const row = at("rows").querySelector('[data-rank="' + one.rank + '"]');
  if (row && at("scroll").scrollHeight > at("scroll").clientHeight) row.scrollIntoView({block: "nearest"});
  seek(one.start, one.end);
  start();
}

let sought = null;      // where we ourselves are seeking to: any other seeking is the user's
function seek(time, until) {
  shown.until = until;
  sought = time;
  player.currentTime = time;
  tell();
}

function start() {
  if (player.src) player.play().catch(() => tell());
}

function step(by) {
  if (!shown.rows.length) return;
  const here = shown.rows.indexOf(shown.chosen), count = shown.rows.length;
  choose(shown.rows[here < 0 ? (by > 0 ? 0 : count - 1) : (here + by + count) % count]);
}

function toggle() {
  if (!player.paused) return player.pause();
  const one = shown.chosen;
  if (one && player.currentTime >= one.end - 0.05 && player.currentTime <= one.end + 0.3) seek(one.start, one.end);
  start();
}

function watch() {      // a stretch ends where its proposal ends
  if (shown.until !== null && !player.paused && !player.seeking && player.currentTime >= shown.until) {
    shown.until = null;
    player.pause();
  }
  tell();
  if (!player.paused) requestAnimationFrame(watch);
}

function save(ending, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type}));
  link.download = (shown.video.name.replace(/[^\p{L}\p{N}._-]+/gu, "_") || "video") + ending;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function saveCsv() {
  const cell = text => /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  const lines = shown.rows.map(one => [cell(shown.video.name), one.rank, one.start, one.end, one.score].join(","));
  save(".csv", "text/csv", ["video,rank,start,end,score", ...lines].join("\n") + "\n");
}

function saveJson() {
  const proposals = shown.rows.map(one => ({score: one.score, segment: [one.start, one.end]}));
  save(".json", "application/json", JSON.stringify({results: {[shown.video.name]: proposals}}, null, 1) + "\n");
}

for (const video of DATA)
  video.proposals = video.proposals.map(([score, start, end], index) =>
    ({rank: index + 1, score, start, end, length: end - start}));
DATA.forEach((video, number) => element("option", {value: number}, at("videos"), video.name));
at("choice").hidden = DATA.length < 2;
for (const [key, title] of COLUMNS) {
  const head = element("th", {"data-key": key, "data-title": title, scope: "col"}, at("heads"));
  element("button", {}, head, title).onclick = () => {
    shown.down = shown.key === key ? !shown.down : key === "score";
    shown.key = key;
    refresh();
  };
}
for (const [kind, words] of [["start", "start"], ["end", "end"], ["truth", "known actions"], ["bar", "proposals"]]) {
  const item = element("span", {}, at("legend"));
  element("i", {style: "background: var(--" + kind + ")"}, item);
  item.append(words);
}
const best = Math.max(0, ...DATA.flatMap(video => video.proposals.map(one => one.score)));
at("score").max = best;
at("score").step = best / 1000 || 1;
at("score").oninput = refresh;
at("number").oninput = () => { shown.most = Number(at("number").value); refresh(); };
at("videos").onchange = () => { location.hash = encodeURIComponent(DATA[at("videos").value].name); };
at("previous").onclick = () => step(-1);
at("next").onclick = () => step(1);
at("play").onclick = toggle;
at("csv").onclick = saveCsv;
at("json").onclick = saveJson;
axis.onclick = event => {
  const box = axis.getBoundingClientRect();
  seek((event.clientX - box.left) / box.width * shown.video.seconds, null);
};
player.onplay = () => requestAnimationFrame(watch);
player.onpause = player.onseeked = player.ontimeupdate = tell;
player.onseeking = () => {
  if (sought === null || Math.abs(player.currentTime - sought) > 0.01) shown.until = null;
  sought = null;
};
player.onerror = () => trouble("This browser cannot play " + decodeURIComponent(shown.video.src) + ".");
document.onkeydown = event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  const act = {n: () => step(1), p: () => step(-1), " ": toggle}[event.key];
  if (!act || (event.key === " " && ["BUTTON", "VIDEO"].includes(event.target.tagName))) return;
  event.preventDefault();
  act();
};
document.onclick = event => {          // so that the space key does not press a button that the mouse has pressed
  const button = event.target.closest("button");
  if (button && event.detail > 0) button.blur();
};
window.onresize = drawLine;
window.onhashchange = () => {
  let name = location.hash.slice(1);
  try { name = decodeURIComponent(name); } catch { /* it is no name of ours */ }
  open(Math.max(0, DATA.findIndex(video => video.name === name)));
};
window.onhashchange();
