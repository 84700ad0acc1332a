/** `recv --from-dir`: an initial copy that came in files. */
import { resolve } from "node:path";
import { ReplicationError } from "../base/errors.ts";
import { importSeed } from "../library/receiving.ts";
import { openStore } from "../replica/store.ts";
import { createEngine } from "../replication/engine.ts";
import { needed, optional, type ParsedArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { createLog, parseLevel } from "./log.ts";
import { machineTimeZone } from "./open-store.ts";
import { showWork, type Work } from "./progress.ts";
import { formatSize, parseCount, parseSize, parseWord } from "./values.ts";
import type { CliIo } from "./verb.ts";

export function parseReplicaFormat(text: string): "raw" | "vhdx" {
  return parseWord(text, "--format", ["raw", "vhdx"]);
}

export async function importFromFolder(given: ParsedArguments, io: CliIo): Promise<number> {
  const path = needed(given.text("store"), "recv", "--store DIR");
  const directory = resolve(io.cwd, given.text("from-dir") ?? "");
  const owner = needed(given.text("owner"), "recv", "--owner NAME");
  if (owner === "") throw new ReplicationError("usage", "recv: --owner is the name of a certificate");
  if (given.text("listen") !== undefined) {
    throw new ReplicationError("usage", "recv: --from-dir uses no network; leave --listen out, or --from-dir");
  }
  const json = given.flag("json");
  const format = optional(given.text("format"), parseReplicaFormat);
  const reserveBytes = optional(given.text("reserve"), (text) => parseSize(text, "--reserve"));
  const lanes = optional(given.text("lanes"), (text) => parseCount(text, "--lanes", { min: 1, max: 64 }));
  const log = createLog(io, { level: parseLevel(given.text("log-level"), "warn"), json });
  const engine = await createEngine({
    log,
    lz4: io.env["REPLICATE_LZ4"] === "wasm" ? "wasm" : undefined,
    ...(lanes === undefined ? {} : { lanes }),
  });
  const work: Work = { title: "applying the copy", facts: {}, doneBytes: 0, totalBytes: 0 };
  const stop = showWork(work, io, { json });
  try {
    const { storage, clock, random, host } = engine;
    const store = await openStore({
      ...{ path, storage, clock, random, log, host, create: true },
      keep: given.text("keep"),
      timeZone: machineTimeZone(),
      newDisks: format === undefined ? undefined : { format },
      pid: process.pid,
      singleProcess: given.flag("single-process"),
      ...(reserveBytes === undefined ? {} : { reserveBytes }),
    });
    const report = await importSeed(store, {
      ...{ engine, directory, owner, signal: io.signal },
      onProgress(doneBytes, totalBytes) {
        work.doneBytes = doneBytes;
        work.totalBytes = totalBytes;
      },
    });
    await store.close();
    stop();
    const { disk, point, created, cycle, bytes, seconds } = report;
    if (json) {
      const event = { event: "done", ...report, seconds: Number(seconds.toFixed(3)), owner };
      io.out(`${JSON.stringify(event)}\n`);
    } else if (created) {
      const rate = formatSize(bytes / Math.max(seconds, 0.001));
      io.out(
        `${disk}: point ${point}, from ${formatSize(bytes)} in ${directory}, in ${seconds.toFixed(1)} s, ${rate}/s; it belongs to ${owner}\n`,
      );
    } else io.out(`${disk}: already there as point ${point} (cycle ${cycle}); nothing was done\n`);
    return exitCodes.done;
  } finally {
    stop();
    await engine.close();
  }
}
