/** Tests of a crash, and of a failure, at the operations of each life. */
import { describe, expect, test } from "vitest";
import { crashAt, ends, failAt, isJournals, type Play, playOf, stepsOf } from "./journal-ends.ts";
import { lives } from "./journal-lives.ts";
import type { Step } from "./journal-world.ts";

const errnos = ["EIO", "ENOSPC"];

/** Whether something happens at an operation: way number `way` of `of`. */
export type Chosen = (at: number, way: number, of: number) => boolean;

export function journalCrashTests(chosen: Chosen): void {
  for (const [name, life] of Object.entries(lives)) {
    crashTests(`a journal's life: ${name}`, playOf(life), { chosen, mayFail: isJournals });
  }
}

/** `mayFail`: a step that fails without harm to the guest. */
export function crashTests(
  name: string,
  play: Play,
  options: { readonly chosen: Chosen; readonly mayFail: (step: Step) => boolean },
): void {
  const { chosen, mayFail } = options;
  describe(name, () => {
    const crashedAt = new Set<number>();
    const failedAt = new Set<number>();
    Object.keys(ends).forEach((end, way, all) => {
      test(end, async () => {
        const steps = await stepsOf(play);
        for (const { index, kind, path, doing } of steps) {
          if (!chosen(index, way, all.length)) continue;
          crashedAt.add(index);
          const crashed = await crashAt(play, index, end).catch((error: unknown) => {
            throw new Error(`operation ${index}, ${doing}: ${kind} of ${path}`, { cause: error });
          });
          expect([index, crashed]).toEqual([index, true]);
        }
        expect(await crashAt(play, steps.length, end)).toBe(false);
      });
    });
    errnos.forEach((errno, way, all) => {
      test(`${errno}, and the guest goes on`, async () => {
        for (const { index, kind, path, doing } of (await stepsOf(play)).filter(mayFail)) {
          if (!chosen(index, way, all.length)) continue;
          failedAt.add(index);
          await failAt(play, index, errno).catch((error: unknown) => {
            throw new Error(`operation ${index}, ${doing}: ${kind} of ${path}`, { cause: error });
          });
        }
      });
    });
    test("no operation is left out", async () => {
      const steps = await stepsOf(play);
      expect(steps.length).toBeGreaterThan(80);
      expect(crashedAt.size).toBe(steps.length);
      expect(failedAt.size).toBe(steps.filter(mayFail).length);
    });
  });
}
