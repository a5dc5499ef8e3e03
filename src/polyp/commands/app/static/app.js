// The page of `polyp app`: sends images and videos to the server and shows the results. It uses no library.

const $ = (id) => document.getElementById(id);

const LEGENDS = {
  probability: "probability of polyp; white: outline of the prediction",
  uncertainty: "standard deviation of the probability between the image and its flips; white: outline of the prediction",
  mask: "white: prediction",
  image: "the image alone",
};

/** An element with properties and children; text is never parsed as HTML. */
function create(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const formatShare = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(share * 100).toFixed(1)} %`);

const formatCount = (count, noun) => `${count} ${noun}${count > 1 ? "s" : ""}`;

/** The server's response; if that is an error, throws an Error with its reason and status. */
async function request(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: is polyp app still running?");
  }
  if (response.ok) return response;
  const reason = await response.json().then((body) => body.error, () => response.statusText);
  throw Object.assign(new Error(reason), { status: response.status });
}

/** The JSON objects in the lines of a response; throws an Error as `request` does if one has an error. */
async function* requestLines(url, options) {
  const reader = (await request(url, options)).body.pipeThrough(new TextDecoderStream()).getReader();
  const read = () => reader.read().catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The connection broke off.");
  });
  let text = "";
  for (let part = await read(); !part.done; part = await read()) {
    const lines = (text + part.value).split("\n");
    text = lines.pop(); // the beginning of the next line
    for (const line of lines.map((content) => JSON.parse(content))) {
      if (line.error) throw Object.assign(new Error(line.error), { status: line.status });
      yield line;
    }
  }
}

const describeQueue = (position, noun) =>
  `Waiting: ${formatCount(position, noun)} ${position > 1 ? "are" : "is"} before yours.`;

// Settings

const settings = await request("api/settings").then((response) => response.json()).catch((error) => {
  $("results").replaceChildren(create("p", { className: "error", role: "alert" }, error.message));
  throw error;
});
const names = Object.keys(settings.models);
const view = () => document.querySelector("input[name=view]:checked").value;

const suffix = names.length > 2 ? ` and ${names.length - 2} more` : ""; // the last is the average of all
$("models").append(`Model: ${names[0]}${suffix} (${settings.models[names[0]].backend})`);
$("model").append(...names.map((name) => create("option", { value: name }, name)));
document.body.classList.toggle("single", names.length < 2);
document.querySelectorAll(".limit").forEach((element) => (element.textContent = `up to ${settings.max_upload / 1e6} MB`));
$("max-frames").textContent = settings.max_frames;
const server = new URL(".", location.href);
$("api").textContent = `curl --data-binary @image.jpg '${server}api/predict?threshold=0.5'   # JSON\n`
  + `curl --data-binary @image.jpg -o mask.png '${server}api/mask'`;

function showSliders() {
  for (const id of ["threshold", "opacity"]) $(`${id}-value`).textContent = Number($(id).value).toFixed(2);
}

function useThresholdOfModel() {
  $("threshold").value = settings.models[$("model").value].threshold;
  showSliders();
}

function checkSize(file) {
  if (file.size > settings.max_upload) {
    const size = `${(file.size / 1e6).toFixed(1)} MB, more than the ${settings.max_upload / 1e6} MB that --max-upload allows`;
    throw Object.assign(new Error(`${file.name} has ${size}`), { status: 413 });
  }
}

// Image

let source = null; // the chosen image: its key in the server's cache, its name, and the file of an upload
let shownSource = null; // the image whose result is on the page
let position = 0; // number of requests before the current one

async function requestResult(url, options) {
  for await (const line of requestLines(url, options)) {
    if (!("ahead" in line)) return line;
    position = line.ahead;
  }
  throw new Error("The connection broke off.");
}

async function fetchResult(image, model) {
  const [threshold, opacity] = [$("threshold").value, $("opacity").value];
  const query = new URLSearchParams({ model, view: view(), threshold, opacity, name: image.name });
  if (image.key) {
    query.set("image", image.key);
    try {
      return [await requestResult(`api/result?${query}`), query];
    } catch (error) {
      if (error.status !== 410 || !image.file) throw error; // 410: no longer cached, must be sent again
    }
  }
  const result = await requestResult(`api/result?${query}`, { method: "POST", body: image.file });
  image.key = result.image;
  query.set("image", image.key);
  return [result, query];
}

