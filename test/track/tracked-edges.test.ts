/**
 * Each sync and each "A before B" of tracking as a whole bites: taken out of the program, some life shows a loss. The list is tracked-edges.ts; which seed, is in
 * tracked-edges.json. `REPLICATE_EDGES=write` looks for others where those do not show it any longer, and writes them there.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { afterEach, describe, expect, test } from "vitest";
import { edges, type TrackedEdge } from "./tracked-edges.ts";
import { simulateTracked } from "./tracked-simulation.ts";

const steps = 30;
const memory = new URL("tracked-edges.json", import.meta.url);
const known = JSON.parse(readFileSync(memory, "utf8")) as Readonly<Record<string, number>>;
const found: Record<string, number> = {};
const writes = process.env["REPLICATE_EDGES"] === "write";
const triesMax = writes ? Number(process.env["REPLICATE_EDGES_TRIES"] ?? "4000") : 20;

/** What is found wrong in a life; undefined: nothing. */
async function tryLife(seed: number, { change, entries }: Pick<TrackedEdge, "change" | "entries">): Promise<string> {
  try {
    await simulateTracked(seed, steps, { change, disk: { entriesSurvive: entries ?? "prefix" }, failures: false });
    return "";
  } catch (error) {
    return String(error);
  }
}

/** Those that are known first: they may show more than one. */
const seeds = (edge: TrackedEdge): readonly number[] => [
  ...new Set([
    known[edge.name] ?? 1,
    ...Object.values(found),
    ...Array.from({ length: triesMax }, (_, nth) => nth + 1),
  ]),
];

describe("something is lost without", () => {
  for (const edge of edges) {
    if (edge.superfluous !== undefined) continue;
    test(edge.name, async () => {
      for (const seed of seeds(edge).slice(0, triesMax)) {
        if (!edge.loss.test(await tryLife(seed, edge))) continue;
        expect(await tryLife(seed, { ...edge, change: () => undefined }), "a program that is whole").toBe("");
        found[edge.name] = seed;
        return;
      }
      const more = writes ? "" : "; REPLICATE_EDGES=write looks everywhere";
      expect.fail(`in ${triesMax} lives nothing is lost without: ${edge.name}${more}`);
    });
  }
});

test("the list is of different edges, and the memory of all that bite", () => {
  const names = edges.map(({ name }) => name);
  expect(new Set(names).size).toBe(names.length);
  const biting = edges.filter(({ superfluous }) => superfluous === undefined).map(({ name }) => name);
  if (!writes) expect(Object.keys(known)).toEqual(biting);
});

// Each at once: a search may be stopped.
afterEach(() => {
  if (!writes) return;
  const all = edges.flatMap(({ name, superfluous }) => {
    const seed = superfluous === undefined ? (found[name] ?? known[name]) : undefined;
    return seed === undefined ? [] : [[name, seed] as const];
  });
  writeFileSync(memory, `${JSON.stringify(Object.fromEntries(all), null, 2)}\n`);
});
