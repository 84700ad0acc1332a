/** A read of the store's disk that fails once, in each life: told, or without consequence; what was promised is there afterwards. */
import { describe, expect, test } from "vitest";
import { lives } from "./crash-lives.ts";
import { failReadAt, type LifeOptions } from "./crash-scenario.ts";

/** Every `apart`th read of a life. */
export function failedReadTests(apart: (life: string) => number, options: LifeOptions = {}): void {
  describe.each(Object.entries(lives))("a read that fails, in a disk's life: %s", (name, life) => {
    test("costs nothing that was promised", async () => {
      const counts = { told: 0, "went on": 0 };
      for (let at = 0; ; at += apart(name)) {
        const outcome = await failReadAt(life, at, options);
        if (outcome === undefined) break;
        counts[outcome]++;
      }
      expect(counts.told * apart(name)).toBeGreaterThan(60);
      expect(counts["went on"]).toBeGreaterThan(0);
    });
  });
}
