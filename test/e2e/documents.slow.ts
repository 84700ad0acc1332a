/** What the documents show works as shown. */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { layers } from "../../scripts/layers.mjs";
import { version } from "../../src/version.ts";
import { exitCodes } from "../../src/cli/exit-codes.ts";
import { CliProcess, cliPath, needTools, replicate, root, runTool, tempDir } from "./kit.ts";

const document = (name: string): string => readFileSync(join(root, name), "utf8");

describe("README.md", () => {
  const blocks = [...document("README.md").matchAll(/```sh test( receiver)?\n([\s\S]*?)```/g)].map((match) => ({
    isReceiver: match[1] !== undefined,
    text: match[2] ?? "",
  }));

  test("its commands run as written, in their order", async (t) => {
    needTools(t, "sh", "dd", "truncate", "seq", "qemu-img", "qemu-io", "qemu-nbd");
    expect(blocks.filter(({ isReceiver }) => isReceiver).length).toBe(1);
    expect(blocks.length).toBeGreaterThan(3);
    const cwd = tempDir(t);
    // The port of the text may be taken on this machine: the receiver is given a free one.
    let port = "0";
    for (const { isReceiver, text } of blocks) {
      const script = text.replaceAll("127.0.0.1:7000", `127.0.0.1:${port}`);
      if (isReceiver) {
        const receiver = new CliProcess(t, script.trim().split(/\s+/).slice(2), { cwd });
        await receiver.waitFor(() => receiver.text.includes("\n"));
        port = /^listening on 127\.0\.0\.1:(\d+)/.exec(receiver.text)?.[1] ?? "";
        expect(port).not.toBe("");
        continue;
      }
      const tool = `"${process.execPath}" "${cliPath}"`;
      const result = runTool("sh", ["-ec", script.replaceAll("npx replicate", tool)], { cwd });
      expect(result.code, `${text}\n${result.stdout}\n${result.stderr}`).toBe(0);
    }
  });

  test("its exit codes are those of the help text", async (t) => {
    const line = /^Exit codes: (.*)\.$/m.exec(document("README.md"))?.[1] ?? "";
    const codes = [...line.matchAll(/(?:^|· )(\d+) /g)].map((match) => Number(match[1]));
    expect(codes).toEqual(Object.values(exitCodes));
    const help = (await replicate(t, ["--help"])).stdout;
    for (const code of codes) expect(help).toMatch(new RegExp(`\\b${String(code)} \\w`));
  });

  test("every option it names is in a help text", async (t) => {
    const options = new Set(
      [...document("README.md").matchAll(/`[^`\n]*?(--[a-z-]+)/g)].map((match) => match[1] ?? ""),
    );
    options.delete("--help");
    const overview = (await replicate(t, ["--help"])).stdout;
    const verbs = [...overview.matchAll(/^ {2}([a-z]+) {2}/gm)].map(([, verb = ""]) => verb);
    expect(verbs.length).toBeGreaterThan(5);
    const helps = await Promise.all(verbs.map(async (verb) => (await replicate(t, [verb, "--help"])).stdout));
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

test("docs/examples/track-custom-writer.mjs sends what was written, and reads no more", (t) => {
  const folder = tempDir(t);
  const result = runTool(process.execPath, [join(root, "docs/examples/track-custom-writer.mjs"), folder]);
  expect(result.code, result.stderr).toBe(0);
  const reports = result.stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as object);
  expect(reports).toMatchObject([
    { point: 1, reason: "initial" },
    // The block, once.
    { point: 2, reason: "bitmap", read: 65_536, changed: 4_096 },
  ]);
  const expected = Buffer.alloc(50_000_000, 1);
  expected.write("hello, disk", 25_000_000);
  expect(readFileSync(join(folder, "store/disks/memory/replica.raw")).equals(expected)).toBe(true);
});

test("ARCHITECTURE.md names the folders and levels of scripts/layers.mjs", () => {
  const rows = [...document("ARCHITECTURE.md").matchAll(/^\| (\d) \| `([a-z]+)\/` \|/gm)];
  expect(rows.length).toBeGreaterThan(8);
  for (const [, level, folder = ""] of rows) expect([folder, layers[folder]?.level]).toEqual([folder, Number(level)]);
  const folders = readdirSync(join(root, "src"), { withFileTypes: true }).filter((entry) => entry.isDirectory());
  const named = rows.map(([, , folder]) => folder);
  for (const { name } of folders) if (name !== "testing") expect(named).toContain(name);
});

test("the version is the package's", () => {
  expect((JSON.parse(document("package.json")) as { version: string }).version).toBe(version);
});
