/** Each sync and each "A before B" bites: taken out of the program, some crash shows a block that is called clean and is not, or a journal that is lost. */
import { expect, test } from "vitest";
import { crashAt, ends, playOf, stepsOf } from "./journal-ends.ts";
import { type Edge, edges } from "./journal-edges.ts";
import { lives } from "./journal-lives.ts";

/** What is lost somewhere; undefined: nothing, anywhere. */
async function bite(edge: Edge): Promise<string | undefined> {
  for (const life of Object.values(lives)) {
    const touched: number[] = [];
    const play = playOf(life);
    try {
      const steps = await stepsOf(play, {
        change: (step) => {
          const fault = edge.change(step);
          if (fault !== undefined) touched.push(step.index);
          return fault;
        },
      });
      const near = new Set(touched.flatMap((at) => [1, 2, 3, 4, 6, 9, 14].map((distance) => at + distance)));
      for (const at of [...near].filter((index) => index <= steps.length)) {
        for (const end of Object.keys(ends)) await crashAt(play, at, end, { change: edge.change, strict: edge.scans });
      }
    } catch (error) {
      const causes = [error, error instanceof Error ? error.cause : undefined].map(String);
      return causes.join(" ");
    }
  }
  return undefined;
}

test.each(edges.filter(({ superfluous }) => superfluous === undefined))(
  "something is lost without: $name",
  async (edge) => {
    expect(await bite(edge)).toMatch(
      edge.scans === true ? /match object \{ kind: 'exact' \}/ : /is called clean|to include/,
    );
  },
);

test("edges have names of their own", () => {
  expect(new Set(edges.map(({ name }) => name)).size).toBe(edges.length);
});
