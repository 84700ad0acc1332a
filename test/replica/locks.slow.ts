/**
 * Two processes at one disk: at each step of what the first does the second does all of its own. Both come through or are told why not, and nothing
 * is lost. And each lock bites: where it keeps nobody out, something is. Every step, also over a VHDX: locks.long.ts.
 */
import { describe, expect, test } from "vitest";
import { meet, meetAt, type MeetingOptions, meetings } from "./meetings.ts";

/** Of the steps of each meeting every n-th; `REPLICATE_CRASH_EVERY=1` does them all. */
const every = Math.min(7, Number(process.env["REPLICATE_CRASH_EVERY"] ?? "7"));

describe("nothing is lost when", () => {
  for (const name of Object.keys(meetings)) {
    test(name, async () => {
      let at = 0;
      for (; await meetAt(name, at); at += every);
      expect(at).toBeGreaterThan(every);
    });
  }
});

/** What is taken away, the meeting that shows it, and at which step. */
const edges: readonly (readonly [what: string, options: MeetingOptions, meeting: string, step: number])[] = [
  [
    "chain.lock, around a change of a record",
    { without: /chain\.lock$/ },
    "a point is held while others are removed",
    5,
  ],
  [
    "chain.lock, around a removal",
    { without: /chain\.lock$/ },
    "a delta is committed while more points are removed",
    71,
  ],
  [
    "chain.lock, around the naming of a joined log",
    { without: /chain\.lock$/ },
    "logs are joined while the disk is opened",
    32,
  ],
  ["apply.lock", { without: /apply\.lock$/ }, "a delta is committed while another begins", 27],
  ["apply.lock, until a clean stop", { without: /apply\.lock$/ }, "a delta begins while one is laid aside", 27],
  ["the lock of a point that is read", { without: /\d{10}\.lock$/ }, "a point is read while it is removed", 12],
  [
    "the lock of a log that is being joined",
    { without: /\.\d+\.undo$/ },
    "logs are joined while the disk is opened",
    16,
  ],
  ["the lock of a file that is being restored", { without: /\.part$/ }, "a point is restored while it is restored", 34],
  ["the second look of who reads", { looksOnce: true }, "a point is read while a delta is committed", 20],
];

describe("something is lost without", () => {
  for (const [what, options, name, step] of edges) {
    test(what, async () => {
      if (await bites(name, step, options)) return;
      // The number is a memory, and no more.
      let at = 0;
      let more = true;
      while (more && !(await bites(name, at, options))) more = await meetAt(name, ++at);
      expect(more, "no step of the meeting shows it").toBe(true);
    });
  }
});

async function bites(name: string, at: number, options: MeetingOptions): Promise<boolean> {
  try {
    await meet(name, at, options);
    return false;
  } catch {
    return meetAt(name, at);
  }
}
