/**
 * Each sync and each "A before B" bites: taken out of the program, some crash or failure shows a loss. The list is order-edges.ts; where each bites is
 * order-edges.json. `REPLICATE_EDGES=write` looks for places where the ones known do not show it any longer, which may take minutes for an edge, and writes
 * them there.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { afterEach, describe, expect, test } from "vitest";
import { lives } from "./crash-lives.ts";
import { liveQuietly, type Step } from "./crash-scenario.ts";
import { type Edge, edges } from "./order-edges.ts";
import { findPlace, nameOfPlace, type NamedPlace, type Place, placesOf, tryPlace } from "./order-search.ts";

const memory = new URL("order-edges.json", import.meta.url);
const known = JSON.parse(readFileSync(memory, "utf8")) as Readonly<Record<string, NamedPlace>>;
const found: Record<string, NamedPlace> = {};
const writes = process.env["REPLICATE_EDGES"] === "write";
/** Places tried for one edge: without writing only those next to what it changes. */
const triesMax = writes ? Number(process.env["REPLICATE_EDGES_TRIES"] ?? "4000") : 40;

async function* candidates(edge: Edge): AsyncGenerator<Place> {
  const before = known[edge.name];
  const place = before === undefined ? undefined : await findPlace(before);
  if (place !== undefined) yield place;
  yield* placesOf(edge, writes ? [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] : [1, 2, 3]);
}

/** A program that is whole shows nothing there. Edges share places. */
const whole = new Map<string, Promise<string | undefined>>();

function tryWhole(edge: Edge, place: Place): Promise<string | undefined> {
  const key = JSON.stringify([place.life, place.at, place.end, place.seed, edge.entries]);
  const tried = whole.get(key) ?? tryPlace({ ...edge, change: {} }, place);
  whole.set(key, tried);
  return tried;
}

describe("something is lost, or promised in vain, without", () => {
  for (const edge of edges) {
    test(edge.name, async () => {
      let tries = 0;
      for await (const place of candidates(edge)) {
        if (++tries > triesMax) break;
        if ((await tryPlace(edge, place)) === undefined) continue;
        expect(await tryWhole(edge, place)).toBeUndefined();
        found[edge.name] = await nameOfPlace(place);
        return;
      }
      const more = writes ? "" : "; REPLICATE_EDGES=write looks everywhere";
      expect.fail(`at ${tries} places nothing is lost without: ${edge.name}${more}`);
    });
  }
});

test("the list is of different edges, and the memory of all of them", () => {
  const names = edges.map(({ name }) => name);
  expect(new Set(names).size).toBe(names.length);
  if (!writes) expect(Object.keys(known)).toEqual(names);
});

/** Where in the program an operation comes from: the innermost places of the store. */
function callersOf(): string {
  const before = Error.stackTraceLimit;
  Error.stackTraceLimit = 80;
  const { stack = "" } = new Error("for its stack");
  Error.stackTraceLimit = before;
  const frames = stack.split("\n").flatMap((line) => /\/src\/replica\/([^:]+:\d+)/.exec(line)?.slice(1) ?? []);
  return frames
    .filter((frame) => !frame.startsWith("file-error"))
    .slice(0, 4)
    .join(" < ");
}

test("every place of the program that syncs is one some edge leaves out", async () => {
  const places = new Map<string, boolean>();
  const fault = (step: Step): undefined => {
    if (step.kind !== "sync" && step.kind !== "sync-directory") return;
    const callers = callersOf();
    const isLeftOut = edges.some(({ change }) => change.fault?.(step)?.kind === "skip");
    places.set(callers, isLeftOut || places.get(callers) === true);
  };
  for (const life of Object.values(lives)) await liveQuietly(life, { change: { fault } });
  expect(places.size).toBeGreaterThan(40);
  expect([...places].filter(([, isLeftOut]) => !isLeftOut).map(([callers]) => callers)).toEqual([]);
});

// Each at once: a search may be stopped.
afterEach(() => {
  if (!writes) return;
  const places = edges.flatMap(({ name }) => {
    const place = found[name] ?? known[name];
    return place === undefined ? [] : [[name, place] as const];
  });
  writeFileSync(memory, `${JSON.stringify(Object.fromEntries(places), null, 2)}\n`);
});
