/** Collects young garbage on request. Only a program that owns its process may: it switches a flag of the engine. */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** A function that collects the young generation, or undefined where the engine does not offer it. */
export function youngCollector(): (() => void) | undefined {
  setFlagsFromString("--expose-gc");
  const collect: unknown = runInNewContext("gc");
  if (typeof collect !== "function") return undefined;
  return () => {
    collect({ type: "minor" });
  };
}
