/** Each operation is the last one, in each way. */
import { test } from "vitest";
import { crashAtEach, operationsOfLife, ways } from "./changed-scenario.ts";

for (const [name, survives] of ways) {
  test(`a crash at every operation: ${name}`, async () => crashAtEach(await operationsOfLife(), survives));
}
