/** The library's surface: few names, and all of them in docs/library.md. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import * as library from "../../src/index.ts";

const root = join(import.meta.dirname, "../..");
const source = readFileSync(join(root, "src/index.ts"), "utf8");
const document = readFileSync(join(root, "docs/library.md"), "utf8");

const listed = [...source.matchAll(/^export (?:type )?\{([^}]+)\} from/gm)].flatMap(([, names = ""]) =>
  names.split(",").map((name) => name.replace(/\btype\b/, "").trim()),
);
const declared = [...source.matchAll(/^export (?:async )?(?:function|interface|class|const|type) (\w+)/gm)].map(
  ([, name = ""]) => name,
);
const exported = [...listed, ...declared].filter((name) => name !== "");

test("exports are written so that this test sees them all", () => {
  const statements = source.match(/^export\b/gm) ?? [];
  const seen = [...source.matchAll(/^export (?:type )?\{[^}]+\} from/gm)].length + declared.length;
  expect(statements.length).toBe(seen);
  for (const name of Object.keys(library)) expect(exported).toContain(name);
});

test("docs/library.md lists them, and there are at most 36", () => {
  const section = document.slice(document.indexOf("\n## Names\n"));
  const rows = [...section.matchAll(/^\| (`[^|]+) \|/gm)].flatMap(([, cell = ""]) => [...cell.matchAll(/`(\w+)`/g)]);
  expect(new Set(rows.map(([, name]) => name))).toEqual(new Set(exported));
  expect(rows.length).toBe(exported.length);
  expect(exported.length).toBeLessThanOrEqual(36);
});
