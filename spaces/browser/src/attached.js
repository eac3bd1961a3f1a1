// What an exported .tflite file says of itself: a zip archive after the end of the model holds its record and labels.
import { strFromU8, unzipSync } from "fflate";

export const LABELS = "labels.txt";
export const RECORD = "mobilevit_hub.json";
const FORMAT = 1;
const MAX_ATTACHED_BYTES = 4 * 1024 * 1024;
const MAX_EDGE = 4096;
export const DTYPES = ["uint8", "float32"];
export const FILTERS = ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"];
export const OUTPUTS = ["probabilities", "logits"];

/** An error whose text is meant for the visitor. */
export class PageError extends Error {}

/**
 * Reads the record and the labels of a .tflite file, and checks what the page relies on.
 * @param {Uint8Array} content Bytes of the file.
 * @param {string} name What errors call it.
 * @returns {{record: object, labels: string[]}}
 */
export function readAttached(content, name) {
  if (strFromU8(content.subarray(4, 8), true) !== "TFL3") {
    throw new PageError(`${name}: not a .tflite file; it has no "TFL3" at byte 4.`);
  }
  let files = {};
  try {
    const wanted = (file) => [LABELS, RECORD].includes(file.name) && file.originalSize <= MAX_ATTACHED_BYTES;
    files = unzipSync(content, { filter: wanted }); // places in the archive count from the start of the file
  } catch {
    // no archive, or a broken one: nothing is attached
  }
  const missing = [RECORD, LABELS].filter((file) => !files[file]);
  if (missing.length) {
    throw new PageError(
      `${name}: ${missing.join(" and ")} not attached to it, so nothing says how to prepare a photo for it. ` +
        "Expected a file that was made with: mobilevit-hub export NAME OUT.tflite",
    );
  }
  const text = (file) => new TextDecoder("utf-8", { fatal: true }).decode(files[file]);
  let record, labels;
  try {
    record = JSON.parse(text(RECORD));
    labels = text(LABELS).replaceAll("\r\n", "\n").replace(/\n$/, "").split("\n");
  } catch (error) {
    throw new PageError(`${name}: what is attached to it cannot be read (${error.message}). Export it again.`);
  }
  checkRecord(record, labels, name);
  return { record, labels };
}

function checkRecord(record, labels, name) {
  const wrong = (field, said, expected) =>
    new PageError(
      `${name}: its record says that ${field} is ${JSON.stringify(said)?.slice(0, 80)}; expected ${expected}. ` +
        "Export it again, with the version of mobilevit_hub that this page is from.",
    );
  const isEdge = (value) => Number.isInteger(value) && value >= 1 && value <= MAX_EDGE;
  const areEdges = (values, ...keys) =>
    keys.every((key) => isEdge(values?.[key])) && Object.keys(values).length === keys.length;
  if (record?.format !== FORMAT) throw wrong("format", record?.format, FORMAT);
  const { input, output, preprocessing } = record;
  if (!DTYPES.includes(input?.dtype)) throw wrong("input.dtype", input?.dtype, DTYPES.join(" or "));
  if (input.channels !== "rgb") throw wrong("input.channels", input.channels, '"rgb"');
  if (!OUTPUTS.includes(output?.name)) throw wrong("output.name", output?.name, OUTPUTS.join(" or "));
  const { resize, crop, interpolation } = preprocessing ?? {};
  if (!areEdges(resize, "shortest_edge") && !areEdges(resize, "height", "width")) {
    throw wrong("preprocessing.resize", resize, `shortest_edge, or height and width, 1 to ${MAX_EDGE}`);
  }
  if (!areEdges(crop, "height", "width")) throw wrong("preprocessing.crop", crop, `height and width, 1 to ${MAX_EDGE}`);
  if (!FILTERS.includes(interpolation)) throw wrong("preprocessing.interpolation", interpolation, FILTERS.join(", "));
  const shape = [1, crop.height, crop.width, 3];
  if (String(input.shape) !== String(shape)) throw wrong("input.shape", input.shape, JSON.stringify(shape));
  if (labels.length !== record.labels?.count) throw wrong("labels.count", record.labels?.count, labels.length);
}
