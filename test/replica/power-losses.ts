/** Ways to lose power: what survives of what was not synced, for a seed. */
import type { Survives } from "../../src/testing/simulated-node.ts";
import { createChance } from "./simulated-store.ts";

function half(seed: number): Survives {
  const chance = createChance(seed);
  return () => chance() < 0.5;
}

export const powerLosses: Readonly<Record<string, (seed: number) => Survives>> = {
  "power lost, nothing un-synced survives": () => () => false,
  "power lost, content survives and names do not": () => (what) => what !== "entry" && what !== "time",
  "power lost, half survives": half,
  "power lost, another half survives": (seed) => half(seed + 7_777),
};
