import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { inspectVerb } from "../../src/cli/inspect.ts";
import type { CliIo } from "../../src/cli/verb.ts";

const fixtures = join(import.meta.dirname, "../../fixtures");
const folder = mkdtempSync(join(tmpdir(), "replicate-inspect-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function inspect(path: string): Promise<{ code: number; lines: Record<string, unknown>[] }> {
  let text = "";
  const io: CliIo = {
    out: (more) => void (text += more),
    err: () => undefined,
    env: {},
    cwd: folder,
    signal: new AbortController().signal,
    isTerminal: false,
    columns: 80,
  };
  const code = await inspectVerb.run([path, "--json"], io);
  const lines = text.split("\n").filter((line) => line !== "");
  return { code, lines: lines.map((line) => JSON.parse(line) as Record<string, unknown>) };
}

describe("frames", () => {
  const frames = readdirSync(join(fixtures, "wire"))
    .filter((name) => name.endsWith(".hex"))
    .map((name) => Buffer.from(readFileSync(join(fixtures, "wire", name), "utf8").replace(/\s/g, ""), "hex"));

  test("a file of golden frames, one line each", async () => {
    const path = join(folder, "frames.bin");
    writeFileSync(path, Buffer.concat(frames));
    const { code, lines } = await inspect(path);
    expect(code).toBe(0);
    expect(lines.length).toBe(frames.length);
    for (const line of lines) expect(line["kind"]).toMatch(/^frame [a-z-]+$/);
  });

  test("what follows a damaged frame is not guessed at", async () => {
    const path = join(folder, "damaged.bin");
    const [first = Buffer.alloc(0), second = Buffer.alloc(0)] = frames;
    const bent = Buffer.from(second);
    bent[4] = (bent[4] ?? 0) ^ 0xff;
    writeFileSync(path, Buffer.concat([first, bent]));
    const { code, lines } = await inspect(path);
    expect(code).toBe(1);
    expect(lines.length).toBe(2);
    expect(lines[1]?.["trouble"]).toEqual(expect.any(String));
  });

  test("a cut one is told", async () => {
    const path = join(folder, "cut.bin");
    const [first = Buffer.alloc(0), second = Buffer.alloc(0)] = frames;
    writeFileSync(path, Buffer.concat([first, second.subarray(0, second.length - 1)]));
    const { code, lines } = await inspect(path);
    expect(code).toBe(1);
    expect(lines.at(-1)?.["trouble"]).toContain("middle of a frame");
  });
});

describe("other files", () => {
  test("an image", async () => {
    writeFileSync(join(folder, "disk.img"), Buffer.alloc(100_000, 1));
    const { code, lines } = await inspect("disk.img");
    expect(code).toBe(0);
    expect(lines).toMatchObject([{ kind: "image", format: "raw", sizeBytes: 100_000, trouble: null }]);
  });

  test("a file of a store with a bit flipped", async () => {
    const stores = readdirSync(join(fixtures, "store"), { recursive: true }).map(String);
    const record = stores.find((name) => name.endsWith("disk.json"));
    expect(record).toBeDefined();
    const bytes = readFileSync(join(fixtures, "store", record ?? ""));
    writeFileSync(join(folder, "disk.json"), bytes);
    expect(await inspect("disk.json")).toMatchObject({ code: 0, lines: [{ kind: "disk", trouble: null }] });
    const at = bytes.indexOf('"owner"') + 10;
    bytes[at] = (bytes[at] ?? 0) ^ 1;
    writeFileSync(join(folder, "disk.json"), bytes);
    const damaged = await inspect("disk.json");
    expect(damaged.code).toBe(1);
    expect(damaged.lines[0]?.["trouble"]).toEqual(expect.any(String));
  });

  test("one that is not there", async () => {
    await expect(inspect("nowhere")).rejects.toMatchObject({ code: "store-not-found" });
  });
});
