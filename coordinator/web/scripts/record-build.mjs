// Writes static/licenses.txt and static/build.json. The latter lets a test say whether the committed files are the
// built form of the committed sources, without npm: tests/coordinator/test_web_static.py computes the same sums.

import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "..");
const SOURCES = ["index.html", "operator.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "public", "scripts", "src"];
const TEXT = /\.(?:css|html|js|json|mjs|svg|ts|tsx|txt)$/;

function filesUnder(name) {
  const full = path.join(root, name);
  try {
    return readdirSync(full, { withFileTypes: true }).flatMap((entry) => filesUnder(`${name}/${entry.name}`));
  } catch (error) {
    if (error.code === "ENOTDIR") return [name];
    throw error;
  }
}

/** A checkout may turn line ends into CR LF; that changes no source. */
function sumOf(name) {
  const bytes = readFileSync(path.join(root, name));
  const content = TEXT.test(name) ? Buffer.from(bytes.toString("latin1").replaceAll("\r\n", "\n"), "latin1") : bytes;
  return createHash("sha256").update(content).digest("hex");
}

/** The bundle holds other people's code, whose licences ask to be kept with it. */
function licences() {
  const lock = JSON.parse(readFileSync(path.join(root, "package-lock.json"), "utf8"));
  const used = Object.entries(lock.packages).filter(([name, entry]) => name !== "" && !entry.dev && !entry.optional);
  const texts = used.map(([name, entry]) => {
    const folder = path.join(root, name);
    const file = readdirSync(folder).find((candidate) => /^licen[cs]e/i.test(candidate));
    const text = file === undefined ? "" : readFileSync(path.join(folder, file), "utf8").replaceAll("\r\n", "\n").trim();
    return `${name.replace(/^.*node_modules\//, "")} ${entry.version} (${entry.license})\n\n${text}\n`;
  });
  return `The pages contain these packages.\n\n${texts.join(`\n${"-".repeat(80)}\n\n`)}`;
}

writeFileSync(path.join(root, "static/licenses.txt"), licences());
const sources = SOURCES.flatMap(filesUnder).sort();
const whole = createHash("sha256");
for (const name of sources) whole.update(`${sumOf(name)}  ${name}\n`);
const built = filesUnder("static").filter((name) => name !== "static/build.json").sort();
const files = Object.fromEntries(built.map((name) => [name.slice("static/".length), sumOf(name)]));
writeFileSync(path.join(root, "static/build.json"), `${JSON.stringify({ sources: whole.digest("hex"), files }, null, 2)}\n`);
