/** Tests of a crash, and of a failure, at the operations of each life. */
import { describe, expect, test } from "vitest";
import { crashAt, ends, failAt, isJournals, stepsOf } from "./journal-ends.ts";
import { lives } from "./journal-lives.ts";

const errnos = ["EIO", "ENOSPC"];

/** Whether something happens at an operation: way number `way` of `of`. */
export type Chosen = (at: number, way: number, of: number) => boolean;

export function journalCrashTests(chosen: Chosen): void {
  for (const [name, life] of Object.entries(lives)) {
    describe(`a journal's life: ${name}`, () => {
      const crashedAt = new Set<number>();
      const failedAt = new Set<number>();
      Object.keys(ends).forEach((end, way, all) => {
        test(end, async () => {
          const steps = await stepsOf(life);
          for (const { index, kind, path, doing } of steps) {
            if (!chosen(index, way, all.length)) continue;
            crashedAt.add(index);
            const crashed = await crashAt(life, index, end).catch((error: unknown) => {
              throw new Error(`operation ${index}, ${doing}: ${kind} of ${path}`, { cause: error });
            });
            expect([index, crashed]).toEqual([index, true]);
          }
          expect(await crashAt(life, steps.length, end)).toBe(false);
        });
      });
      errnos.forEach((errno, way, all) => {
        test(`${errno}, and the guest goes on`, async () => {
          for (const { index, kind, path, doing } of (await stepsOf(life)).filter(isJournals)) {
            if (!chosen(index, way, all.length)) continue;
            failedAt.add(index);
            await failAt(life, index, errno).catch((error: unknown) => {
              throw new Error(`operation ${index}, ${doing}: ${kind} of ${path}`, { cause: error });
            });
          }
        });
      });
      test("no operation is left out", async () => {
        const steps = await stepsOf(life);
        expect(steps.length).toBeGreaterThan(80);
        expect(crashedAt.size).toBe(steps.length);
        expect(failedAt.size).toBe(steps.filter(isJournals).length);
      });
    });
  }
}
