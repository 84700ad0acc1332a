import { test } from "vitest";
import { createSimulatedDisk, type Operation } from "../../src/testing/simulated-storage.ts";
import { checkAfterCrash, createHistory, live } from "./crash-scenario.ts";
import { createChance } from "./simulated-store.ts";

function edge(operation: Operation): string {
  return `${operation.kind} ${operation.path.replace(/^\/store\/disks\/vm1.sda/, "D")}`;
}

test("explore", async () => {
  const all: Operation[] = [];
  const p = createSimulatedDisk().start({ fault: (o) => { all.push(o); return undefined; } });
  await live(p, createHistory());
  for (const sync of all.filter((o) => o.kind.startsWith("sync"))) {
    let found: string | undefined;
    for (const mode of ["none", "half1", "half2", "half3"]) {
      for (let at = sync.index + 1; at <= Math.min(all.length, sync.index + 40) && found === undefined; at++) {
        const chance = createChance(at + 7777 * ["none", "half1", "half2", "half3"].indexOf(mode));
        const disk = createSimulatedDisk();
        const process = disk.start({ fault: (o) => o.index === at ? { kind: "kill" } : o.index === sync.index ? { kind: "skip" } : undefined });
        const history = createHistory();
        try { await live(process, history); } catch (error) { if (!process.dead) throw error; }
        process.kill();
        disk.losePower(mode === "none" ? () => false : () => chance() < 0.5);
        try { await checkAfterCrash(disk.start(), history); } catch (error) { found = `${mode} ${at} ${String(error).slice(0, 100)}`; }
      }
    }
    console.log(`${sync.index} ${edge(sync)} => ${found ?? "NOT FOUND"}`);
  }
}, 600_000);
