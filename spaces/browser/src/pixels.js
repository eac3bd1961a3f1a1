// From a photo to the exact bytes that a file takes: what `mobilevit_hub.tflite.Model.prepare` does in Python.
import { PageError } from "./attached.js";

const MAX_BYTES = 64 * 1024 * 1024;
const MAX_PIXELS = 50_000_000;
const STRIP_PIXELS = 1 << 22; // A phone refuses a canvas as large as its own photos.
const PRECISION_BITS = 32 - 8 - 2; // of Pillow's fixed-point weights

/**
 * Decodes a photo, upright; the caller closes what it gets.
 * @param {Blob} blob The file.
 * @returns {Promise<ImageBitmap>}
 */
export async function decode(blob) {
  const name = blob.name ?? "The photo";
  if (blob.size > MAX_BYTES) {
    const [found, limit] = [blob.size, MAX_BYTES].map((bytes) => Math.round(bytes / 2 ** 20));
    throw new PageError(`${name}: ${found} MiB; the limit is ${limit} MiB. Save it smaller.`);
  }
  const unreadable = (why) =>
    new PageError(`${name}: ${why}. Browsers read JPEG, PNG, WebP, AVIF, GIF and BMP; save it as one of these.`);
  // The header alone tells the size, so that a huge picture is refused before it fills the memory.
  const { naturalWidth: width, naturalHeight: height } = await readHeader(blob, () =>
    unreadable(blob.size ? "cut short or damaged, or no photo that this browser can read" : "the file is empty"),
  );
  if (width * height > MAX_PIXELS) {
    throw new PageError(
      `${name}: ${width} × ${height} is ${Math.round((width * height) / 1e6)} million pixels; ` +
        `the limit is ${MAX_PIXELS / 1e6} million. Make it smaller.`,
    );
  }
  try {
    return await createImageBitmap(blob, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch {
    throw unreadable("the picture is cut short or damaged, or needs more memory than there is");
  }
}

async function readHeader(blob, problem) {
  const image = new Image();
  const address = URL.createObjectURL(blob);
  try {
    await new Promise((resolve, reject) => {
      image.onload = resolve;
      image.onerror = () => reject(problem());
      image.src = address;
    });
    return image;
  } finally {
    URL.revokeObjectURL(address);
  }
}

/**
 * Resizes and crops a picture as the source of the file was evaluated; where it is smaller, it has a black border.
 * @param {ImageBitmap} picture
 * @param {object} preprocessing Of the file's record.
 * @returns {Uint8ClampedArray} Height × width × RGB.
 */
export function prepare(picture, { resize, crop, interpolation }) {
  const { width, height } = picture;
  const [newWidth, newHeight] = resizedSize(width, height, resize);
  const columns = shown(width, newWidth, crop.width, interpolation);
  const rows = shown(height, newHeight, crop.height, interpolation);
  const pixels = new Uint8ClampedArray(crop.height * crop.width * 3);
  const narrow = narrowed(picture, columns, rows);
  const stride = columns.count * 3;
  for (let y = 0; y < rows.count; y++) {
    const first = (rows.starts[y] - rows.from) * stride;
    const to = ((rows.offset + y) * crop.width + columns.offset) * 3;
    for (let x = 0; x < stride; x++) {
      let sum = 1 << (PRECISION_BITS - 1);
      for (let i = 0; i < rows.lengths[y]; i++) sum += narrow[first + i * stride + x] * rows.weights[y][i];
      pixels[to + x] = sum >> PRECISION_BITS;
    }
  }
  return pixels;
}

/**
 * The pixels in the type that the file takes: as they are, or as floats from 0 to 1.
 * @param {Uint8ClampedArray} pixels What `prepare` returned.
 * @param {string} dtype
 */
export function inType(pixels, dtype) {
  return dtype === "uint8" ? new Uint8Array(pixels.buffer) : Float32Array.from(pixels, (value) => value / 255);
}

function resizedSize(width, height, resize) {
  const edge = resize.shortest_edge;
  if (edge === undefined) return [resize.width, resize.height];
  const long = Math.trunc((edge * Math.max(width, height)) / Math.min(width, height));
  return width <= height ? [edge, long] : [long, edge];
}

/**
 * Which of the resized columns (or rows) a centred crop shows, and of which old ones each is made.
 * `weights[i]` belong to the old ones from `starts[i]` on; in the crop, the first stands at `offset`.
 */
function shown(size, newSize, cropSize, interpolation) {
  const first = Math.floor((newSize - cropSize) / 2);
  const [begin, end] = [Math.max(first, 0), Math.min(first + cropSize, newSize)];
  const parts = Array.from({ length: end - begin }, (_, i) => weightsOf(begin + i, size, newSize, interpolation));
  const starts = parts.map((part) => part.start);
  const ends = parts.map((part) => part.start + part.weights.length);
  return {
    offset: begin - first,
    count: parts.length,
    starts,
    weights: parts.map((part) => part.weights),
    lengths: parts.map((part) => part.weights.length),
    from: Math.min(...starts),
    to: Math.max(...ends),
  };
}

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const cubic = (x, a) => {
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
};
// How far each filter reaches, and its weight at a distance, as in Pillow.
const KERNELS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (Math.abs(x) >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)))],
  bicubic: [2, (x) => cubic(Math.abs(x), -0.5)],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

