// Opens a .tflite file and runs it on the processor with LiteRT.js.
import { Tensor, loadAndCompile, loadLiteRt, unloadLiteRt } from "@litertjs/core";
import { PageError, readAttached } from "./attached.js";

const MAX_MODEL_BYTES = 512 * 1024 * 1024;
const RUNS = 9;
const PATIENCE_MS = 500; // for repeating a run to measure it

let runtime = null;

/** Loads LiteRT once. */
function loadRuntime() {
  // It reports what it does, not only what fails, as an error.
  const quiet = (line) => console.debug(line);
  runtime ??= (async () => {
    window.Module = { print: quiet, printErr: quiet };
    try {
      return await loadLiteRt(new URL("wasm/", document.baseURI).href);
    } catch (error) {
      runtime = null;
      throw new PageError(`LiteRT could not be loaded (${reason(error)}). Reload the page, or try another browser.`);
    }
  })();
  return runtime;
}

/** Forgets LiteRT and all that it holds: after a crash, which a broken file brings about, it runs nothing any more. */
async function dropRuntime() {
  const crashed = await runtime;
  runtime = null;
  crashed.objectsToDelete.clear(); // unloading would call into what has crashed
  unloadLiteRt();
}

function reason(error) {
  return String(error?.message ?? error).split(/\s+/).join(" ").slice(0, 200);
}

/** A .tflite classifier, ready to run. */
export class Classifier {
  /**
   * @param {Uint8Array} content Bytes of a file that mobilevit-hub exported.
   * @param {string} name What errors call it.
   * @returns {Promise<Classifier>}
   */
  static async open(content, name) {
    if (content.length > MAX_MODEL_BYTES) {
      const [found, limit] = [content.length, MAX_MODEL_BYTES].map((bytes) => Math.round(bytes / 2 ** 20));
      throw new PageError(`${name}: ${found} MiB; this page opens at most ${limit} MiB.`);
    }
    const { record, labels } = readAttached(content, name);
    await loadRuntime();
    try {
      const model = await loadAndCompile(content, { accelerator: "wasm" });
      const classifier = new Classifier(model, content.length, name, record, labels);
      checkForm(model, record, labels, name);
      const { height, width } = record.preprocessing.crop;
      const zeros = record.input.dtype === "uint8" ? Uint8Array : Float32Array;
      await classifier.#runOnce(new zeros(height * width * 3)); // the first run is slower, and shows whether it runs
      return classifier;
    } catch (error) {
      await dropRuntime();
      if (error instanceof PageError) throw error;
      throw new PageError(
        `${name}: LiteRT cannot run this file; it is damaged, or uses what LiteRT does not know (${reason(error)}). ` +
          "Export it again.",
      );
    }
  }

  #model;

  constructor(model, bytes, name, record, labels) {
    this.#model = model;
    Object.assign(this, { bytes, name, record, labels });
  }

  /**
   * @param {Uint8Array | Float32Array} pixels In the type and size of the input.
   * @param {{repeat: boolean}} options Whether to run it a few times, for a time that can be relied on.
   * @returns {Promise<{scores: Float32Array, ms: number}>} A probability for each label; the median time.
   */
  async classify(pixels, { repeat }) {
    const begin = performance.now();
    const times = [];
    let scores;
    do {
      const start = performance.now();
      scores = await this.#runOnce(pixels);
      times.push(performance.now() - start);
    } while (repeat && times.length < RUNS && performance.now() - begin < PATIENCE_MS);
    times.sort((a, b) => a - b);
    return { scores: this.record.output.name === "logits" ? softmax(scores) : scores, ms: times[times.length >> 1] };
  }

  async #runOnce(pixels) {
    const { height, width } = this.record.preprocessing.crop;
    const input = new Tensor(pixels, [1, height, width, 3]);
    const outputs = await this.#model.run(input);
    const scores = (await outputs[0].data()).slice();
    for (const tensor of [input, ...outputs]) tensor.delete(); // LiteRT's memory is not collected
    return scores;
  }

  /** Frees its memory. */
  close() {
    this.#model.delete();
  }
}

function checkForm(model, record, labels, name) {
  const form = (tensors) => tensors.map((tensor) => `${tensor.dtype} (${[...tensor.shape].join(", ")})`).join(", ");
  const found = [form(model.getInputDetails()), form(model.getOutputDetails())];
  const expected = [`${record.input.dtype} (${record.input.shape.join(", ")})`, `float32 (1, ${labels.length})`];
  if (found.join() !== expected.join()) {
    throw new PageError(
      `${name}: its input is ${found[0]} and its output ${found[1]}; its record says ${expected[0]} ` +
        `and ${expected[1]}. Export it again.`,
    );
  }
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

/**
 * @param {Float32Array} scores
 * @param {string[]} labels
 * @param {number} count
 * @returns {{label: string, score: number}[]} The best labels, the best first.
 */
export function bestLabels(scores, labels, count) {
  const order = [...scores.keys()].sort((a, b) => scores[b] - scores[a]);
  return order.slice(0, count).map((index) => ({ label: labels[index], score: scores[index] }));
}