function describe(polyps) {
  if (!polyps.length) return "No polyp found";
  const sum = (key) => polyps.reduce((total, polyp) => total + key(polyp), 0);
  const mean = sum((polyp) => polyp.probability * polyp.pixels) / sum((polyp) => polyp.pixels);
  return `${formatCount(polyps.length, "polyp")}: ${formatShare(sum((polyp) => polyp.share))} of the image, mean probability ${mean.toFixed(2)}`;
}

function createLegend(legend) {
  const element = create("p", { className: "legend" });
  if (legend.scale) {
    const scale = create("i", { className: "scale" });
    scale.style.background = `linear-gradient(90deg, ${legend.scale.map((rgb) => `rgb(${rgb.join(" ")})`).join()})`;
    element.append(legend.ends[0], scale, legend.ends[1]);
  }
  for (const { label, colour, share } of legend.items ?? []) {
    const swatch = create("i");
    swatch.style.background = `rgb(${colour.join(" ")})`;
    element.append(create("span", {}, swatch, share === undefined ? label : `${label} ${formatShare(share)}`));
  }
  if (LEGENDS[view()]) element.append(create("small", {}, LEGENDS[view()]));
  return element;
}

/** A row for each polyp; a frame in the picture shows the polyp of the row under the pointer. */
function createTable(result, picture) {
  const frame = create("div", { hidden: true });
  picture.append(frame);
  const rows = result.polyps.map((polyp, index) => {
    const { box, centroid } = polyp;
    const cells = [index + 1, formatShare(polyp.share), polyp.probability.toFixed(2), `${box.width} × ${box.height}`,
      `${centroid.x.toFixed(0)}, ${centroid.y.toFixed(0)}`];
    const row = create("tr", { tabIndex: 0 }, ...cells.map((cell) => create("td", {}, cell)));
    row.onpointerenter = row.onfocus = () => {
      const { width, height } = result.size;
      Object.assign(frame.style, {
        left: `${(100 * box.left) / width}%`, top: `${(100 * box.top) / height}%`,
        width: `${(100 * box.width) / width}%`, height: `${(100 * box.height) / height}%`,
      });
      frame.hidden = false;
    };
    row.onpointerleave = row.onblur = () => (frame.hidden = true);
    return row;
  });
  const headings = ["Polyp", "Area", "Probability", "Box, px", "Centre, px"].map((text) => create("th", { scope: "col" }, text));
  const table = create("table", {}, create("thead", {}, create("tr", {}, ...headings)), create("tbody", {}, ...rows));
  return create("div", { className: "table" }, table);
}

function createActions(query) {
  const link = (name) => {
    const target = new URLSearchParams(query);
    target.set("view", name);
    return create("a", { href: `api/picture?${target}`, download: "" }, `Download ${name}`);
  };
  const views = new Set(["mask", "overlay", ...(view() === "image" ? [] : [view()])]);
  return create("p", { className: "actions" }, ...[...views].map(link));
}

/** A model's result and its details; results of several models contain their details. */
function createResult([result, query], several) {
  const [name, { width, height }, text] = [query.get("name"), result.size, describe(result.polyps)];
  const picture = create("div", { className: "picture" },
    create("img", { src: result.picture, alt: `${name}, ${view()}: ${text}` }));
  picture.style.setProperty("--ratio", width / height);
  const heading = create("div", { className: "row" },
    create("p", { className: result.polyps.length ? "verdict found" : "verdict" }, text));
  if (result.scores) {
    const scores = `Dice ${result.scores.dice.toFixed(3)} · IoU ${result.scores.iou.toFixed(3)}`;
    const note = result.threshold === 0.5 ? "" : ` at threshold ${result.threshold.toFixed(2)}; reports give them at 0.50`;
    heading.append(create("p", { className: "scores" }, create("b", {}, scores), note));
  }
  const facts = create("p", { className: "facts" },
    `${name} · ${width} × ${height} pixels · ${result.milliseconds.toFixed(0)} ms`);
  const article = create("article", { className: "result" }, heading, create("div", { className: "frame" }, picture),
    create("div", { className: "row" }, createLegend(result.legend), facts));
  if (several) {
    article.prepend(create("h2", {}, result.model));
    article.append(createActions(query));
    return { article, details: [] };
  }
  const tables = result.polyps.length ? [createTable(result, picture)] : [];
  return { article, details: [...tables, createActions(query)] };
}

