/** What the documents show works as shown. */
import { chmodSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { layers } from "../../scripts/layers.mjs";
import { version } from "../../src/version.ts";
import { exitCodes } from "../../src/cli/exit-codes.ts";
import { MIB, writeAt } from "./content.ts";
import { CliProcess, cliPath, needTools, replicaPath, replicate, root, runTool, tempDir } from "./kit.ts";

const document = (name: string): string => readFileSync(join(root, name), "utf8");

/** What is done before a block of README.md, or how it is run; the readers of the document do not see it. */
const markers = {
  /** A process of its own, which the later blocks need. */
  receiver: /^listening on 127\.0\.0\.1:(\d+)/,
  export: /nbd\+unix:/,
  /** By kill -9, before it. */
  killed: undefined,
  /** Somebody else has written to the replica, before it. */
  changed: undefined,
} as const;

/** One block of commands. */
interface Block {
  readonly marker: keyof typeof markers | undefined;
  readonly text: string;
}

describe("README.md", () => {
  const blocks = [...document("README.md").matchAll(/^```sh test(?: (\w+))?\n([\s\S]*?)^```/gm)].map(
    ([, word, text = ""]): Block => {
      const marker = Object.keys(markers).find((each): each is keyof typeof markers => each === word);
      expect(marker).toBe(word);
      return { marker, text };
    },
  );
  const [receiverBlock, ...otherReceivers] = blocks.filter(({ marker }) => marker === "receiver");

  test("every block of commands is run, but how it is built", () => {
    const untested = [...document("README.md").matchAll(/^```(?:sh)?\n((?:npx|npm|node|qemu-)[\s\S]*?)^```/gm)];
    expect(untested.map(([, text = ""]) => text.split(/\s+/).slice(0, 2))).toEqual([["npm", "install"]]);
  });

  test("its commands run as written, in their order", { timeout: 600_000 }, async (t) => {
    needTools(t, "sh", "dd", "truncate", "seq", "qemu-img", "qemu-io", "qemu-nbd");
    if (receiverBlock === undefined) throw new Error("a receiver");
    expect(otherReceivers).toEqual([]);
    for (const marker of Object.keys(markers)) expect(blocks.map((block) => block.marker)).toContain(marker);
    const cwd = tempDir(t);
    const replica = replicaPath(join(cwd, "store"), "web");
    const theirs = Buffer.from("somebody else was here");
    // The port of the text may be taken on this machine: the receiver is given a free one.
    let port = "0";
    const onPort = (text: string): string => text.replaceAll("127.0.0.1:7000", `127.0.0.1:${port}`);
    /** Runs what takes a terminal of its own; resolves with what it says once it serves. */
    const serve = async (text: string, form: RegExp): Promise<{ process: CliProcess; said: readonly string[] }> => {
      const words = text.replaceAll("$PWD", cwd).replaceAll('"', "").trim().split(/\s+/);
      expect(words.slice(0, 2)).toEqual(["npx", "replicate"]);
      const process = new CliProcess(t, words.slice(2), { cwd });
      await process.waitFor(() => form.test(process.text));
      return { process, said: form.exec(process.text) ?? [] };
    };
    let receiver: CliProcess | undefined;
    const startReceiver = async (): Promise<void> => {
      port = "0";
      const { process, said } = await serve(onPort(receiverBlock.text), markers.receiver);
      receiver = process;
      port = said[1] ?? "";
      expect(port).not.toBe("");
    };
    const run = (text: string, code: number = exitCodes.done): string => {
      const tool = `"${process.execPath}" "${cliPath}"`;
      const result = runTool("sh", ["-ec", onPort(text).replaceAll("npx replicate", tool)], { cwd });
      expect(result.code, `${text}\n${result.stdout}\n${result.stderr}`).toBe(code);
      return result.stdout;
    };
    for (const { marker, text } of blocks) {
      if (marker === "receiver") {
        await startReceiver();
        continue;
      }
      if (marker === "export") {
        await serve(text, markers.export);
        continue;
      }
      if (marker === "killed") {
        expect(receiver?.ended).toBe(false);
        await receiver?.kill();
      }
      if (marker === "changed") {
        chmodSync(replica, 0o600);
        writeAt(replica, [[MIB, theirs]]);
      }
      if (receiver?.ended === true && text.includes("127.0.0.1:7000")) await startReceiver();
      run(text, marker === "changed" ? exitCodes.differs : exitCodes.done);
      if (marker === "changed") {
        const label = /--label "(.*)"/.exec(text)?.[1] ?? "";
        expect(label).not.toBe("");
        expect(run("npx replicate points --store store web")).toContain(label);
        run("npx replicate restore --store store web@latest changed.raw");
        expect(readFileSync(join(cwd, "changed.raw")).subarray(MIB, MIB + theirs.length)).toEqual(theirs);
      }
    }
    // It was started again for what comes behind the crash.
    expect(receiver?.ended).toBe(false);
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
