// The page of `polyp app`: sends an image to the server, and shows what it answers. No library, no other host.

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

function formatShare(share) {
  return share > 0 && share < 0.001 ? "< 0.1 %" : `${(share * 100).toFixed(1)} %`;
}

/** The response of the server; throws an Error with the server's reason and its status. */
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

const getJson = async (url, options) => (await request(url, options)).json();

// Settings

const settings = await getJson("api/settings").catch((error) => {
  $("results").replaceChildren(create("p", { className: "error", role: "alert" }, error.message));
  throw error;
});
const names = Object.keys(settings.models);
const view = () => document.querySelector("input[name=view]:checked").value;

$("models").append(`${names[0]}${names.length > 2 ? ` and ${names.length - 2} more` : ""} · ${settings.models[names[0]].backend}`);
$("model").append(...names.map((name) => create("option", { value: name }, name)));
document.querySelectorAll(".several").forEach((element) => (element.hidden = names.length < 2));
document.querySelectorAll(".limit").forEach((element) => (element.textContent = `up to ${settings.max_upload / 1e6} MB`));
$("max-frames").textContent = settings.max_frames;
const home = new URL(".", location.href);
$("api").textContent = `curl --data-binary @image.jpg '${home}api/predict?threshold=0.5'   # JSON\n`
  + `curl --data-binary @image.jpg -o mask.png '${home}api/mask'`;

function showSliders() {
  for (const id of ["threshold", "opacity"]) $(`${id}-value`).textContent = Number($(id).value).toFixed(2);
}

function useThresholdOfModel() {
  $("threshold").value = settings.models[$("model").value].threshold;
  showSliders();
}