async function showResults() {
  const image = source;
  const several = $("beside").checked;
  $("image-error").textContent = $("gallery-error").textContent = "";
  try {
    if (image.file) checkSize(image.file);
    const results = [];
    for (const model of several ? names : [$("model").value]) results.push(await fetchResult(image, model));
    const created = results.map((result) => createResult(result, several));
    $("results").classList.toggle("beside", created.length > 1);
    $("results").replaceChildren(...created.map(({ article }) => article));
    $("details").replaceChildren(...created.flatMap(({ details }) => details));
    shownSource = image;
  } catch (error) {
    if ([400, 410, 413, 415].includes(error.status)) {
      $(image.file ? "image-error" : "gallery-error").textContent = error.message;
      if (source === image) select(shownSource); // its result is still on the page
    } else {
      const button = create("button", { type: "button", onclick: refresh }, "Try again");
      $("results").replaceChildren(create("div", { className: "problem" },
        create("p", { className: "error", role: "alert" }, error.message), create("p", { className: "actions" }, button)));
      $("details").replaceChildren();
    }
  }
}

const [statusText, statusTime] = $("status").children;
let running = false;
let outdated = false;

/** Show the result of the chosen image, if any, and again if the image or a setting changes meanwhile. */
async function refresh() {
  outdated = true;
  if (running) return;
  running = true;
  $("panel-image").classList.add("busy");
  while (outdated && source) {
    outdated = false;
    const started = performance.now();
    const showStatus = () => {
      const seconds = Math.floor((performance.now() - started) / 1000);
      const text = position ? describeQueue(position, "request") : "Finding polyps …";
      if (statusText.textContent !== text) statusText.textContent = text; // screen readers read each change
      statusTime.textContent = seconds ? ` ${seconds} s` : "";
    };
    showStatus();
    const timer = setInterval(showStatus, 250);
    await showResults();
    clearInterval(timer);
    position = 0;
  }
  statusText.textContent = "";
  $("panel-image").classList.remove("busy");
  running = false;
}

/** Mark an image as the chosen one; null for none. */
function select(image) {
  source = image;
  for (const input of document.querySelectorAll("#gallery input")) input.checked = input.value === image?.key;
  const errors = document.querySelector("input[value=errors]");
  errors.disabled = Boolean(image?.file);
  $("errors-hint").hidden = !errors.disabled;
  if (errors.disabled && errors.checked) document.querySelector("input[value=overlay]").checked = true;
}

function choose(image) {
  select(image);
  refresh();
}

const chooseFile = (file) => choose({ name: file.name, file });

settings.images.forEach(({ key, name }, index) => {
  const image = create("img", { src: `api/thumbnails/${index}`, alt: name, width: 80, height: 80, loading: "lazy" });
  const input = create("input", { type: "radio", name: "image", value: key, onchange: () => choose({ key, name }) });
  $("gallery").append(create("label", { title: name }, input, image));
});
if (!settings.images.length) $("gallery").append(create("p", { className: "hint" }, `None here: ${settings.note}`));

$("image-file").onchange = ({ target }) => {
  if (target.files.length) chooseFile(target.files[0]);
  target.value = "";
};
for (const id of ["threshold", "opacity"]) {
  $(id).oninput = () => {
    showSliders();
    refresh();
  };
}
$("views").onchange = $("beside").onchange = refresh;
$("model").onchange = () => {
  useThresholdOfModel();
  refresh();
};
document.onpaste = ({ clipboardData }) => {
  if (clipboardData.files.length) chooseFile(clipboardData.files[0]);
};

// Tabs, and files that are dropped on the page

