/** Tests of a crash, and of a failure, at the operations of each life. */
import { describe, expect, test } from "vitest";
import { type Life, lives } from "./crash-lives.ts";
import { crashAt, ends, failAt, type LifeOptions, operationsOf } from "./crash-scenario.ts";

const kinds = ["crashed", "failed"] as const;
type Kind = (typeof kinds)[number];

/** What happens at an operation. */
export interface Way {
  readonly name: string;
  readonly kind: Kind;
  /** Its number among the `of` ways of its kind. */
  readonly index: number;
  readonly of: number;
}

/** True: it was the end of the life. */
type Attempt = (life: Life, at: number, options: LifeOptions) => Promise<boolean>;

const attempts: readonly (readonly [name: string, kind: Kind, attempt: Attempt])[] = [
  ...Object.entries(ends).map(([name, end]): readonly [string, Kind, Attempt] => [
    name,
    "crashed",
    async (life, at, options) => (await crashAt(life, end(at, at), options)) === "crashed",
  ]),
  ...["EIO", "ENOSPC"].map((errno): readonly [string, Kind, Attempt] => [
    `${errno}, and the process goes on`,
    "failed",
    (life, at, options) => failAt(life, at, errno, options),
  ]),
];

const ways: readonly (readonly [way: Way, attempt: Attempt])[] = attempts.map(([name, kind, attempt]) => {
  const ofKind = attempts.filter(([, other]) => other === kind);
  const index = ofKind.findIndex(([other]) => other === name);
  return [{ name, kind, index, of: ofKind.length }, attempt];
});

/** The number of a pair of an operation and a way. */
export function numberOf(at: number, { name }: Way): number {
  return at * ways.length + ways.findIndex(([way]) => way.name === name);
}

export interface Choice {
  /** Whether something happens at an operation. The one behind the last: the life runs through. */
  chosen(life: string, at: number, way: Way): boolean;
  /** Whether no operation of this life may be left out, by none of the kinds of end. */
  whole(life: string): boolean;
  readonly options?: LifeOptions;
}

export function crashTests({ chosen, whole, options = {} }: Choice): void {
  for (const [name, life] of Object.entries(lives)) {
    describe(`a disk's life: ${name}`, () => {
      const tried = new Map<Kind, Set<number>>(kinds.map((kind) => [kind, new Set()]));
      for (const [way, attempt] of ways) {
        test(way.name, async () => {
          const steps = await operationsOf(life, options);
          let [count, ended] = [0, 0];
          for (const { index: at, kind, path, doing } of steps) {
            if (!chosen(name, at, way)) continue;
            count++;
            tried.get(way.kind)?.add(at);
            const end = await attempt(life, at, options).catch((error: unknown) => {
              throw new Error(`operation ${at}, ${doing}: ${kind} of ${path}`, { cause: error });
            });
            if (end) ended++;
            // A process that ends ends the life, but in the text of a lock that is given up, at the very end.
            if (way.kind === "crashed") expect([at, end || path.endsWith(".lock")]).toEqual([at, true]);
          }
          // A failure in the text of a lock is none, nor one where the next open removes things.
          if (way.kind === "failed") expect(ended * 2.5).toBeGreaterThan(count - 2);
          if (chosen(name, steps.length, way)) expect(await attempt(life, steps.length, options)).toBe(false);
        });
      }
      if (!whole(name)) return;
      test("no operation is left out", async () => {
        const steps = await operationsOf(life, options);
        for (const kind of kinds) expect([kind, tried.get(kind)?.size]).toEqual([kind, steps.length]);
      });
    });
  }
}
