// Builds the page from src/ into the Python package; `npm ci && npm run build`, or `make page`.
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import * as esbuild from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "../src/flasepformer/web/page");
const ort = join(here, "node_modules/onnxruntime-web");
rmSync(out, { recursive: true, force: true });
mkdirSync(join(out, "ort"), { recursive: true });
await esbuild.build({
  absWorkingDir: here,
  entryPoints: ["src/main.ts", "src/worker.ts"],
  outdir: out,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["chrome111", "firefox114", "safari16.4"],
  legalComments: "none", // they stand in licences.txt, whole
  alias: { "onnxruntime-web/wasm": join(ort, "dist/ort.wasm.min.mjs") },
});
for (const name of ["index.html", "style.css", "tap.js", "sw.js", "icon.svg", "manifest.webmanifest", "graph.onnx", "filter.onnx", "model.json", "live.onnx", "late.onnx", "live.json"]) {
  copyFileSync(join(here, "src", name), join(out, name));
}
for (const name of ["ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"]) {
  copyFileSync(join(ort, "dist", name), join(out, "ort", name));
}
const vendored = {
  "onnxruntime-web": ["licences/onnxruntime.txt", "licences/onnxruntime-notices.txt"],
  mediabunny: ["node_modules/mediabunny/LICENSE"],
};
const licences = Object.entries(vendored).map(([name, files]) => {
  const about = JSON.parse(readFileSync(join(here, "node_modules", name, "package.json"), "utf8"));
  const texts = files.map((file) => readFileSync(join(here, file), "utf8").trim());
  return [`${name} ${about.version}, ${about.license}; source: the npm package of this name and version`, ...texts].join("\n\n");
});
const own = "FLASepformer: Apache-2.0. The model's weights: see the model card of the package.";
const rule = `\n\n${"=".repeat(80)}\n\n`;
writeFileSync(join(out, "licences.txt"), [own, ...licences].join(rule) + "\n");

// What this was built from, so that a test can tell whether it still is.
const sources = ["build.mjs", "package-lock.json", ...readdirSync(join(here, "src")).map((name) => `src/${name}`)].sort();
const digest = (file) => createHash("sha256").update(readFileSync(file)).digest("hex");
const built = Object.fromEntries(sources.map((name) => [name, digest(join(here, name))]));
writeFileSync(join(out, "../built.json"), JSON.stringify(built, null, 2) + "\n");
