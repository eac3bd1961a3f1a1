// What the page shows. Names, labels and messages are text, never markup.

export const element = (id) => document.getElementById(id);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const percent = (score) => `${(100 * score).toFixed(1)} %`;
const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
/** The first of the names that ImageNet joins with commas. */
const short = (label) => label.split(", ")[0];

/** Makes an element with attributes or properties, and with children. */
export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Says what went wrong, until something goes well. */
export function showProblem(message) {
  element("problem").textContent = message;
  if (message) element("problem").scrollIntoView({ block: "nearest" }); // on a phone, the choice is further down
}

/** Says what is being done, in place of a result. */
export function showStatus(message) {
  element("status").textContent = message;
  element("status").hidden = false;
  element("answer").hidden = element("facts").hidden = true;
}

/** Shows either a photo, by its address, or the camera, or the invitation to choose one. */
export function showStage({ photo = null, camera = false }) {
  const picture = element("picture");
  URL.revokeObjectURL(picture.src);
  if (photo) picture.src = URL.createObjectURL(photo);
  else picture.removeAttribute("src");
  picture.alt = photo?.name ? `Your photo ${photo.name}` : "Your photo";
  picture.hidden = !photo;
  element("video").hidden = !camera;
  element("invitation").hidden = Boolean(photo) || camera;
  element("camera").textContent = camera ? "Stop the camera" : "Use the camera";
  element("other-camera").hidden = !camera;
  // Read out once for a photo, but not several times a second.
  element("answer").setAttribute("aria-live", camera ? "off" : "polite");
}

/** Shows the best labels and what they took. */
export function showResult({ best, pixels, crop, ms, prepareMs, bytes }) {
  element("verdict").textContent = short(best[0].label);
  element("bars").replaceChildren(...best.map(bar));
  element("ms").textContent = milliseconds(ms);
  element("ms").dataset.ms = ms;
  element("prepare-ms").textContent = milliseconds(prepareMs);
  element("prepare-ms").dataset.ms = prepareMs;
  element("bytes").textContent = megabytes(bytes);
  drawInput(pixels, crop);
  showProblem("");
  element("status").hidden = true;
  element("answer").hidden = element("facts").hidden = false;
}

function bar({ label, score }) {
  const fill = make("i");
  fill.style.width = `${100 * score}%`;
  const item = make(
    "li",
    {},
    make("span", { className: "label", title: label }, short(label)),
    make("span", { className: "score" }, percent(score)),
    make("span", { className: "bar", "aria-hidden": "true" }, fill),
  );
  Object.assign(item.dataset, { label, score: score.toFixed(6) });
  return item;
}

function drawInput(pixels, { width, height }) {
  element("size").textContent = `Input, ${width} × ${height}`;
  const canvas = element("input");
  Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  for (let from = 0, to = 0; from < pixels.length; from += 3, to += 4) {
    image.data.set([pixels[from], pixels[from + 1], pixels[from + 2], 255], to);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Shows what the open model is. */
export function showModel({ name, record, labels }, address) {
  const { height, width } = record.preprocessing.crop;
  element("labels").querySelector("summary").textContent =
    `What it knows: ${labels.length} classes, from ${width} × ${height} pixels`;
  element("labels").querySelector("p").textContent = labels.map(short).join(", ");
  const link = element("download");
  link.hidden = !address;
  if (address) Object.assign(link, { href: address, download: name, ariaLabel: `Download ${name}` });
}

/** A model to choose: its precision, the name of what was exported or of the file, and its size. */
export function modelChoice({ value, precision, name, bytes }, onChoose) {
  const input = make("input", { type: "radio", name: "model", value, onchange: onChoose });
  const title = make("span", {}, make("b", {}, precision), make("small", {}, name));
  return make("label", { className: "choice" }, input, title, make("span", {}, megabytes(bytes)));
}
