import { describe, expect, test } from "vitest";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";
import {
  checkAfterCrash,
  crashAt,
  crashes,
  failAt,
  operationsOfLife,
  pointsOfLife,
  tryLife,
} from "./shrink-scenario.ts";

const operations = await operationsOfLife();

test("a life without faults", async () => {
  const { process, history } = await tryLife(createSimulatedDisk(), () => undefined);
  expect(history.durable.size).toBe(pointsOfLife);
  await checkAfterCrash(process, history, 2);
});

// Each way at its share of operations, so that every one is met; shrink-crash.long.ts goes through all of them.
describe("a crash at every operation", () => {
  const ways = Object.entries(crashes);
  for (const [way, [name, survives]] of ways.entries()) {
    test(name, async () => {
      const places = operations.filter(({ index }) => index % ways.length === way);
      expect(places.length).toBeGreaterThan(30);
      for (const place of places) await crashAt(place, survives?.(place.index));
    });
  }
});

/** What a failed sync forgot must not come back: neither at once nor when power is lost later, when all was synced again. */
test("a failure at every sync and every change of a length", async () => {
  const all = operations.filter(({ kind }) => kind === "sync" || kind === "truncate");
  const places = all.filter(({ path, index }) => path.endsWith("replica.raw") || index % 3 === 0);
  expect(places.length).toBeGreaterThan(50);
  for (const place of places) await failAt(place);
});