const tabs = [...document.querySelectorAll("[role=tab]")];

function selectTab(selected) {
  for (const tab of tabs) {
    tab.ariaSelected = String(tab === selected);
    tab.tabIndex = tab === selected ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = tab !== selected;
  }
  document.body.classList.toggle("video", selected.id === "tab-video");
}

for (const tab of tabs) {
  tab.onclick = () => selectTab(tab);
  tab.onkeydown = ({ key }) => {
    if (key !== "ArrowLeft" && key !== "ArrowRight") return;
    const next = tabs[1 - tabs.indexOf(tab)];
    selectTab(next);
    next.focus();
  };
}
document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
};
document.ondragleave = ({ relatedTarget }) => relatedTarget ?? document.body.classList.remove("dragging");
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const file = event.dataTransfer.files[0];
  if (!file) return;
  if (file.type.startsWith("video/") || !$("panel-video").hidden) {
    selectTab($("tab-video"));
    chooseVideo(file);
  } else {
    chooseFile(file);
  }
};

// Video

let videoFile = null;
let urls = [];

function chooseVideo(file) {
  videoFile = file;
  $("video-name").textContent = file.name;
  $("video-error").textContent = "";
}

$("video-file").onchange = ({ target }) => {
  if (target.files.length) chooseVideo(target.files[0]);
};

const [videoStatus, videoProgress] = $("video-status").children;

async function annotateVideo(file, signal) {
  const query = new URLSearchParams({ model: $("model").value, threshold: $("threshold").value, name: file.name });
  const files = { video: [], table: [] };
  let summary = null;
  let first = null; // the first progress that was reported
  for await (const line of requestLines(`api/video?${query}`, { method: "POST", body: file, signal })) {
    if (line.ahead) {
      videoStatus.textContent = describeQueue(line.ahead, "video");
    } else if (line.progress) {
      const [completed, total] = line.progress;
      const now = performance.now();
      first ??= { completed, time: now };
      let text = `Finding polyps … ${completed}${total ? ` of ${total}` : ""} frames`;
      if (total && completed > first.completed) {
        const seconds = ((now - first.time) / 1000 / (completed - first.completed)) * (total - completed);
        text += `, about ${formatTime(Math.ceil(seconds), 0)} left`;
      }
      if (total) Object.assign(videoProgress, { max: total, value: completed });
      videoStatus.textContent = text;
    } else if ("frames" in line) {
      summary = line;
    } else {
      const [[kind, text]] = Object.entries(line);
      files[kind].push(Uint8Array.from(atob(text), (character) => character.charCodeAt(0)));
    }
  }
  if (!summary || !files.table.length) throw new Error("The connection broke off.");
  return { summary, video: new Blob(files.video, { type: "video/webm" }), table: new Blob(files.table, { type: "text/csv" }) };
}

/** Minutes and seconds, such as 1:04.2. */
function formatTime(seconds, digits = 1) {
  return `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0")}`;
}

/** The frames of a video's table. */
function parseTable(text) {
  return text.trimEnd().split("\n").slice(1).map((line) => {
    const [, , polyps, share, , probability] = line.split(",").map(Number);
    return { polyps, share, probability };
  });
}

/** The parts of a video that show polyps, in frames, joined over gaps of less than half a second. */
function findParts(frames, rate) {
  const parts = [];
  frames.forEach(({ polyps, share }, frame) => {
    if (!polyps) return;
    const last = parts.at(-1);
    if (last && frame - last.end < rate / 2) Object.assign(last, { end: frame, share: Math.max(last.share, share) });
    else parts.push({ start: frame, end: frame, share });
  });
  return parts;
}

