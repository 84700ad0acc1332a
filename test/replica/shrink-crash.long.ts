import { describe, expect, test } from "vitest";
import { crashAt, crashes, failAt, operationsOfLife } from "./shrink-scenario.ts";

const operations = await operationsOfLife();

describe("a crash at every operation, in every way", () => {
  for (const [name, survives] of Object.entries(crashes)) {
    test(name, async () => {
      for (const place of operations) await crashAt(place, survives?.(place.index));
    });
  }
});

test("a failure at every operation", async () => {
  // Of the disk: before it there is nothing to lose.
  const places = operations.filter(({ path }) => path.includes("/disks/vm1.sda/") && !path.endsWith(".lock"));
  expect(places.length).toBeGreaterThan(200);
  for (const place of places) await failAt(place);
});
