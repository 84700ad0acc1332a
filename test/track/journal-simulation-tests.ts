/** Many random lives of a journal. A failure names its seed. */
import { expect, test } from "vitest";
import { simulateJournal } from "./journal-simulation.ts";

export function journalSimulationTests(countByDefault: number): void {
  const first = Number(process.env["REPLICATE_SIM_SEED"] ?? "1");
  const count = Number(process.env["REPLICATE_SIM_COUNT"] ?? String(countByDefault));
  const steps = Number(process.env["REPLICATE_SIM_STEPS"] ?? "40");

  test(`seeds ${first} to ${first + count - 1}, ${steps} steps each`, { timeout: 24 * 3_600_000 }, async () => {
    const sums = { crashes: 0, failures: 0, exact: 0, scans: 0, cycles: 0, merged: 0, late: 0, resized: 0 };
    for (let seed = first; seed < first + count; seed++) {
      const facts = await simulateJournal(seed, steps);
      for (const key of Object.keys(sums) as (keyof typeof sums)[]) sums[key] += facts[key];
    }
    // Lives in which nothing happens would prove nothing.
    if (count < 50) return;
    for (const [what, sum] of Object.entries(sums)) expect(sum, what).toBeGreaterThan(count / 10);
    expect(sums.exact, "most journals are believed").toBeGreaterThan(2 * sums.scans);
  });
}
