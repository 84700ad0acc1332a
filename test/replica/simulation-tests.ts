/** Many random lives of a disk. A failure names its seed. Each fourth has a VHDX replica. */
import { expect, test } from "vitest";
import { simulate } from "./simulation.ts";

export function simulationTests(countByDefault: number): void {
  const first = Number(process.env["REPLICATE_SIM_SEED"] ?? "1");
  const count = Number(process.env["REPLICATE_SIM_COUNT"] ?? String(countByDefault));
  const steps = Number(process.env["REPLICATE_SIM_STEPS"] ?? "40");
  const wanted = process.env["REPLICATE_SIM_FORMAT"];
  const format = wanted === "raw" || wanted === "vhdx" ? wanted : undefined;

  test(`seeds ${first} to ${first + count - 1}, ${steps} steps each`, { timeout: 24 * 3_600_000 }, async () => {
    const sums = {
      ...{ points: 0, crashes: 0, failures: 0, reads: 0, removed: 0 },
      ...{ rollbacks: 0, joined: 0, grown: 0, shrunk: 0 },
    };
    for (let seed = first; seed < first + count; seed++) {
      const facts = await simulate({ seed, steps, format: format ?? (seed % 4 === 0 ? "vhdx" : "raw") });
      for (const key of Object.keys(sums) as (keyof typeof sums)[]) sums[key] += facts[key];
    }
    // Lives in which nothing happens would prove nothing.
    if (count >= 50) for (const [what, sum] of Object.entries(sums)) expect(sum, what).toBeGreaterThan(count / 10);
  });
}
