// Bundles the live page into the folder given: hashed names, each text file also gzipped. Types are checked before.
import { build } from "esbuild";
import { copyFile, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { promisify } from "node:util";
import { gzip } from "node:zlib";

const out = process.argv[2];
await mkdir(out, { recursive: true });
const { metafile } = await build({
  entryPoints: { live: "src/main.ts", style: "src/style.css" },
  outdir: out,
  bundle: true,
  splitting: true,
  format: "esm",
  target: ["es2022", "chrome110", "firefox115", "safari16.4"],
  minify: true,
  metafile: true,
  legalComments: "linked",
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  assetNames: "[name]-[hash]",
  publicPath: "/static",
  loader: { ".woff2": "file" },
  logLevel: "warning",
});

const named = (entry) =>
  basename(Object.keys(metafile.outputs).find((name) => metafile.outputs[name].entryPoint === entry));
const page = (await readFile("src/index.html", "utf8"))
  .replace("%STYLE%", `/static/${named("src/style.css")}`)
  .replace("%SCRIPT%", `/static/${named("src/main.ts")}`);
await writeFile(join(out, "index.html"), page);
await copyFile("src/icon.svg", join(out, "icon.svg"));
await copyFile("node_modules/maplibre-gl/dist/maplibre-gl-worker.mjs", join(out, "maplibre-gl-worker.js"));

// The licences of what is inside go with it.
const inside = [
  ["maplibre-gl", "LICENSE.txt"], ["uplot", "LICENSE"], ["@fontsource-variable/inter", "LICENSE"],
];
const licences = await Promise.all(
  inside.map(async ([name, file]) => `${name}\n\n${await readFile(`node_modules/${name}/${file}`, "utf8")}`),
);
await writeFile(
  join(out, "licences.txt"),
  `The sea on the map: © OpenStreetMap contributors, Open Database License 1.0.\n\n${licences.join("\n\n----\n\n")}`,
);

for (const name of await readdir(out)) {
  if (!/\.(js|css|html|svg|txt)$/.test(name)) continue;
  await writeFile(join(out, `${name}.gz`), await promisify(gzip)(await readFile(join(out, name)), { level: 9 }));
}
