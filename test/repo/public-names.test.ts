/** The library's surface: few names, and all of them in docs/library.md. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import * as library from "../../src/index.ts";
import * as tracking from "../../src/tracking.ts";

const root = join(import.meta.dirname, "../..");
const document = readFileSync(join(root, "docs/library.md"), "utf8");

const entries = [
  { file: "src/index.ts", module: library, title: "\n| names |", most: 36 },
  { file: "src/tracking.ts", module: tracking, title: "\n| names of `replicate/tracking` |", most: 12 },
];

describe.each(entries)("$file", ({ file, module, title, most }) => {
  const source = readFileSync(join(root, file), "utf8");
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
    for (const name of Object.keys(module)) expect(exported).toContain(name);
  });

  test(`docs/library.md lists them, and there are at most ${String(most)}`, () => {
    const section = document.slice(document.indexOf(title)).split("\n\n")[0] ?? "";
    const [, , ...rows] = section.trim().split("\n");
    const names = rows.flatMap((row) => [...(row.split("|")[1] ?? "").matchAll(/`(\w+)`/g)].map(([, name]) => name));
    expect(new Set(names)).toEqual(new Set(exported));
    expect(names.length).toBe(exported.length);
    expect(exported.length).toBeLessThanOrEqual(most);
  });
});