/** A bar with the parts that show polyps, a slider for the frames, and a description of the frame's polyps. */
function createTimeline(video, frames, parts, rate) {
  const bar = create("div", { className: "bar" }, ...parts.map(({ start, end }) => {
    const part = create("i");
    part.style.left = `${(100 * start) / frames.length}%`;
    part.style.width = `${(100 * (end + 1 - start)) / frames.length}%`;
    return part;
  }));
  const slider = create("input", { type: "range", min: 0, max: frames.length - 1, value: 0, ariaLabel: "Frame" });
  const text = create("output");
  const showFrame = (frame) => {
    const { polyps, share, probability } = frames[frame];
    const description = polyps ? `${formatCount(polyps, "polyp")}, ${formatShare(share)} of the image, probability ${probability.toFixed(2)}` : "no polyp";
    slider.value = frame;
    slider.ariaValueText = text.textContent = `Frame ${frame + 1} of ${frames.length}, ${formatTime(frame / rate)}: ${description}`;
  };
  const jump = (frame) => {
    video.pause();
    video.currentTime = (frame + 0.5) / rate; // the middle of the frame, in case times are rounded
    showFrame(frame);
  };
  bar.onclick = ({ clientX }) => {
    const { left, width } = bar.getBoundingClientRect();
    jump(Math.min(frames.length - 1, Math.floor(((clientX - left) / width) * frames.length)));
  };
  slider.oninput = () => jump(Number(slider.value));
  video.ontimeupdate = () => showFrame(Math.min(frames.length - 1, Math.floor(video.currentTime * rate)));
  showFrame(0);
  const legend = create("span", { className: "legend" }, create("i"), "shows a polyp");
  return { timeline: create("div", { className: "timeline" }, bar, slider, create("div", { className: "row" }, text, legend)), jump };
}

function createFindings(parts, rate, jump) {
  const items = parts.map(({ start, end, share }) => create("li", {}, create("button", { type: "button", onclick: () => jump(start) },
    create("b", {}, `${formatTime(start / rate)} – ${formatTime((end + 1) / rate)}`), ` up to ${formatShare(share)} of the image`)));
  return [create("h2", {}, "Found polyps"), parts.length ? create("ol", {}, ...items) : create("p", { className: "hint" }, "None")];
}

async function showVideo({ summary, video, table }, stem) {
  const frames = parseTable(await table.text());
  const parts = findParts(frames, summary.rate);
  urls = [video, table].map((blob) => URL.createObjectURL(blob));
  const player = create("video", { src: urls[0], controls: true, muted: true });
  const { timeline, jump } = createTimeline(player, frames, parts, summary.rate);
  const note = summary.damaged ? "; the video is damaged or cut off after these"
    : summary.frames === settings.max_frames ? "; those after these are not read" : "";
  const className = summary.frames_with_polyps ? "verdict found" : "verdict";
  $("video-results").replaceChildren(create("article", { className: "result" },
    create("p", { className }, `${summary.frames_with_polyps} of ${summary.frames} frames show a polyp${note}`),
    player, timeline,
    create("p", { className: "actions" },
      create("a", { href: urls[0], download: `${stem}_polyps.webm` }, "Download video"),
      create("a", { href: urls[1], download: `${stem}_polyps.csv` }, "Download table"))));
  $("findings").replaceChildren(...createFindings(parts, summary.rate, jump));
  if (parts.length) jump(parts[0].start);
}

$("video-form").onsubmit = async (event) => {
  event.preventDefault();
  $("video-error").textContent = "";
  const controller = new AbortController();
  try {
    if (!videoFile) throw new Error("Choose a video first.");
    checkSize(videoFile);
    $("video-start").disabled = true;
    $("video-cancel").hidden = $("video-status").hidden = false;
    $("video-results").hidden = true;
    $("video-cancel").onclick = () => controller.abort();
    videoProgress.removeAttribute("value");
    videoStatus.textContent = "Uploading …";
    const result = await annotateVideo(videoFile, controller.signal);
    urls.forEach((url) => URL.revokeObjectURL(url));
    await showVideo(result, videoFile.name.replace(/\.[^.]*$/, ""));
  } catch (error) {
    $("video-error").textContent = error.name === "AbortError" ? "Cancelled." : error.message;
  }
  $("video-results").hidden = $("video-start").disabled = false;
  $("video-cancel").hidden = $("video-status").hidden = true;
};

useThresholdOfModel();
if (settings.images.length) {
  choose({ ...settings.images[0] });
} else {
  $("results").append(create("p", { className: "empty" }, "Add an image, and its polyps are outlined here."));
}
