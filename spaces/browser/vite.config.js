// The build: gathers what the page is served with, and tells it what that is.
import { copyFileSync, mkdirSync, readFileSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";
import { readAttached } from "./src/attached.js";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const MODELS = here("public/models");
const PHOTOS = here("../../examples/photos");
const WASM = here("node_modules/@litertjs/core/wasm");
// Without threads, which need two headers of the host. The second is for browsers without relaxed SIMD.
const RUNTIMES = ["litert_wasm_internal", "litert_wasm_compat_internal"];

// With it, the browser itself keeps everything on the device. Not in `npm run dev`: Vite's own client needs more.
const POLICY = [
  "default-src 'none'",
  "script-src 'self' 'wasm-unsafe-eval'",
  "style-src 'self'",
  "connect-src 'self'",
  "img-src 'self' blob: data:",
  "media-src blob:",
  "base-uri 'none'",
  "form-action 'none'",
].join("; ");

function copy(names, from, to) {
  mkdirSync(to, { recursive: true });
  for (const name of names) copyFileSync(`${from}/${name}`, `${to}/${name}`);
}

/** The files that the page offers, the smallest first. */
function models() {
  mkdirSync(MODELS, { recursive: true });
  const files = readdirSync(MODELS).filter((name) => name.endsWith(".tflite"));
  if (!files.length) {
    const command = "mobilevit-hub export mobilevit-xxs-tiny-imagenet public/models/xxs-fp32.tflite --precision fp32";
    throw new Error(`public/models has no .tflite file; the page needs at least one. Make it with: ${command}`);
  }
  const read = (file) => {
    const content = readFileSync(`${MODELS}/${file}`);
    const { record } = readAttached(content, file);
    return { file, name: record.name, precision: record.precision, bytes: content.length };
  };
  return files.map(read).sort((a, b) => a.bytes - b.bytes);
}

/** The example photos with their credits, which are the rows of a table: file, what, source, licence. */
function photos() {
  const row = /^\| `(.+?)` \| (.+?) \| (.+?) \| (.+?) \|$/gm;
  const table = readFileSync(`${PHOTOS}/README.md`, "utf8");
  return [...table.matchAll(row)].map(([, file, what, source, licence]) => ({
    file,
    what: what.split(/[,;]/)[0],
    credit: `${what}. ${source.replace(/, <.*>/, "")}`,
    link: /<(.+)>/.exec(source)?.[1] ?? null,
    licence,
  }));
}

export default defineConfig(({ command }) => {
  const examples = photos();
  copy(examples.map((photo) => photo.file), PHOTOS, here("public/photos"));
  copy(RUNTIMES.flatMap((name) => [`${name}.js`, `${name}.wasm`]), WASM, here("public/wasm"));
  const attrs = { "http-equiv": "Content-Security-Policy", content: POLICY };
  const policy = { name: "policy", transformIndexHtml: () => [{ tag: "meta", attrs, injectTo: "head-prepend" }] };
  return {
    base: "./", // works below any address
    define: { MODELS: JSON.stringify(models()), EXAMPLES: JSON.stringify(examples) },
    plugins: command === "build" ? [policy] : [],
    build: { target: "es2022", modulePreload: false },
  };
});