function checkSize(file) {
  if (file.size > settings.max_upload) {
    throw new Error(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB, more than the ${settings.max_upload / 1e6} MB that --max-upload allows`);
  }
}

// Image

let source = null; // { key, name, file }: the key in the server's cache; the file of an upload

async function fetchResult(image, model) {
  const query = new URLSearchParams({ model, view: view(), threshold: $("threshold").value, opacity: $("opacity").value, name: image.name });
  if (image.key) {
    query.set("image", image.key);
    try {
      return [await getJson(`api/result?${query}`), query];
    } catch (error) {
      if (error.status !== 410 || !image.file) throw error; // else it is no longer cached: send it again
    }
  }
  const result = await getJson(`api/result?${query}`, { method: "POST", body: image.file });
  image.key = result.image;
  query.set("image", image.key);
  return [result, query];
}

function describe(polyps) {
  if (!polyps.length) return "No polyp found";
  const sum = (key) => polyps.reduce((total, polyp) => total + key(polyp), 0);
  const mean = sum((polyp) => polyp.probability * polyp.pixels) / sum((polyp) => polyp.pixels);
  const start = polyps.length > 1 ? `${polyps.length} polyps: together` : "1 polyp:";
  return `${start} ${formatShare(sum((polyp) => polyp.share))} of the image, mean probability ${mean.toFixed(2)}`;
}

function createPicture(result, name) {
  const { width, height } = result.size;
  const image = create("img", { src: result.picture, alt: `${name}, ${view()}: ${describe(result.polyps)}` });
  const picture = create("div", { className: "picture" }, image);
  picture.style.aspectRatio = `${width} / ${height}`;
  picture.style.width = `min(100%, ${(62 * width) / height}vh)`;
  return picture;
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

/** A row for each polyp; the polyp of the row that is pointed at is framed in the picture. */
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
  const heads = ["Polyp", "Area", "Probability", "Box, px", "Centre, px"].map((head) => create("th", { scope: "col" }, head));
  return create("table", {}, create("thead", {}, create("tr", {}, ...heads)), create("tbody", {}, ...rows));
}

function createResult(result, query, several) {
  const name = query.get("name");
  const picture = createPicture(result, name);
  const children = [create("p", { className: result.polyps.length ? "verdict found" : "verdict" }, describe(result.polyps)), picture,
    createLegend(result.legend)];
  if (several) children.unshift(create("h2", {}, result.model));
  if (result.scores) {
    const text = ["dice", "iou"].map((name) => `${{ dice: "Dice", iou: "IoU" }[name]} ${result.scores[name].toFixed(3)}`).join(" · ");
    const note = result.threshold === 0.5 ? "" : "; reports give them at 0.50";
    children.push(create("p", { className: "scores" }, create("b", {}, text), ` at threshold ${result.threshold.toFixed(2)}${note}`));
  }
  if (result.polyps.length && !several) children.push(createTable(result, picture));
  children.push(create("p", { className: "facts" },
    `${name} · ${result.size.width} × ${result.size.height} pixels · ${result.milliseconds.toFixed(0)} ms`));
  const link = (what) => {
    const target = new URLSearchParams(query);
    target.set("view", what);
    return create("a", { href: `api/picture?${target}`, download: "" }, `Download ${what}`);
  };
  const views = new Set(["mask", "overlay", ...(view() === "image" ? [] : [view()])]);
  children.push(create("p", { className: "actions" }, ...[...views].map(link)));
  return create("article", { className: "result" }, ...children);
}

async function showResults() {
  const image = source;
  const several = $("beside").checked;
  let children;
  try {
    if (!image) {
      children = [create("p", { className: "empty" }, "Choose, drop or paste an image.")];
    } else {
      if (image.file) checkSize(image.file);
      children = [];
      for (const model of several ? names : [$("model").value]) {
        children.push(createResult(...(await fetchResult(image, model)), several));
      }
    }
  } catch (error) {
    children = [create("p", { className: "error", role: "alert" }, error.message)];
  }
  $("results").classList.toggle("beside", children.length > 1);
  $("results").replaceChildren(...children);
}

let running = false;
let outdated = false;

/** Show what is chosen; what is chosen meanwhile follows, and only the latest of it. */
async function refresh() {
  outdated = true;
  if (running) return;
  running = true;
  $("results").classList.add("busy");
  while (outdated) {
    outdated = false;
    await showResults();
  }
  $("results").classList.remove("busy");
  running = false;
}

function choose(image) {
  source = image;
  for (const button of document.querySelectorAll("#gallery button")) button.ariaPressed = String(button.dataset.key === image?.key);
  const errors = document.querySelector("input[value=errors]");
  errors.disabled = Boolean(image?.file);
  errors.parentElement.title = errors.disabled ? "No truth is known for an image of your own" : "";
  if (errors.disabled && errors.checked) document.querySelector("input[value=overlay]").checked = true;
  refresh();
}

const chooseFile = (file) => choose({ name: file.name, file });

settings.images.forEach(({ key, name }, index) => {
  const image = create("img", { src: `api/thumbnails/${index}`, alt: name, width: 80, height: 80, loading: "lazy" });
  const button = create("button", { type: "button", title: name, onclick: () => choose({ key, name }) }, image);
  button.dataset.key = key;
  $("gallery").append(button);
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

// Tabs, and files that are dropped anywhere

const tabs = [...document.querySelectorAll("[role=tab]")];

function selectTab(tab) {
  for (const other of tabs) {
    other.ariaSelected = String(other === tab);
    other.tabIndex = other === tab ? 0 : -1;
    $(other.getAttribute("aria-controls")).hidden = other !== tab;
  }
  const video = tab.id === "tab-video";
  document.querySelectorAll(".image-only").forEach((element) => {
    element.hidden = video || (element.classList.contains("several") && names.length < 2);
  });
}

for (const tab of tabs) {
  tab.onclick = () => selectTab(tab);
  tab.onkeydown = ({ key }) => {
    if (key !== "ArrowLeft" && key !== "ArrowRight") return;
    const other = tabs[1 - tabs.indexOf(tab)];
    selectTab(other);
    other.focus();
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
}

$("video-file").onchange = ({ target }) => {
  if (target.files.length) chooseVideo(target.files[0]);
};

/** The objects of a response that has one as JSON in each line. */
async function* readLines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    yield* lines.map((line) => JSON.parse(line));
  }
}

async function annotateVideo(file, signal) {
  const query = new URLSearchParams({ model: $("model").value, threshold: $("threshold").value, name: file.name });
  const response = await request(`api/video?${query}`, { method: "POST", body: file, signal });
  const files = { video: [], table: [] };
  let summary = null;
  for await (const line of readLines(response)) {
    if (line.error) throw new Error(line.error);
    if (line.progress) {
      const [done, total] = line.progress;
      if (total) Object.assign($("video-progress"), { max: total, value: done });
      $("video-results").textContent = `${done}${total ? ` of ${total}` : ""} frames`;
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

$("video-form").onsubmit = async (event) => {
  event.preventDefault();
  const controller = new AbortController();
  let children;
  urls.forEach((url) => URL.revokeObjectURL(url));
  $("video-start").disabled = true;
  $("video-cancel").hidden = $("video-progress").hidden = false;
  $("video-cancel").onclick = () => controller.abort();
  $("video-progress").removeAttribute("value");
  $("video-results").textContent = "Uploading …";
  try {
    if (!videoFile) throw new Error("Choose a video first.");
    checkSize(videoFile);
    const { summary, video, table } = await annotateVideo(videoFile, controller.signal);
    const stem = videoFile.name.replace(/\.[^.]*$/, "");
    urls = [video, table].map((blob) => URL.createObjectURL(blob));
    const note = summary.damaged ? "; the video is damaged or cut off after these" : "";
    const found = summary.frames_with_polyps ? "verdict found" : "verdict";
    children = [create("article", { className: "result" },
      create("p", { className: found }, `${summary.frames_with_polyps} of ${summary.frames} frames show a polyp${note}`),
      create("video", { src: urls[0], controls: true }),
      create("p", { className: "actions" },
        create("a", { href: urls[0], download: `${stem}_polyps.webm` }, "Download video"),
        create("a", { href: urls[1], download: `${stem}_polyps.csv` }, "Download table of frames")))];
  } catch (error) {
    children = [create("p", { className: "error", role: "alert" }, error.name === "AbortError" ? "Cancelled." : error.message)];
  }
  $("video-results").replaceChildren(...children);
  $("video-start").disabled = false;
  $("video-cancel").hidden = $("video-progress").hidden = true;
};

useThresholdOfModel();
choose(settings.images[0] ?? null);
