import { describe, expect, test } from "vitest";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { crashAt, operationsOfLife, powerLosses } from "./crash-scenario.ts";

describe("a crash at every operation", () => {
  for (const name of ["killed", ...Object.keys(powerLosses)]) {
    test(name, async () => {
      let crashes = 0;
      for (let at = 0; ; at++) {
        const ended = await crashAt(createSimulatedDisk(), at, powerLosses[name]?.(at)).catch((error: unknown) => {
          throw new Error(`crash at operation ${at}`, { cause: error });
        });
        if (ended === "ended") break;
        crashes++;
      }
      expect(crashes).toBe((await operationsOfLife()).length);
    });
  }
});
