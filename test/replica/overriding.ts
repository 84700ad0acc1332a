/** A process some of whose methods are others. */
import type { SimulatedProcess } from "../../src/testing/simulated-storage.ts";

export function overriding(process: SimulatedProcess, methods: Partial<SimulatedProcess>): SimulatedProcess {
  return new Proxy(process, {
    get(target, key) {
      const other: unknown = Reflect.get(methods, key);
      if (other !== undefined) return other;
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === "function" ? (value as (...args: unknown[]) => unknown).bind(target) : value;
    },
  });
}
