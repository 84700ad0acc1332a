/** What is known of the receiver's states, in files, and what a failed sync or a loss of power leaves of it. */
import { expect, test } from "vitest";
import { KIB, MIB } from "../../src/base/units.ts";
import { createPageDigests } from "../../src/table/page-digests.ts";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { type KnownState, openKnownStates } from "../../src/track/known-state.ts";

const path = "/image.rbk";

function stateOf(cycle: string): KnownState {
  const pages = createPageDigests({ sizeBytes: 96 * MIB, blockBytes: 64 * KIB, digestKind: "xxh64" });
  pages.set(1, Buffer.alloc(32, cycle));
  return { cycle, pages };
}

const cyclesOf = ({ known }: { readonly known: readonly KnownState[] }): string[] => known.map(({ cycle }) => cycle);

test("the base, and the one asked for last, are there after the process ended, and after a loss of power", async () => {
  const disk = createSimulatedDisk();
  const states = await openKnownStates(disk.start(), path, { sync: true });
  await states.keep(stateOf("one"));
  await states.settle("one");
  await states.keep(stateOf("two"));
  expect(cyclesOf(states)).toEqual(["one", "two"]);
  disk.losePower(() => false);
  const again = await openKnownStates(disk.start(), path, { sync: true });
  expect(cyclesOf(again)).toEqual(["one", "two"]);
  expect(again.known.map(({ pages }) => Buffer.from(pages.root()))).toEqual(
    ["one", "two"].map((cycle) => Buffer.from(stateOf(cycle).pages.root())),
  );
  await again.settle("two");
  expect(cyclesOf(again)).toEqual(["two"]);
});

test("a name that could not be synced, found by the next process, is there for good", async () => {
  const disk = createSimulatedDisk();
  let fails = true;
  const first = disk.start({
    fault: ({ kind }) => (kind === "sync-directory" && fails ? { kind: "errno", errno: "EIO" } : undefined),
  });
  const told: string[] = [];
  const states = await openKnownStates(first, path, { sync: true, onFailure: (words) => told.push(words) });
  await states.keep(stateOf("one"));
  expect(told).toHaveLength(1);
  first.kill();
  fails = false;
  expect(cyclesOf(await openKnownStates(disk.start(), path, { sync: true }))).toEqual(["one"]);
  disk.losePower(() => false);
  expect(cyclesOf(await openKnownStates(disk.start(), path, { sync: true }))).toEqual(["one"]);
});

test("a file that cannot be written is told once, and again when it could be in between", async () => {
  const disk = createSimulatedDisk();
  let fails = true;
  const process = disk.start({
    fault: ({ kind }) => (kind === "write" && fails ? { kind: "errno", errno: "ENOSPC" } : undefined),
  });
  const told: string[] = [];
  const states = await openKnownStates(process, path, { sync: true, onFailure: (words) => told.push(words) });
  for (const cycle of ["one", "two", "three"]) {
    await states.keep(stateOf(cycle));
    await states.settle(cycle);
    // In memory.
    expect(cyclesOf(states)).toEqual([cycle]);
  }
  expect(told).toEqual([expect.stringContaining("cannot be written (ENOSPC)")]);
  fails = false;
  await states.keep(stateOf("four"));
  await states.settle("four");
  fails = true;
  await states.keep(stateOf("five"));
  expect(told).toHaveLength(2);
  expect(cyclesOf(await openKnownStates(disk.start(), path, { sync: true }))).toEqual(["four"]);
});
