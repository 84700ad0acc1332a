/** docs/protocol.md says what the code does. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { errorActions } from "../../src/base/errors.ts";
import { limits } from "../../src/base/limits.ts";
import { protocolFeatures, protocolVersion } from "../../src/wire/handshake.ts";
import { messageForms } from "../../src/wire/message-codec.ts";
import { preludeBytes } from "../../src/wire/prelude.ts";
import { joinTable, nameOfEvent, type SessionEvent, sessionTable } from "../../src/wire/session-rules.ts";
import { wireLimits } from "../../src/wire/wire-limits.ts";

const root = join(import.meta.dirname, "../..");
const document = readFileSync(join(root, "docs/protocol.md"), "utf8");

/** Text from a heading to the next of its level or above. */
function section(heading: string): string {
  const start = document.indexOf(`\n${heading}\n`);
  if (start < 0) throw new Error(`docs/protocol.md has no heading "${heading}"`);
  const level = heading.indexOf(" ");
  const rest = document.slice(start + heading.length + 2);
  const end = rest.search(new RegExp(`^#{1,${level}} `, "m"));
  return end < 0 ? rest : rest.slice(0, end);
}

/** Tables of a text: rows of cells, headings left out. */
function tables(text: string): string[][][] {
  return (text.match(/(?:^\|.*\n)+/gm) ?? []).map((table) =>
    table
      .trimEnd()
      .split("\n")
      .slice(2)
      .map((row) =>
        row
          .slice(1, -1)
          .split("|")
          .map((cell) => cell.trim().replaceAll("`", "")),
      ),
  );
}

function table(text: string, index = 0): string[][] {
  const found = tables(text)[index];
  if (found === undefined) throw new Error("a table is missing in docs/protocol.md");
  return found;
}

describe("messages", () => {
  test("are all there, in order", () => {
    const headings = [...section("## Messages").matchAll(/^### (.+)$/gm)].map(([, heading]) => heading);
    expect(headings).toEqual(messageForms.map(({ number, type }) => `${number} ${type}`));
  });

  test.each(messageForms)("$type: key, field and type", ({ number, type, fields, payload }) => {
    const text = section(`### ${number} ${type}`);
    const rows = fields.length === 0 ? [] : table(text);
    expect(rows.map((row) => row.slice(0, 3))).toEqual(
      fields.map(({ key, name, optional, kind }) => [
        key,
        optional ? `${name}?` : name,
        kind.describe.replaceAll("`", ""),
      ]),
    );
    for (const row of rows) expect(row[3]).toMatch(/\w/);
    expect(text.includes("Payload:")).toBe(payload !== undefined);
  });
});

test("the prelude's fields follow each other", () => {
  const rows = table(section("## Frame")).slice(0, 7);
  let offset = 0;
  for (const [at, size] of rows) {
    if (offset === preludeBytes) break;
    expect(Number(at)).toBe(offset);
    offset += Number(size);
  }
  expect(offset).toBe(preludeBytes);
});

test("the example is the fixture", () => {
  const [, example] = /```hex\n([^`]+)```/.exec(section("### Example")) ?? [];
  expect(example).toBe(readFileSync(join(root, "fixtures/wire/data-parts.hex"), "latin1"));
  // The bytes explained are those of the example, in order.
  const explained = [...section("### Example").matchAll(/^\| (`[0-9a-f` ]+`)/gm)].map(([, bytes]) => bytes ?? "");
  expect(explained.length).toBeGreaterThan(10);
  expect(example?.replaceAll("\n", "").startsWith(explained.join("").replaceAll(/[` ]/g, ""))).toBe(true);
});

describe("session", () => {
  const cell = (state: string, row: Readonly<Partial<Record<SessionEvent, string>>>): string => {
    const entries = Object.entries(row).map(([event, next]) => {
      const name = nameOfEvent(event as SessionEvent);
      return next === state ? name : `${name} → ${next}`;
    });
    return entries.length === 0 ? "-" : entries.sort().join(", ");
  };
  const sorted = (text: string | undefined): string => (text ?? "").split(", ").sort().join(", ");

  test.each([
    ["first connection", 0, sessionTable],
    ["further connections", 1, joinTable],
  ] as const)("%s", (_what, index, rules) => {
    const rows = table(section("## Session"), index);
    expect(rows.map(([state, sender, receiver]) => [state, sorted(sender), sorted(receiver)])).toEqual(
      Object.entries(rules).map(([state, row]) => [state, cell(state, row.sender), cell(state, row.receiver)]),
    );
  });
});

test("errors and their actions", () => {
  const rows = table(section("## Errors"));
  expect(rows.map(([code, action]) => [code, action])).toEqual(Object.entries(errorActions));
  for (const row of rows) expect(row[2]).toMatch(/\w/);
});

describe("limits", () => {
  const values = (index: number): [string, number][] =>
    table(section("## Limits"), index).map(([name, value]) => [name ?? "", Number(value)]);

  test("shared ones have the values of base", () => {
    const rows = values(0);
    const known = limits as Readonly<Record<string, number>>;
    expect(rows).toEqual(rows.map(([name]) => [name, known[name]]));
    const elsewhere = [
      "vhdxLogBytesMax",
      "chainFilesMax",
      "imageTableCacheBytes",
      "imageFileBytesMax",
      "vhdxLogChangesMax",
      "journalHotRegionsMax",
      "poolBytesDefault",
      "stateFileBytesMax",
      "tableCacheBytes",
      "reserveBytesDefault",
    ];
    for (const name of Object.keys(limits)) {
      if (!elsewhere.includes(name)) expect(rows.map(([listed]) => listed)).toContain(name);
    }
  });

  test("those of headers are all there", () => {
    expect(values(1)).toEqual(Object.entries(wireLimits));
  });

  test("those of the prelude", () => {
    const frame = section("## Frame");
    expect(frame).toContain(`1 to ${limits.frameHeaderBytesMax}`);
    expect(frame).toContain(`1 to ${limits.framePayloadBytesMax}`);
  });
});

test("features and versions", () => {
  expect(table(section("## Handshake")).map(([name]) => name)).toEqual(protocolFeatures);
  expect(table(section("## Versions")).at(-1)?.[0]).toBe(String(protocolVersion));
});