/** Pillow's weights for one resized pixel; where it shrinks, the filter is widened, so that every old pixel counts. */
function weightsOf(index, size, newSize, interpolation) {
  const scale = size / newSize;
  const center = (index + 0.5) * scale;
  if (interpolation === "nearest") return { start: Math.floor(center), weights: [1 << PRECISION_BITS] };
  const [reach, kernel] = KERNELS[interpolation];
  const stretch = Math.max(scale, 1);
  const start = Math.max(Math.trunc(center - reach * stretch + 0.5), 0);
  const end = Math.min(Math.trunc(center + reach * stretch + 0.5), size);
  const weights = Array.from({ length: end - start }, (_, i) => kernel((i + start - center + 0.5) * (1 / stretch)));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  const fixed = (weight) => Math.trunc(weight * (1 << PRECISION_BITS) + (weight < 0 ? -0.5 : 0.5));
  return { start, weights: weights.map((weight) => fixed(sum === 0 ? weight : weight / sum)) };
}

/** The first of the two passes: the old rows that are needed, resized in width and rounded to bytes. */
function narrowed(picture, columns, rows) {
  const height = Math.min(rows.to - rows.from, Math.max(1, Math.floor(STRIP_PIXELS / picture.width)));
  const canvas = document.createElement("canvas");
  canvas.width = picture.width;
  canvas.height = height;
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.fillStyle = "#fff"; // shows where the picture is transparent
  const narrow = new Uint8ClampedArray((rows.to - rows.from) * columns.count * 3);
  const weights = columns.weights.map((values) => Int32Array.from(values));
  let to = 0;
  for (let top = rows.from; top < rows.to; top += height) {
    context.fillRect(0, 0, picture.width, height);
    context.drawImage(picture, 0, -top);
    const { data } = context.getImageData(0, 0, picture.width, Math.min(height, rows.to - top));
    for (let row = 0; row < data.length; row += picture.width * 4) {
      for (let x = 0; x < columns.count; x++) {
        const values = weights[x];
        let at = row + columns.starts[x] * 4;
        let red = 1 << (PRECISION_BITS - 1);
        let [green, blue] = [red, red];
        for (let i = 0; i < values.length; i++, at += 4) {
          red += data[at] * values[i];
          green += data[at + 1] * values[i];
          blue += data[at + 2] * values[i];
        }
        narrow[to++] = red >> PRECISION_BITS;
        narrow[to++] = green >> PRECISION_BITS;
        narrow[to++] = blue >> PRECISION_BITS;
      }
    }
  }
  return narrow;
}
