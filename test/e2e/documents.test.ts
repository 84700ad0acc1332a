/** What the documents show works as shown. */
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { layers } from "../../scripts/layers.mjs";
import { version } from "../../src/version.ts";
import { replicate, root, runTool, tempDir } from "./kit.ts";

const document = (name: string): string => readFileSync(join(root, name), "utf8");

describe("README.md", () => {
  const blocks = [...document("README.md").matchAll(/```sh test\n([\s\S]*?)```/g)].map((match) => match[1] ?? "");

  test("its commands run as written", async (t) => {
    expect(blocks.length).toBeGreaterThan(0);
    const cwd = tempDir(t);
    for (const line of blocks.join("\n").split("\n")) {
      const [program, ...args] = line.trim().split(/\s+/);
      if (program === "" || program === undefined) continue;
      expect(program).toBe("replicate");
      const result = await replicate(t, args, { cwd });
      expect(result.code, `${line}: ${result.stderr}`).toBe(0);
    }
  });

  test("every option it names is in a help text", async (t) => {
    const options = new Set(
      [...document("README.md").matchAll(/`[^`\n]*?(--[a-z-]+)/g)].map((match) => match[1] ?? ""),
    );
    options.delete("--help");
    const helps = await Promise.all(
      ["pki", "recv", "send", "disks", "compare"].map(async (verb) => (await replicate(t, [verb, "--help"])).stdout),
    );
    for (const option of options) expect(helps.join("\n"), option).toContain(option);
  });
});

test("docs/examples/send-custom-reader.mjs sends a disk from memory", (t) => {
  const folder = tempDir(t);
  const result = runTool(process.execPath, [join(root, "docs/examples/send-custom-reader.mjs"), folder]);
  expect(result.code, result.stderr).toBe(0);
  const report = JSON.parse(result.stdout) as { point: number; shipped: number };
  expect(report).toMatchObject({ point: 1, shipped: 4_096 });
  const replica = join(folder, "store/disks/memory/replica.raw");
  const expected = Buffer.alloc(10_000_000);
  expected.write("hello, disk", 5_000_000);
  expect(readFileSync(replica).equals(expected)).toBe(true);
  expect(statSync(replica).mode & 0o222).toBe(0);
});

test("ARCHITECTURE.md names the folders and levels of scripts/layers.mjs", () => {
  const rows = [...document("ARCHITECTURE.md").matchAll(/^\| (\d) \| `([a-z]+)\/` \|/gm)];
  expect(rows.length).toBeGreaterThan(8);
  for (const [, level, folder = ""] of rows) expect([folder, layers[folder]?.level]).toEqual([folder, Number(level)]);
});

test("the version is the package's", () => {
  expect((JSON.parse(document("package.json")) as { version: string }).version).toBe(version);
});
