/**
 * Has V8 optimise a function later. V8 11 (Node 20) has nothing between its baseline and its optimising compiler, and calls the latter for what was
 * warm for a moment: a quarter of the processor time of a send of some seconds went into code that was hardly used afterwards. What is
 * hot for long is still optimised, a fraction of a second later. Later versions have a compiler in between, and no such setting.
 */
import { setFlagsFromString } from "node:v8";

/** 24 times what it is otherwise: 8, 24 and 80 times made a delta of two seconds a sixth shorter, and a copy of five not longer (measured). */
const interruptBudget = 1_600_000;

/** Before anything is loaded that works: it counts for functions that were not called yet. Threads that are started later have it too. */
export function optimizeLater(): void {
  // A flag that is not known would be an error on standard error.
  if (process.versions.v8.startsWith("11.")) setFlagsFromString(`--interrupt-budget=${interruptBudget}`);
}
