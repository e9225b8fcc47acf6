// Bundles the sources into one file, collects the licenses of what is bundled, and records the checksums of all of them.
//
// Usage: node build.js FOLDER, after `npm ci`. The files are written into the folder.

import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const SOURCES = dirname(fileURLToPath(import.meta.url));
const FOLDER = process.argv[2];
if (!FOLDER) throw new Error("usage: node build.js FOLDER");

const result = await build({
  absWorkingDir: SOURCES,
  entryPoints: ["main.js"],
  bundle: true,
  minify: true,
  format: "iife",
  target: ["chrome123", "firefox120", "safari17.5"],
  charset: "utf8",
  legalComments: "none",
  banner: { js: "// Built by `make playground`. Do not edit. Licenses of what is bundled: /playground-licenses.txt" },
  metafile: true,
  write: false,
});
const script = result.outputFiles[0].text;
const licenses = licensesOf(Object.keys(result.metafile.inputs));
writeFileSync(join(FOLDER, "playground.js"), script);
writeFileSync(join(FOLDER, "playground-licenses.txt"), licenses);

const checksums = { "playground.js": sha256(script), "playground-licenses.txt": sha256(licenses) };
for (const name of readdirSync(SOURCES).sort()) {
  if (/\.(js|json)$/.test(name)) checksums[`src/${name}`] = sha256(readFileSync(join(SOURCES, name)));
}
writeFileSync(join(FOLDER, "checksums.json"), `${JSON.stringify(checksums, null, 2)}\n`);

/** The names, versions and license texts of the packages that the files belong to. */
function licensesOf(files) {
  const folders = files.map((file) => /^node_modules\/(?:@[^/]+\/)?[^/]+/.exec(file)?.[0]);
  const texts = [...new Set(folders.filter(Boolean))].sort().map((folder) => {
    const { name, version, license } = JSON.parse(readFileSync(join(SOURCES, folder, "package.json"), "utf8"));
    if (license !== "MIT") throw new Error(`${name} has the license ${license}: check that it may be bundled`);
    return `${name} ${version} (${license})\n\n${readFileSync(join(SOURCES, folder, "LICENSE"), "utf8").trim()}\n`;
  });
  const line = `${"-".repeat(80)}\n`;
  return `playground.js contains the following packages.\n\n${line}${texts.join(`\n${line}`)}`;
}

function sha256(data) {
  return createHash("sha256").update(data).digest("hex");
}
