// The page: what the visitor chose, and the loop that classifies it.
import { PageError } from "./attached.js";
import { Camera } from "./camera.js";
import { Classifier, bestLabels } from "./classifier.js";
import { decode, inType, prepare } from "./pixels.js";
import { element, make, modelChoice, showModel, showProblem, showResult, showStage, showStatus } from "./view.js";

const TOP = 5;
const PAUSE_MS = 150; // between two looks at the camera
const OWN = "own";

const camera = new Camera(element("video"));
let photo = null; // a File
let choice = { model: MODELS[0].file, file: null }; // one of MODELS; or OWN, and the file
let opened = null; // the classifier that is open, and the choice that it belongs to

// --- The loop: one thing at a time, always what is wanted now --------------------------------------------------------

let isStale = true;
let wake = () => {};

/** To be called whenever something else is to be classified. */
function refresh() {
  isStale = true;
  wake();
}

async function loop() {
  for (;;) {
    try {
      while (opened?.choice !== choice) await openChosen();
      isStale = false;
      await look(opened.classifier);
    } catch (error) {
      fail(error);
    }
    if (isStale) continue;
    await new Promise((resolve) => {
      wake = resolve;
      if (camera.isOn) setTimeout(resolve, PAUSE_MS);
    });
  }
}

async function look(classifier) {
  const [wanted, start] = [photo, performance.now()];
  if (camera.isOn) {
    const frame = await camera.frame();
    if (frame) await classify(frame, start, classifier, { repeat: false });
  } else if (wanted) {
    try {
      await classify(await decode(wanted), start, classifier, { repeat: true });
    } catch (error) {
      if (photo !== wanted) return; // nobody wants to know any more
      photo = null;
      throw error;
    }
  } else {
    showStatus("Ready. Choose a photo.");
  }
}

async function classify(picture, start, classifier, options) {
  const { preprocessing, input } = classifier.record;
  let pixels;
  try {
    pixels = prepare(picture, preprocessing);
  } finally {
    picture.close();
  }
  const prepareMs = performance.now() - start;
  const { scores, ms } = await classifier.classify(inType(pixels, input.dtype), options);
  if (isStale) return;
  const best = bestLabels(scores, classifier.labels, TOP);
  showResult({ best, pixels, crop: preprocessing.crop, ms, prepareMs, bytes: classifier.bytes });
}

function fail(error) {
  const isExpected = error instanceof PageError;
  if (!isExpected) console.error(error);
  camera.stop(); // it would go on and wipe the message away
  showStage({ photo });
  showProblem(isExpected ? error.message : `Something went wrong: ${error.message}. Reload the page.`);
  showStatus("No result.");
}

// --- The model -------------------------------------------------------------------------------------------------------

function setChoice(model, file = null) {
  choice = { model, file };
  for (const input of document.querySelectorAll("[name=model]")) input.checked = input.value === model;
}

function choose(model, file) {
  setChoice(model, file);
  refresh();
}

/** Opens what is chosen; where that fails, what was open before is chosen again. */
async function openChosen() {
  const [before, wanted] = [opened, choice];
  const { model, file } = wanted;
  showStatus(before ? "Opening the file …" : "Loading LiteRT and the model …");
  opened = null;
  before?.classifier.close();
  try {
    const content = file ? await read(file) : await download(model);
    opened = { choice: wanted, classifier: await Classifier.open(content, file?.name ?? model) };
  } catch (error) {
    if (choice !== wanted) return;
    setChoice(before?.choice.model ?? MODELS[0].file, before?.choice.file);
    isStale = false; // it is opened with the next photo, until when the message stays
    throw error;
  }
  if (file) showOwn(file, opened.classifier);
  showModel(opened.classifier, file ? null : addressOf(model));
  if (!photo) showProblem("");
}

const addressOf = (model) => new URL(`models/${encodeURIComponent(model)}`, document.baseURI).href;

async function download(model) {
  return new Uint8Array(await (await get(addressOf(model), model)).arrayBuffer());
}

async function get(address, name) {
  const problem = (why) => new PageError(`${name} could not be loaded (${why}). Check the connection and try again.`);
  const response = await fetch(address).catch((error) => {
    throw problem(error.message);
  });
  if (!response.ok) throw problem(`status ${response.status}`);
  return response;
}

async function read(file) {
  try {
    return new Uint8Array(await file.arrayBuffer());
  } catch (error) {
    throw new PageError(`${file.name}: cannot be read (${error.message}). Choose it again.`);
  }
}

/** The visitor's own file becomes one more choice, in place of the last one. */
function showOwn(file, { record }) {
  document.querySelector(`[name=model][value=${OWN}]`)?.closest("label").remove();
  const own = { value: OWN, precision: record.precision, name: file.name, bytes: file.size };
  element("choices").append(modelChoice(own, () => choose(OWN, file)));
  document.querySelector(`[name=model][value=${OWN}]`).checked = choice.file === file;
}

// --- Photos and the camera -------------------------------------------------------------------------------------------

/** Takes a file that was chosen, dropped or pasted: a photo, or a model. */
function take(file) {
  if (file.name.toLowerCase().endsWith(".tflite")) choose(OWN, file);
  else takePhoto(file);
}

function takePhoto(file) {
  camera.stop();
  photo = file;
  showStage({ photo });
  refresh();
}

async function takeExample({ file, what }) {
  const before = photo;
  try {
    const response = await get(new URL(`photos/${file}`, document.baseURI), file);
    const example = new File([await response.blob()], what);
    if (photo === before) takePhoto(example); // else the visitor chose another one while this came
  } catch (error) {
    fail(error);
  }
}

async function startCamera(start) {
  try {
    await start();
  } catch (error) {
    fail(error);
    return;
  }
  if (!camera.isOn) return; // stopped meanwhile
  photo = null;
  showStage({ camera: true });
  refresh();
}

/** Its last picture stays as the photo. */
async function stopCamera() {
  const last = await camera.photo();
  if (last) return takePhoto(last);
  camera.stop();
  showStage({});
  refresh();
}

// --- What the visitor can do -----------------------------------------------------------------------------------------

for (const id of ["photo-file", "model-file"]) {
  element(id).addEventListener("change", ({ target }) => {
    const [file] = target.files;
    target.value = ""; // or the same file could not be chosen again
    if (!file) return;
    if (id === "model-file") choose(OWN, file);
    else take(file);
  });
}
element("camera").addEventListener("click", () => (camera.isOn ? stopCamera() : startCamera(() => camera.start())));
element("other-camera").addEventListener("click", () => startCamera(() => camera.switch()));
document.addEventListener("visibilitychange", () => {
  if (document.hidden && camera.isOn) stopCamera();
});

const transferred = (data) => [...(data?.files ?? [])][0];
document.addEventListener("paste", ({ clipboardData }) => {
  const file = transferred(clipboardData);
  if (file) take(file);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const file = transferred(event.dataTransfer);
  if (file) take(file);
  else fail(new PageError("What was dropped is no file. Save the photo first, then drop it."));
});

for (const example of EXAMPLES) {
  const image = make("img", { src: `photos/${example.file}`, alt: example.what });
  const button = make("button", { type: "button", title: example.what, onclick: () => takeExample(example) }, image);
  element("examples").append(button);
  const { credit, licence, link } = example;
  const source = link ? make("a", { href: link, rel: "noreferrer" }, licence) : licence;
  element("credits").append(make("li", {}, `${credit}, `, source));
}
for (const { file, precision, name, bytes } of MODELS) {
  element("choices").append(modelChoice({ value: file, precision, name, bytes }, () => choose(file)));
}
setChoice(choice.model);
loop();
