/**
 * Sends that have their cut from a running tracker, in a process of their own, and are killed while a machine writes; the same in both tiers, with other numbers.
 */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { socketDir } from "../../nbd/kit.ts";
import { makeSparse, MIB, noise, writeAt } from "../content.ts";
import {
  CliProcess,
  cmpFiles,
  type Done,
  finish,
  type Pki,
  replicaPath,
  type Scope,
  seededRandom,
  send,
  startReceiver,
  startSend,
} from "../kit.ts";
import { startProxy } from "../proxy.ts";
import { Load } from "./kit.ts";

/** As in kill.ts: the machine writes to the first page of the table alone, so that a cycle that reads more than that did not know what had changed. */
const busyBytes = 16 * MIB;
const pageBytes = 32 * MIB;
const pages = 4;
/** Requests before and after a kill, at most. */
const requestsMax = 400;

export interface KilledSends {
  kills: number;
  /** Of these: before anything went up, and when the receiver had its point, of which the tracker had heard or had not. */
  early: number;
  pointed: number;
  unheard: number;
  /** Sends that had ended before they could be killed. */
  ended: number;
  readBytesMax: number;
}

/** Kills sends, and has others look what is left, until `kills` of them were killed. */
export async function killSends(
  scope: Scope,
  pki: Pki,
  options: { readonly kills: number; readonly seed: number },
): Promise<Readonly<KilledSends>> {
  const random = seededRandom(options.seed);
  const counts: KilledSends = { kills: 0, early: 0, pointed: 0, unheard: 0, ended: 0, readBytesMax: 0 };
  const dir = socketDir(scope);
  const image = join(dir, "vm.raw");
  makeSparse(image, pages * pageBytes);
  writeAt(
    image,
    Array.from(
      { length: pages },
      (_unused, page) => [page * pageBytes, noise(options.seed * 31 + page, busyBytes)] as const,
    ),
  );
  const storeDir = join(dir, "store");
  const receiver = await startReceiver(scope, { storeDir, tls: pki.recv, args: ["--keep", "last=3"] });
  const proxy = await startProxy(scope, receiver.port);
  const tracker = new CliProcess(scope, ["track", image, "--nbd", `unix:${dir}/nbd`, "--json"]);
  const uri = String((await tracker.waitForEvent("listening"))["uri"]);
  const how = { image, port: proxy.port, disk: "vm", tls: pki.send, args: ["--codec", "none"] };
  const newLoad = (): Promise<Load> => Load.start(scope, { uri, random, bytes: busyBytes });
  const some = (): number => 1 + (random() % requestsMax);

  const points = (): number => receiver.lines.filter(({ event }) => event === "point").length;

  /** A cycle that knows what changed. */
  const incremental = async (): Promise<Done> => {
    const { code, done, stderr, stdout } = await send(scope, how);
    expect(code, stdout + stderr).toBe(0);
    if (done === undefined) throw new Error(`no report: ${stdout}`);
    expect(done).toMatchObject({ reason: "bitmap" });
    expect(done.bytesRead).toBeLessThanOrEqual(3 * busyBytes);
    return done;
  };

  /** When the receiver has its point and the tracker may not know; most often before there is a connection; anywhere between its beginning and its end. */
  const momentOf = (kind: number, usualBytes: number, load: Load): Promise<void> => {
    const had = points();
    if (kind < 2) return receiver.process.waitFor(() => points() > had);
    if (kind === 2) return load.more(some());
    return proxy.passedUp(proxy.bytesUp + 1 + (random() % usualBytes));
  };

  expect((await send(scope, how)).done).toMatchObject({ reason: "initial", point: 1 });
  for (let told = 1, usual = 4 * MIB; counts.kills < options.kills; ) {
    const load = await newLoad();
    await load.more(some());
    const before = proxy.bytesUp;
    const killed = startSend(scope, how);
    const kind = random() % 6;
    await Promise.race([momentOf(kind, usual, load), killed.exited]);
    const up = proxy.bytesUp - before;
    await killed.kill();
    const { done: finished, code } = await finish(killed);
    if (code === "SIGKILL") {
      counts.kills++;
      if (up === 0) counts.early++;
      if (kind < 2) counts.pointed++;
    } else {
      expect(finished).toMatchObject({ reason: "bitmap", point: told + 1 });
      counts.ended++;
      told++;
    }
    // The machine has noticed nothing, and goes on.
    await load.more(some());
    const next = await incremental();
    expect([told + 1, told + 2]).toContain(next.point);
    if (next.point === told + 2) counts.unheard++;
    counts.readBytesMax = Math.max(counts.readBytesMax, next.bytesRead);
    usual = next.bytesWire;
    await load.stop();
    const settled = await incremental();
    expect(settled.point).toBe(next.point + 1);
    expect(cmpFiles(image, replicaPath(storeDir, "vm"))).toBeUndefined();
    told = settled.point;
  }
  expect(await tracker.stop()).toBe(0);
  expect(await receiver.stop()).toBe(0);
  expect(readdirSync(dir).filter((name) => /\.cut$|\.spill$|\.rbc$/.test(name))).toEqual([]);
  return counts;
}
